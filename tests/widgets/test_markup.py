"""Names are shown as they are: neither read as HTML in a widget nor as mathematics in a figure."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from matplotlib import cbook
from matplotlib.figure import Figure
from matplotlib.text import Text
from widget_helpers import Tags, html_of, press, send

from colalib import widgets
from colalib.data import audio, corpora, store
from colalib.encoder import Encoder
from colalib.evaluation import plots
from colalib.training.runs import Run, snapshot_name
from colalib.widgets import learning, maps, overview, panel, parts

SCRIPT = "<img src=x onerror=alert(1)>"
MONEY = "cost_$5_$6"
HIDDEN = "_silence_"


def assert_text(html: str, times: int = 1) -> None:
    """Assert that `SCRIPT` is shown as text at least so many times, and is nowhere a tag."""
    read = Tags(html)
    assert [tag for tag in read.tags if "onerror" in tag[1] or tag[1].get("src") == "x"] == []
    attributes = [value or "" for _, tag in read.tags for value in tag.values()]
    assert read.text.count(SCRIPT) + sum(SCRIPT in value for value in attributes) >= times


def fail(*_):
    raise audio.Unusable(SCRIPT)


# -------------------------------------------------------------------------------------------- parts


def test_a_player_s_label_is_text():
    assert_text(parts.sound(np.zeros(100, np.float32), f'{SCRIPT}" onerror="alert(1)'), 2)


def test_a_picture_s_words_are_text():
    html = parts.picture(Figure(), f'{SCRIPT}" onerror="alert(1)')
    assert_text(html)
    assert [sorted(attributes) for _, attributes in Tags(html).tags] == [["alt", "src", "style"]]


@pytest.mark.parametrize("values", [{SCRIPT: "value"}, {"name": SCRIPT}])
def test_a_listing_s_names_and_values_are_text(values):
    assert_text(parts.listing(values))


def test_a_table_s_cells_and_head_are_text():
    assert_text(parts.table(pd.DataFrame({SCRIPT: [SCRIPT]})), 2)


def test_a_reason_is_text():
    assert_text(parts.reason(audio.Unusable(SCRIPT)))
    assert_text(parts.reason(OSError(5, SCRIPT)))


# ------------------------------------------------------------------------------------------ widgets


@pytest.fixture(scope="module")
def named(folder, tmp_path_factory):
    """A corpus whose clips, labels, groups and titles have such names, and its store."""
    root = tmp_path_factory.mktemp("names")
    rows = []
    for i, path in enumerate(sorted(folder.rglob("*.flac"))[:12]):
        soundfile.write(root / f"{i}.flac", *soundfile.read(path))
        names = {"clip_id": f"{SCRIPT}{i}", "label": (SCRIPT, MONEY, HIDDEN)[i % 3], "group": f"{SCRIPT} {i}"}
        rows.append({"path": f"{i}.flac", **names, "title": f"{SCRIPT} {i}"})
    pd.DataFrame(rows).to_csv(root / "index.csv", index=False)
    corpus = corpora.load(root)
    return corpus, store.build(corpus, root / "store", jobs=1, progress=False)


def test_laboratory(folder, tmp_path, monkeypatch):
    (tmp_path / "text.wav").write_text("no sound")
    good = next(folder.rglob("*.flac"))
    shown = widgets.mel_laboratory({SCRIPT: good, f"{SCRIPT} damaged": tmp_path / "text.wav"})
    assert_text(shown.picture.value)
    monkeypatch.setattr(audio, "load_audio", fail)
    shown.clip.value = f"{SCRIPT} damaged"
    assert_text(shown.message.value, 2)  # with the reason
    send(shown.drop, f"{SCRIPT}.wav", b"no sound")
    assert_text(shown.refused.value, 2)


def test_pair_player(named):
    shown = widgets.pair_player(*named, {SCRIPT: Encoder(), MONEY: Encoder()})
    for card in shown.cards:
        assert_text(card.value)
    shown.mode.value = "quiz"
    shown.choose[0].click()
    assert_text(shown.verdict.value, 2)  # what it chose, and its score
    shown.another.click()
    shown.another.click()
    assert_text(html_of(shown), 0)


def test_recordings_of_the_pair_player_that_cannot_be_heard(named, monkeypatch):
    monkeypatch.setattr(audio, "load_audio", fail)
    for card in widgets.pair_player(*named).cards:
        assert_text(card.value, 2)  # the reason, and the clip's title


def test_training_panel(mel_store, short_run, tmp_path):
    for name in (SCRIPT, MONEY, HIDDEN):
        shutil.copytree(short_run, tmp_path / name)
    metrics = tmp_path / SCRIPT / "metrics.csv"
    metrics.write_text("step,epoch,seconds,train/loss\n0,0,1,2\n5,1,2,1\n")
    (tmp_path / f"{SCRIPT} damaged").mkdir()
    (tmp_path / f"{SCRIPT} damaged" / "config.json").write_text("[]")
    shown = panel.TrainingPanel([mel_store.path], tmp_path)
    assert_text(shown.runs.value, 2)  # in the table, and among what cannot be read
    shown.overlay.value = (SCRIPT, MONEY)
    assert_text(shown.curves.value)
    shown.job = panel.Job(tmp_path / SCRIPT)
    shown.say("5%")
    assert_text(shown.status.value)
    shown.alert(SCRIPT)
    assert_text(shown.failure.value)
    shown.run_name.value = SCRIPT
    shown.train.click()
    assert "holds a run already" in shown.status.value
    assert_text(shown.status.value, 2)  # its name, and its path in the reason


def answers(corpus):
    """Return right answers and wrong ones of models with such names."""
    clips = corpus.clips[["clip_id", "group", "label"]].assign(task=f"{SCRIPT}/{MONEY}", fold="", seed=0)
    wrong = np.roll(clips["label"].values, 1)
    tables = [clips.assign(model=name, predicted=wrong) for name in (SCRIPT, MONEY, HIDDEN)]
    return pd.concat([*tables, clips.assign(model=SCRIPT, seed=1, predicted=clips["label"])])


def test_results_explorer(named, monkeypatch):
    corpus, _ = named
    shown = widgets.results_explorer(corpus, answers(corpus))
    assert_text(shown.bars.value)
    shown.model.value = SCRIPT
    label, predicted = SCRIPT, HIDDEN
    press(shown.matrix, label, predicted)
    assert_text(shown.heard.value, 1 + 4)  # the heading and its clips
    monkeypatch.setattr(audio, "load_audio", fail)
    press(shown.matrix, label, predicted)
    assert_text(shown.heard.value, 1 + 2 * 4)  # with the reason
    shown.clips = shown.clips.iloc[:0]
    press(shown.matrix, label, predicted)
    assert_text(shown.heard.value, 1 + 4)


def test_embedding_map(named, space, folder, tmp_path, monkeypatch):
    corpus, mel_store = named
    few = space._replace(features=space.features[:12])
    shown = widgets.embedding_map(corpus, mel_store, {SCRIPT: few}, ["label"])
    send(shown.drop, f"{SCRIPT}.flac", next(folder.rglob("*.flac")).read_bytes())
    assert_text(shown.message.value)
    assert len(shown.page.added) == 1
    monkeypatch.setattr(audio, "load_audio", fail)
    shown.path.value = str(tmp_path / f"{SCRIPT}.wav")
    assert_text(shown.refused.value, 2)  # with the reason


def test_watch_it_learn(named, short_run, tmp_path, monkeypatch):
    corpus, mel_store = named
    out = tmp_path / SCRIPT
    shutil.copytree(short_run, out)
    (out / "snapshots").mkdir()
    shutil.copy(out / "encoder.safetensors", out / snapshot_name(0))
    monkeypatch.setattr(learning, "aligned_maps", lambda features: [x[:, :2] for x in features])
    shown = widgets.watch_it_learn(corpus, mel_store, out, np.arange(12))
    assert SCRIPT in shown.page.columns["label"]["names"]  # as text: the page sets textContent only
    assert_shown(shown.static_figure(), MONEY, HIDDEN, SCRIPT)


def test_code_of_the_pages_never_reads_text_as_html():
    for file in maps.HERE.glob("*.js"):
        code = file.read_text(encoding="utf-8")
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in code, f"{file.name}: {way}"


# ------------------------------------------------------------------------------------------ figures


def assert_shown(figure: Figure, *names: str) -> None:
    """Assert that a figure can be drawn and that names stand in it as they are."""
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert [text for text in texts if "cost" in text and cbook.is_math_text(text)] == []
    for name in names:
        assert any(name in text.replace(r"\$", "$") for text in texts), name


FRAMES = np.zeros((201, 64), np.float16)
NAMES = (MONEY, HIDDEN, "probe")
SUMMARY = {
    "model_name": list(NAMES),
    "task": MONEY,
    "chance": 0.1,
    "results": [{"model": name, "per_seed": [0.4], "mean": 0.4, "ci95": [0.3, 0.5]} for name in NAMES],
    "differences": [{"a": MONEY, "b": HIDDEN, "mean": 0.3, "ci95": [0.2, 0.4]}],
}
RUNS = {name: pd.DataFrame({"step": [1, 2], "train/loss": [2.0, 1.0]}) for name in NAMES}
BUDGETS = pd.DataFrame({"model": NAMES, "labels per class": 5, "mean": 0.4, "low": 0.3, "high": 0.5})
ANSWERS = pd.DataFrame({"label": [MONEY, HIDDEN, "c"], "predicted": [MONEY, MONEY, HIDDEN]})
TITLE = f"title {MONEY}"

AXES = {
    "waveform": lambda ax: plots.waveform(np.zeros(100), ax=ax, title=TITLE),
    "spectrogram": lambda ax: plots.spectrogram(FRAMES, ax=ax, title=TITLE),
    "curves": lambda ax: plots.curves(RUNS, "train/loss", ax, title=TITLE),
    "similarity_matrix": lambda ax: plots.similarity_matrix(np.eye(2), ax, TITLE),
    "results": lambda ax: plots.results(SUMMARY, ax, TITLE),
    "differences": lambda ax: plots.differences(SUMMARY, [(MONEY, HIDDEN)], ax, TITLE),
    "label_efficiency": lambda ax: plots.label_efficiency(BUDGETS, ax, TITLE),
    "confusion": lambda ax: plots.confusion(ANSWERS, ax, TITLE),
    "embedding_map": lambda ax: plots.embedding_map(np.eye(2), [MONEY, HIDDEN], ax, TITLE),
}
WITHOUT_NAMES = {"waveform", "spectrogram", "similarity_matrix"}


@pytest.mark.parametrize("name", AXES)
def test_a_figure_shows_names_as_they_are(name):
    figure = Figure()
    ax = AXES[name](figure.subplots())
    assert_shown(figure, TITLE)
    if name not in WITHOUT_NAMES:
        ax.set_title("")
        assert_shown(figure, MONEY, HIDDEN)


def test_a_figure_without_a_title_shows_its_task():
    ax = plots.results(SUMMARY, Figure().subplots())
    assert_shown(ax.figure, MONEY)


def test_a_legend_leaves_no_name_out():
    for draw in (AXES["curves"], AXES["label_efficiency"], AXES["embedding_map"]):
        legend = draw(Figure().subplots()).get_legend()
        assert HIDDEN in [text.get_text().strip() for text in legend.get_texts()]


FIGURES = {
    "panels": lambda: plots.panels([(MONEY, FRAMES), ("b", FRAMES)], TITLE),
    "crops": lambda: plots.crops(FRAMES, {MONEY: 0, "b": 20}, 98, title=TITLE),
    "pairs": lambda: plots.pairs(FRAMES[None, :98], FRAMES[None, :98], [MONEY]),
    "the panel's curves": lambda: overview.curves(
        {name: overview.metrics_of(Named(frame)) for name, frame in RUNS.items()}
    ),
}


class Named(Run):
    """A run whose metrics are given."""

    def __init__(self, frame):
        self.metrics = lambda: frame


@pytest.mark.parametrize("name", FIGURES)
def test_several_axes_show_names_as_they_are(name):
    figure = FIGURES[name]()
    assert_shown(figure, MONEY)
    plots.plt.close("all")


def test_pictures_of_the_widgets_show_names_as_they_are(named, space):
    corpus, mel_store = named
    figure = widgets.results_explorer(corpus, answers(corpus)).static_figure()
    assert_shown(figure, f"{SCRIPT}/{MONEY}", MONEY, HIDDEN, SCRIPT)
    few = widgets.Space(space.features[:12], SimpleNamespace(embedding_=space.features[:12, :2]))
    figure = widgets.embedding_map(corpus, mel_store, {MONEY: few}, ["label"]).static_figure()
    assert_shown(figure, MONEY, HIDDEN, SCRIPT)
