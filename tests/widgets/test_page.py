"""A widget, and the map of a corpus, as one HTML file: what is in it, and what no text in it can do."""

import base64
import io
import json
import re
from functools import partial

import anywidget
import numpy as np
import pandas as pd
import pytest
import soundfile
import traitlets
from helpers import RATE, call, messages, tone
from widget_helpers import Tags

from colalib.errors import UserError
from colalib.evaluation import flattening
from colalib.widgets import maps, page

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


class Small(anywidget.AnyWidget):
    _esm = "export default { render({ model, el }) { el.textContent = model.get('word'); } };"
    _css = "div { color: red; }"
    word = traitlets.Unicode().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)


@pytest.mark.parametrize("word", [NASTY, "‮العربية🎻", 'a, "b"'])
def test_a_widget_is_a_document_of_its_traits(word):
    html = page.standalone(Small(word=word, data=b"\x00\xff"), f"A title {word}")
    tags = Tags(html).tags
    assert [name for name, _ in tags].count("script") == 3
    assert "img" not in [name for name, _ in tags]
    state = html.split('id="state">')[1].split("</script>")[0]
    assert json.loads(state) == {"word": word}
    assert f'data-bytes="data">{base64.b64encode(bytes([0, 255])).decode()}</script>' in html
    assert "div { color: red; }" in html


