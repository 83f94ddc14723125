"""The embedding map: what the page gets, recordings that are added, and sounds as files."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from colalib import evaluation, widgets
from colalib.data import audio
from colalib.widgets import maps
from colalib.widgets.choices import change_choice
from colalib.widgets.maps import colour_columns


@pytest.mark.slow
def test_a_recording_lands_where_it_belongs(corpus, mel_store, space):
    paths = dict(zip(corpus.clips["clip_id"], corpus.clips["path"]))
    i = 17
    wave = audio.load_audio(corpus.root / paths[mel_store.clips["clip_id"][i]])
    xy, near = maps.place(space, wave)
    assert near[0] == i
    assert np.allclose(xy, space.reducer.embedding_[i], atol=0.05 * np.ptp(space.reducer.embedding_))


def test_the_features_of_a_map_may_come_from_elsewhere(corpus, mel_store):
    mel_stats = evaluation.embed(mel_store.path, "mel-stats").vectors
    reducer = PCA(2).fit(StandardScaler().fit_transform(mel_stats))
    wave = audio.load_audio(corpus.root / corpus.clips["path"][5])
    xy, near = maps.place(widgets.Space(mel_stats, reducer, "mel-stats"), wave)
    assert mel_store.ids[near[0]].endswith(corpus.clips["clip_id"][5])
    assert xy.shape == (2,)


@pytest.mark.slow
def test_the_page_has_all_that_a_press_needs(corpus, mel_store, space, tmp_path):
    shown = widgets.embedding_map(corpus, mel_store, {"a": space, "b": space}, ["label", "parity"])
    page, n = shown.page, len(mel_store)
    assert len(page.offsets) == n + 1
    assert page.offsets[-1] == len(page.previews)
    assert page.links == []
    assert len(page.previews) / n < 20_000  # 10 MB for 500 clips
    assert len(page.points) == 2 * n * 2 * 4
    assert len(page.near[0]) == 5 * n
    groups = mel_store.clips["group"].values
    assert all(groups[j] != groups[0] for j in page.near[0][:5])
    shown.path.value = str(tmp_path / "nowhere.wav")
    assert shown.refused.value == "nowhere.wav: file not found"
    assert page.added == []
    shown.path.value = str(corpus.root / corpus.clips["path"][0])
    assert page.added[0]["sound"].startswith("data:audio/mpeg")
    assert len(page.added[0]["points"]) == 2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_clips_are_a_map_too(corpus, mel_store, n):
    features = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    few = SimpleNamespace(clips=mel_store.clips.iloc[:: 96 // n].head(n), mel=mel_store.mel)
    spaces = {name: widgets.Space(features, SimpleNamespace(embedding_=features[:, :2])) for name in "ab"}
    shown = widgets.embedding_map(corpus, few, spaces)
    assert shown.page.size == n
    assert shown.page.k == n - 1
    assert len(shown.page.near[0]) == n * (n - 1)
    assert shown._repr_mimebundle_()["image/png"]


@pytest.mark.parametrize("column", ["nonsense", "", 7, ["label"]])
def test_a_column_that_is_not_there_is_passed_over(corpus, mel_store, space, column):
    change_choice("embedding_map", lambda _: {"column": column})
    shown = widgets.embedding_map(corpus, mel_store, {"a": space}, ["parity", "label"])
    assert shown.page.column == "parity"
    shown.page.column = "label"
    again = widgets.embedding_map(corpus, mel_store, {"a": space}, ["parity", "label"])
    assert again.page.column == "label"


def test_columns_of_the_store_itself_are_no_colours(mel_store):
    clips = mel_store.clips.assign(frames=np.arange(len(mel_store)) % 5)
    assert {"label", "parity"} <= {*colour_columns(clips)}
    assert not {"shard", "start", "frames"} & {*colour_columns(clips)}


ODD_PATHS = {
    "~nosuchuser/x.wav": "x.wav: ",
    "a\0b.wav": "a_b.wav: ",
    "/tmp": "tmp: unreadable: a folder, not a file",
    "nowhere.wav": "nowhere.wav: file not found",
    "x" * 300 + ".wav": "x" * 80 + ": File name too long",
    "/": "your file: unreadable: a folder",
}


@pytest.mark.parametrize(("typed", "said"), ODD_PATHS.items(), ids=range(len(ODD_PATHS)))
def test_a_path_that_is_no_recording_is_told_in_a_line(corpus, mel_store, space, typed, said):
    shown = widgets.embedding_map(corpus, mel_store, {"a": space}, ["label"])
    shown.path.value = typed
    assert shown.refused.value.startswith(said)
    assert shown.message.value == ""
    assert len(shown.refused.value.splitlines()) == 1
    assert shown.page.added == []


def test_files_that_a_server_gives_out_are_linked(folder, tmp_path, monkeypatch):
    flac = next(folder.rglob("*.flac"))
    started = {
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
        "JPY_PARENT_PID": "7",
        "COLA_RUNS": str(tmp_path / "runs"),
    }
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    server = tmp_path / "jpserver-7.json"
    server.write_text(json.dumps({"root_dir": str(folder)}))
    assert maps.links([flac]) == [f"files/{flac.relative_to(folder).as_posix()}"]
    server.write_text(json.dumps({"root_dir": str(tmp_path)}))
    hidden = tmp_path / ".cache" / flac.name  # which the server does not give out
    hidden.parent.mkdir()
    hidden.write_bytes(flac.read_bytes())
    (address,) = maps.links([hidden])
    assert address.startswith("files/runs/previews/")
    unplayable = tmp_path / "sound.aiff"
    unplayable.write_bytes(flac.read_bytes())
    for root in (tmp_path / "runs", tmp_path / "notebooks"):  # nothing above it is given out
        root.mkdir(exist_ok=True)
        monkeypatch.chdir(root)
        server.write_text(json.dumps({"root_dir": str(root)}))
        for address in maps.links([flac, unplayable]):
            assert len(audio.load_audio(root / address.removeprefix("files/"))) > 16_000


def test_threads_that_make_the_same_preview_do_not_clash(folder, tmp_path):
    source = tmp_path / "sound.aiff"  # browsers do not play it, so it gets a preview
    source.write_bytes(next(folder.rglob("*.flac")).read_bytes())
    previews = tmp_path / "previews"
    previews.mkdir()
    files, raised = [], []

    def work():
        try:
            files.append(maps.stand_in(source, previews))
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    assert len(set(files)) == 1
    assert list(previews.iterdir()) == files[:1]
    assert len(audio.load_audio(files[0])) > 16_000


def test_a_recording_that_cannot_be_read_leaves_no_preview(tmp_path):
    (tmp_path / "text.aiff").write_text("no sound")
    (tmp_path / "previews").mkdir()
    maps.stand_in(tmp_path / "text.aiff", tmp_path / "previews")
    maps.stand_in(tmp_path / "nowhere.aiff", tmp_path / "previews")
    assert list((tmp_path / "previews").iterdir()) == []