def test_the_page_forbids_all_other_code_and_requests():
    html = page.standalone(Small(), "t")
    policy = next(
        about["content"] for name, about in Tags(html).tags if name == "meta" and "http-equiv" in about
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch("'sha256-[^ ]+'", rules["script-src"])
    assert "http" not in policy


# ------------------------------------------------------------------------------------ the map as a file

LABELS = [NASTY, 'a, "b"', "=1+1", "שלום 🎻"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Decode in this process: others take long to start."""
    monkeypatch.setattr(page, "embed", partial(page.embed, jobs=1))


@pytest.fixture
def flat(monkeypatch):
    """A plane in place of UMAP, which takes long."""
    monkeypatch.setattr(flattening, "flatten", lambda x: x[:, :2])


@pytest.fixture
def sounds(tmp_path):
    """Eight clips of 1 s with odd labels."""
    root = tmp_path / "sounds"
    root.mkdir()
    names = [f"{i}.wav" for i in range(8)]
    for i, name in enumerate(names):
        soundfile.write(root / name, tone(200 + 50 * i, 1.0, i), RATE)
    table = {"path": names, "label": [LABELS[i % 4] for i in range(8)], "half": ["x", "y"] * 4}
    pd.DataFrame(table).to_csv(root / "index.csv", index=False)
    return root


def traits(path):
    """Return what a page holds: its traits, bytes decoded."""
    html = path.read_text()
    held = json.loads(re.search(r'id="state">(.*?)</script>', html)[1])
    binary = re.findall(r'data-bytes="(\w+)">(.*?)</script>', html)
    return held | {name: base64.b64decode(value) for name, value in binary}


def test_a_map_of_a_folder_has_all_that_its_page_needs(sounds, tmp_path, flat):
    written = page.write_map(sounds, tmp_path / "map.html", "mel-stats", ["half"])
    held = traits(tmp_path / "map.html")
    assert written.clips == written.inside == held["size"] == 8
    assert list(held["columns"]) == ["half", "label", "split"]
    assert held["column"] == "half"
    assert set(held["columns"]["label"]["names"]) == set(LABELS)
    assert held["paths"] == held["ids"]
    assert len(held["points"]) == 8 * 2 * 4
    assert len(held["near"][0]) == 8 * held["k"]
    assert held["offsets"][-1] == len(held["previews"]) > 8 * 1000
    assert soundfile.info(io.BytesIO(held["previews"][: held["offsets"][1]])).format == "MP3"
    assert not any(held["links"])
    assert list(tmp_path.glob("map-sounds")) == []
    scripts = [name for name, _ in Tags((tmp_path / "map.html").read_text()).tags if name == "script"]
    assert len(scripts) == 4


def test_sounds_that_do_not_fit_lie_beside_the_page(sounds, tmp_path, flat):
    out = tmp_path / "map.html"
    mp3 = len(maps.previews_of_file(sounds / "0.wav", [0.0])[0])
    written = page.write_map(sounds, out, "mel-stats", inside=3.5 * mp3 * 4 / 3 / 1e6)
    held = traits(out)
    assert (written.inside, written.beside) == (3, 5)
    assert [bool(link) for link in held["links"]] == [False] * 3 + [True] * 5
    files = {tmp_path / link for link in held["links"] if link}
    assert files == set((tmp_path / "map-sounds").iterdir())
    (tmp_path / "map-sounds" / "mine.mp3").write_bytes(b"not ours")
    page.write_map(sounds, out, "mel-stats")
    assert [file.name for file in (tmp_path / "map-sounds").iterdir()] == ["mine.mp3"]


def test_a_file_that_vanishes_keeps_its_point(sounds, tmp_path, flat, monkeypatch):
    embed = page.embed

    def embed_and_lose(*args, **options):
        embedded = embed(*args, **options)
        (sounds / "3.wav").unlink()
        return embedded

    monkeypatch.setattr(page, "embed", embed_and_lose)
    written = page.write_map(sounds, tmp_path / "map.html", "mel-stats", inside=0)
    held = traits(tmp_path / "map.html")
    assert written.missing == ["3.wav"]
    assert held["size"] == 8
    assert [i for i, link in enumerate(held["links"]) if not link] == [3]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_clips_are_a_file_too(sounds, tmp_path, n):
    for i in range(n, 8):
        (sounds / f"{i}.wav").unlink()
    (sounds / "index.csv").unlink()
    page.write_map(sounds, tmp_path / "map.html", "mel-stats")
    held = traits(tmp_path / "map.html")
    points = np.frombuffer(held["points"], np.float32).reshape(n, 2)
    assert len(np.unique(points.round(4), axis=0)) == n


def test_clips_that_are_all_equal_stand_apart():
    assert len(np.unique(page.layout(np.ones((20, 5))).round(4), axis=0)) == 20


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[1] * 4, [1] * 5, [3, 1], [20, 20], [20, 1]])
def test_umap_takes_few_clips_and_equal_ones(counts):
    kinds = np.random.default_rng(0).normal(size=(len(counts), 5))
    points = page.layout(np.repeat(kinds, counts, axis=0).astype(np.float32))
    assert points.shape == (sum(counts), 2)
    assert np.isfinite(points).all()


def test_a_map_of_a_store(mel_store, tmp_path, flat):
    written = page.write_map(mel_store.path, tmp_path / "map.html", "mel-stats")
    assert written.inside == len(mel_store)
    assert list(traits(tmp_path / "map.html")["columns"]) == ["label", "split", "parity"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label", "colour"], "no column 'colour': there are clip_id, path"),
        (["--inside", "2000"], "--inside 2000: a page holds 0 to 300 MB of sounds"),
        (["--inside", "-1"], "--inside -1: a page holds"),
        (["--inside", "nan"], "--inside nan: a page holds"),
        (["--encoder", "nonsense"], "nonsense"),
    ],
)
def test_an_option_that_cannot_be_met_is_told_in_a_line(sounds, tmp_path, capsys, options, said):
    out = tmp_path / "map.html"
    code, _, error = call(capsys, "map", sounds, "--out", out, "--encoder", "mel-stats", *options)
    (line,) = messages(error)
    assert code == 2
    assert said in line
    assert not out.exists()


@pytest.mark.parametrize("place", ["file/map.html", "folder.html", "/proc/none/map.html"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(sounds, tmp_path, place, monkeypatch):
    monkeypatch.setattr(page, "embed", lambda *args: pytest.fail("it began to work"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=r"cannot be written \(.+\): choose another --out"):
        page.write_map(sounds, tmp_path / place, "mel-stats")


def test_a_folder_without_sound_makes_no_file(tmp_path, capsys):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").write_text("no sound")
    code, _, error = call(
        capsys, "map", tmp_path / "sounds", "--out", tmp_path / "m.html", "--encoder", "mel-stats"
    )
    assert code == 2
    assert "none of 1 clips is usable" in error
    assert not (tmp_path / "m.html").exists()


def test_a_page_that_no_browser_could_hold_is_refused(sounds, tmp_path, flat, monkeypatch):
    monkeypatch.setattr(page, "LARGEST", 10_000)
    with pytest.raises(UserError, match="is too large for browsers"):
        page.write_map(sounds, tmp_path / "map.html", "mel-stats")
    assert not (tmp_path / "map.html").exists()


def test_the_command_tells_what_it_wrote(sounds, tmp_path, capsys, flat):
    (sounds / "5.wav").write_text("no sound")
    code, told, _ = call(
        capsys, "map", sounds, "--out", tmp_path / "m.html", "--encoder", "mel-stats", "--inside", "0"
    )
    assert code == 0
    assert "a map of 7 clips, 0 of their sounds inside" in told
    assert f"7 sounds are in {tmp_path / 'm-sounds'}: keep that folder beside the page" in told
    assert "5.wav" in told


def test_a_page_of_another_program_stays(sounds, tmp_path, capsys):
    out = tmp_path / "map.html"
    out.write_text("<html>mine</html>")
    code, _, error = call(capsys, "map", sounds, "--out", out)
    assert code == 2
    assert "map.html was not written by colalib" in error
    assert out.read_text() == "<html>mine</html>"
