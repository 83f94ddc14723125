"""The widgets as people use them: a real JupyterLab, a real browser, on the course at the size for
tests.
"""

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pytest
import soundfile
from helpers import PROFILE, SCREENSHOTS, course_places
from jupyter_page import BROWSER, PATIENCE, Page, a_point, drop, playwright
from widget_helpers import MANY_STEPS, shorten

from colalib.course import running
from colalib.training.runs import Run, read_checkpoint

PRELUDE = f"""
from colalib.widgets.panel import TrainingPanel
TrainingPanel._steps = {MANY_STEPS}  # a training ends when the test stops it, not after minutes
corpus, store, encoder = course.corpus(), course.store(), course.encoder()
folder = course.supervised_folder(encoder)
"""
SCRIPT = "<img src=x onerror=alert(1)>"  # a name that must stay text

MANY = """
import numpy as np
from types import SimpleNamespace
from colalib import course, widgets

class Store:  # the course's clips again and again
    mel = course.store().mel
    clips = course.store().clips.sample(5000, replace=True, random_state=0, ignore_index=True)
    __len__ = lambda self: len(self.clips)

x = np.random.default_rng(0).normal(size=(5000, 16)).astype("float32")
reducers = {"one": SimpleNamespace(embedding_=x[:, :2]), "two": SimpleNamespace(embedding_=x[:, 1:3])}
spaces = {name: widgets.Space(x, reducer) for name, reducer in reducers.items()}
widgets.embedding_map(course.corpus(), Store(), spaces)
"""
MATRIX = f"""
import numpy as np
import pandas as pd
from colalib import course, widgets

n = CLASSES
labels = [{SCRIPT!r}, *(f"class {{i:03d}}" for i in range(1, n))]
table = pd.DataFrame({{"label": np.repeat(labels, 4), "predicted": np.roll(np.repeat(labels, 4), 1)}})
table["clip_id"] = np.resize(course.corpus().clips["clip_id"].values, 4 * n)
table["group"] = table["label"]
widgets.results_explorer(course.corpus(), table.assign(task="many", fold="", model="probe", seed=0))
"""
LABS = f"""
import numpy as np
from IPython.display import display
from colalib import widgets

display(widgets.guess("lab", "Which?", {{{SCRIPT!r}: "No name is run.", "this": "Yes."}}, "this"))
display(widgets.power_lab())
widgets.temperature_lab(np.array([0.7, 0.2, 0.6]))
"""
LEARNING = """
import numpy as np
from colalib import course, widgets

store = course.store()
rows = np.flatnonzero(store.clips["split"] == "test")
widgets.watch_it_learn(course.corpus(), store, course.encoder(), rows)
"""
BY_EAR = """
import shutil
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from colalib import course, widgets
from colalib.data import corpora
from colalib.data.store import build

folder = Path("by-ear")  # without labels
folder.mkdir(exist_ok=True)
for path in course.corpus().clips["path"][:40]:
    shutil.copy(course.corpus().root / path, folder)
field = corpora.load(folder)
store = build(field, Path("by-ear.store"), progress=False)
x = np.random.default_rng(0).normal(size=(len(store), 16)).astype("float32")
widgets.labeller(field, store, widgets.Space(x, SimpleNamespace(embedding_=x[:, :2])))
"""


def widget_notebook(source, to):
    """Write a notebook of a notebook's first code cell, its widgets, and the cells that these need."""
    content = nbformat.read(source, 4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    tagged = [c for c in code[1:] if {"needed", "widget"} & set(c.metadata.get("tags", []))]
    cells = [code[0], nbformat.v4.new_code_cell(PRELUDE), *tagged]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=content.metadata), to)


@pytest.fixture(scope="module")
def lab(executed):
    """Start a JupyterLab server on the executed course; yield its address and its folder."""
    _, runs = executed
    root = runs.parents[1]
    for notebook in running.notebooks():
        widget_notebook(notebook, root / notebook.name)
    own = {"many": MANY, "labs": LABS, "learning": LEARNING, "by-ear": BY_EAR} | {
        f"matrix-{n}": MATRIX.replace("CLASSES", str(n)) for n in (50, 200)
    }
    for name, code in own.items():
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), root / f"{name}.ipynb"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {"JUPYTER_CONFIG_DIR": str(root / "config"), "HOME": str(root), "OMP_NUM_THREADS": "2"}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
    ]
    options = [
        "--IdentityProvider.token=course",
        f"--ServerApp.root_dir={root}",
        "--LabApp.extension_manager=readonly",
        "--LabApp.expose_app_in_browser=True",
    ]
    # asks nobody outside, and shows no box about it
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    settings = {
        "@jupyterlab/apputils-extension:notification": quiet,
        "@jupyterlab/notebook-extension:tracker": {"autoStartDefaultKernel": True},
    }
    (root / "config" / "labconfig").mkdir(parents=True, exist_ok=True)
    (root / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(settings))
    with open(root / "lab.log", "wb") as log:
        server = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **course_places(root), **home},
            cwd=root,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token=course", timeout=PATIENCE)
                break
            except OSError:
                assert server.poll() is None, (root / "lab.log").read_text()[-2000:]
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.5)
        yield address, root
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        found = running.chromium.launch(executable_path=BROWSER, args=flags)
        yield found
        found.close()


@pytest.fixture
def opened(lab, browser):
    pages = []

    def open_(name, **options):
        pages.append(Page(browser, lab, name, **options))
        return pages[-1]

    yield open_
    for page in pages:
        print(page.output().inner_text())  # pytest shows it if the test failed
        page.close()


def test_mel_laboratory(opened):
    page = opened("01_sound_to_mel.ipynb")
    out = page.output()
    picture, numbers = out.get_by_role("img"), out.get_by_role("table")
    before = numbers.inner_text()
    handle = out.locator(".widget-hslider:has(label:text-is('bands')) .noUi-handle")
    handle.focus()
    for _ in range(3):
        page.page.keyboard.press("ArrowLeft")
    playwright.expect(picture).to_have_attribute("alt", re.compile("with 40 bands"))
    playwright.expect(numbers).not_to_have_text(before, use_inner_text=True)
    out.get_by_text("working").wait_for(state="hidden")
    page.keep("mel_laboratory")
    page.fits()
    page.tabbed()
    for name in ("original", "re-synthesis from the spectrogram"):
        player = out.get_by_label(name)
        player.evaluate("a => a.play()")
        page.playing(player)
    mine = next((page.root / "data").rglob("*.mp3"))
    drop(out.get_by_role("button", name="your own file"), (mine.name, mine.read_bytes()))
    playwright.expect(out.get_by_label("clip")).to_have_value(f"{mine.name} (yours)")
    kept = handle.get_attribute("aria-valuenow")
    page.restart(and_run=True)
    playwright.expect(handle).to_have_attribute("aria-valuenow", kept)


def noise(seconds, seed):
    """Return noise as a WAV file."""
    file = io.BytesIO()
    samples = 0.1 * np.random.default_rng(seed).standard_normal(16_000 * seconds)
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


def test_files_that_are_dropped(opened):
    page = opened("01_sound_to_mel.ipynb")
    out = page.output()
    button, clip = out.get_by_role("button", name="your own file"), out.get_by_label("clip")
    # 6 MB each: their slices come in turn
    drop(button, ("one.wav", noise(190, 1)), ("two.wav", noise(190, 2)), (f"{SCRIPT}.wav", b"no sound"))
    out.get_by_text(f"{SCRIPT}.wav: unreadable").wait_for()
    for name in ("one.wav", "two.wav"):
        clip.locator("option", has_text=f"{name} (yours)").wait_for(state="attached")
    drop(button, ("", noise(1, 3)))
    playwright.expect(clip).to_have_value("your file (yours)")
    unreadable = "() => ({ arrayBuffer: () => Promise.reject(new Error('why')) })"
    for size, words in (
        (6e8, "false.wav: larger than 500 MB"),
        (9, "false.wav: the browser cannot read it (why)"),
    ):
        file = f"{{ name: 'false.wav', size: {size}, slice: {unreadable} }}"
        event = f"Object.assign(new Event('drop'), {{ dataTransfer: {{ files: [{file}] }} }})"
        button.evaluate(f"button => button.dispatchEvent({event})")
        out.get_by_text(words).wait_for()


def test_quiz(opened):
    page = opened("02_segment_pairs.ipynb")
    out = page.output()
    assert out.locator("audio").count() == 5
    anchor = out.get_by_label("anchor", exact=True)
    anchor.evaluate("a => a.play()")
    page.playing(anchor)
    out.get_by_role("button", name="quiz").click()
    out.get_by_text("Which candidate comes from").wait_for()
    assert "positive" not in out.inner_text()
    out.get_by_role("button", name="this one").nth(1).click()
    out.get_by_text(re.compile(r"right so far: you \d of 1")).wait_for()
    page.keep("pair_player")
    page.fits()
    page.tabbed()
    told = out.inner_text()
    assert re.search(r"random chose \d.*pre-trained chose \d", told)
    assert "positive" in told
    picture = out.get_by_role("img", name="log-mel spectrogram of the anchor")
    first = picture.get_attribute("src")
    out.get_by_label("random_band_mask").check()
    playwright.expect(picture).not_to_have_attribute("src", first)


def test_training_panel(opened):
    page = opened("03_contrastive_pretraining.ipynb")
    out = page.output()
    out.get_by_role("button", name="Train").click()
    out.get_by_text(re.compile(r"run-1: \d+%")).wait_for()
    picture = out.get_by_role("img", name=re.compile("^curves"))
    picture.wait_for()
    first = picture.get_attribute("src")
    playwright.expect(picture).not_to_have_attribute("src", first)
    out.get_by_role("button", name="Stop").click()
    out.get_by_text("run-1: stopped").wait_for()
    run = Run(page.root / "runs" / PROFILE / "run-1")
    assert run.exists
    assert not run.finished
    begun = read_checkpoint(run.path / "last.ckpt")["global_step"]
    shorten(run.path, begun + (400 if SCREENSHOTS else 10))
    out.get_by_role("button", name="Resume").click()
    out.get_by_text("run-1: finished").wait_for()
    assert run.finished
    assert "run-1" in out.get_by_role("table").inner_text()
    out.get_by_role("img", name=re.compile("^similarity matrix")).wait_for()
    page.keep("training_panel")
    page.fits()
    page.tabbed()
    out.get_by_label("name of the run").fill("run-1")
    out.get_by_role("button", name="Train").click()
    out.get_by_text("run-1 cannot be started").get_by_text("holds a run already").wait_for()


def test_a_map_of_5000_clips_shows_them_all_and_its_sounds_are_files(opened):
    page = opened("many.ipynb")
    maps, tip = page.output().get_by_role("application"), page.output().get_by_role("tooltip")
    assert maps.count() == 2
    for canvas in maps.all():
        pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        painted = canvas.evaluate(f"c => {pixels}.filter((v, i) => i % 4 === 3 && v).length")
        assert painted > 10_000, "a hundred points would be 1,500 pixels"
    box, found = a_point(page, maps.first)
    page.page.mouse.click(*found)
    audio = page.output().get_by_label("the selected clip")
    page.playing(audio)
    assert "/files/data/scores" in audio.evaluate("a => a.src")
    told = set()
    for i in range(120):  # across the middle, where the points lie close
        x, y = box["width"] * (0.3 + i / 300), box["height"] * (0.4 + 0.01 * (i % 20))
        page.page.mouse.move(box["x"] + x, box["y"] + y)
        told.update(tip.all_inner_texts())
    assert len(told) > 20, "the pointer is told of what lies under it, wherever it goes"


def test_notebook_7(opened):
    page = opened("07_embedding_map.ipynb", place="notebooks")
    page.page.mouse.click(*a_point(page, page.output().get_by_role("application").first)[1])
    page.playing(page.output().get_by_label("the selected clip"))
    # Notebook 7.6's, with any notebook
    own = ("reading 'schema')", "'filebrowser:open-path' not registered.")
    page.wrong = [wrong for wrong in page.wrong if not wrong.endswith(own)]


def test_embedding_map(opened):
    page = opened("07_embedding_map.ipynb")
    out = page.output()
    maps, status, audio = (
        out.get_by_role("application"),
        out.get_by_role("status"),
        out.get_by_label("the selected clip"),
    )
    assert maps.count() == 2
    canvas = maps.first
    box, found = a_point(page, canvas)
    page.page.mouse.click(*found)
    page.playing(audio)
    print(f"from click to sound: {out.locator('.cola-map').get_attribute('data-latency')} ms")
    assert status.inner_text()
    assert out.get_by_role("list").get_by_role("button").count() == 1 + 2 * 5
    canvas.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.page.keyboard.press(key)
    page.silent(audio)
    page.page.keyboard.press("Enter")
    page.playing(audio)
    page.page.keyboard.press("+")
    out.get_by_text("1 clip selected").wait_for()
    page.page.keyboard.press("Escape")
    w, h = box["width"], box["height"]
    corners = [(2, 2), (w - 2, 2), (w - 2, h - 2), (2, h - 2), (2, 4)]
    page.page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.page.mouse.down()
    for x, y in corners:
        page.page.mouse.move(box["x"] + x, box["y"] + y, steps=8)
    page.page.mouse.up()
    out.get_by_text("160 clips selected").wait_for()
    page.silent(audio)
    out.get_by_role("button", name="play in turn").click()
    page.playing(audio)
    out.get_by_role("button", name="clear").click()
    with page.page.expect_file_chooser() as chooser:
        out.get_by_role("button", name="your own file").click()
    mine = next((page.root / "data").rglob("*.mp3"))
    chooser.value.set_files(mine)
    out.get_by_text(f"{mine.name}: the star on the map").wait_for()
    assert status.inner_text() == f"{mine.name}: yours"
    page.keep("embedding_map")
    box, found = a_point(page, canvas)
    page.page.mouse.click(*found)
    first = out.locator(".cola-map").get_attribute("data-selected")
    page.fits()
    page.tabbed()
    page.restart()
    canvas.focus()
    page.page.keyboard.press("ArrowUp")
    page.silent(audio)
    page.page.mouse.click(*a_point(page, canvas)[1])
    page.playing(audio)
    assert out.locator(".cola-map").get_attribute("data-selected") == first


def test_watch_it_learn(opened):
    page = opened("learning.ipynb")
    out = page.output()
    canvas, audio = out.get_by_role("application"), out.get_by_label("the selected clip")
    slider, play = out.get_by_label("training step"), out.get_by_role("button", name="▶ play", exact=True)
    assert canvas.count() == 1
    playwright.expect(slider).to_have_attribute("aria-valuetext", re.compile("^step 0: the nearest"))
    out.get_by_text("the nearest neighbour has the same label for").wait_for()
    out.get_by_role("img", name=re.compile("^accuracy of the nearest neighbour: step 0, ")).wait_for()
    a_point(page, canvas)
    page.page.mouse.move(0, 0)
    before = canvas.evaluate("c => c.toDataURL()")
    slider.press("ArrowRight")
    playwright.expect(slider).to_have_attribute("aria-valuetext", re.compile("^step [1-9]"))
    page.wait_until(f"c => c.toDataURL() !== {before!r}", canvas)
    slider.press("Home")
    page.wait_until(f"c => c.toDataURL() === {before!r}", canvas)  # the points are back
    play.click()
    out.get_by_role("button", name="pause").wait_for()
    play.wait_for()  # at the last step it stops by itself
    last = int(slider.get_attribute("max"))
    assert out.locator(".cola-map").get_attribute("data-moment") == str(last)
    # until the points have arrived: two frames are alike
    page.wait_until("c => c.former === (c.former = c.toDataURL())", canvas)
    page.page.mouse.click(*a_point(page, canvas)[1])
    page.playing(audio)
    page.keep("watch_it_learn")
    page.fits()
    page.tabbed()
    # without motion the points are there at once; and all of it goes on without the kernel
    page.restart()
    page.page.emulate_media(reduced_motion="reduce")
    slider.evaluate("s => { s.value = 0; s.dispatchEvent(new Event('input')); }")
    frames = """async c => {
        const pictures = new Set();
        for (let i = 0; i < 30; i++) pictures.add(c.toDataURL()), await new Promise(requestAnimationFrame);
        return pictures.size;
    }"""
    assert canvas.evaluate(frames) == 1
    page.silent(audio)
    page.page.mouse.click(*a_point(page, canvas)[1])
    page.playing(audio)


def test_labels_by_ear(opened):
    page = opened("by-ear.ipynb")
    out = page.output()
    table = page.root / "by-ear" / "index.csv"
    out.get_by_role("button", name="What to label next").click()
    out.get_by_text("10 clips to label next.").wait_for()
    out.get_by_role("list").get_by_role("button").first.click()
    page.playing(out.get_by_label("the selected clip"))
    out.get_by_text("This clip:").wait_for()
    name = out.get_by_label("label", exact=True)
    name.fill(SCRIPT)
    out.get_by_role("button", name="Label this clip").click()
    out.get_by_text(f"1 clip labelled {SCRIPT}.").wait_for()
    assert SCRIPT in table.read_text()
    name.fill("piano")
    out.get_by_role("button", name="Label all in the list (9)").click()
    out.get_by_text("9 clips labelled piano.").wait_for()
    assert table.read_text().count("piano") == 9
    out.get_by_role("button", name="Undo").click()
    out.get_by_text("9 clips set back.").wait_for()
    assert table.read_text().count("piano") == 0
    assert table.read_text().count(SCRIPT) == 1
    page.fits()
    page.tabbed()


def test_a_guess_and_the_laboratories(opened):
    page = opened("labs.ipynb")
    out = page.output()
    out.get_by_label(SCRIPT).check()
    out.get_by_text("No. No name is run.").wait_for()
    out.get_by_label("this").check()
    out.get_by_text("Right. Yes.").wait_for()
    for alt, slider in (("half width", "runs of each model"), ("probability", "margin")):
        picture = out.get_by_alt_text(re.compile(alt))
        before = picture.get_attribute("src")
        handle = out.locator(".widget-hslider", has_text=slider).get_by_role("slider")
        handle.focus()
        handle.press("ArrowRight")
        page.wait_until(f"e => e.isConnected === false || e.src !== {before!r}", picture)


def test_results_explorer(opened):
    page = opened("05_evaluation.ipynb")
    out = page.output()
    out.get_by_role("img", name=re.compile("^accuracies")).wait_for()
    assert not out.locator("audio").count()
    out.get_by_role("gridcell").filter(has_text=re.compile("[1-9]")).first.click()
    out.locator("audio").first.wait_for()
    page.keep("results_explorer")
    page.fits()
    page.tabbed()
    out.locator("audio").first.evaluate("a => a.play()")
    page.playing(out.locator("audio").first)


@pytest.mark.parametrize("n", [50, 200])
def test_a_matrix_of_many_classes(opened, n):
    page = opened(f"matrix-{n}.ipynb")
    out, words = page.output(), page.output().locator(".cola-cell-words")
    table, cells = out.get_by_role("grid"), out.locator("td")
    table.wait_for()
    assert cells.count() == n * n
    assert table.locator("td[style*=background]").count() == 2 * n
    # names: beside a matrix of 50 classes, and of the cell under the pointer always
    header = table.get_by_role("rowheader", name="class 007")
    assert header.is_visible() == (n == 50)
    cells.nth(7 * n + 6).hover()
    playwright.expect(words).to_have_text("class 007 called class 006: 1 clips")
    cells.nth(7 * n + 6).click()
    out.get_by_text("class 007, called class 006: 1 clips").wait_for()
    playwright.expect(out.locator("audio")).to_have_count(1)
    # by keyboard, to the last cell of the row above and back to its full one
    for key in ("ArrowUp", "End", "Home", *["ArrowRight"] * 6):
        page.page.keyboard.press(key)
    playwright.expect(words).to_have_text("class 006 called class 006: 3 clips")
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("Enter")
    out.get_by_text("class 006, called class 005: 1 clips").wait_for()
    # a press on an empty cell does nothing; the script stays a name
    cells.nth(6 * n).click()
    cells.first.click()
    out.get_by_text(f"{SCRIPT}, called {SCRIPT}: 3 clips").wait_for()
    page.tabbed()


def test_a_matrix_in_the_dark(opened):
    page = opened("matrix-50.ipynb")

    def take_theme(name):
        change = "theme => jupyterapp.commands.execute('apputils:change-theme', { theme })"
        page.page.evaluate(change, name)
        page.wait_until(f"() => document.body.dataset.jpThemeName === '{name}'")

    contrast = """e => {
        const light = (css) => { const [r, g, b] = css.match(/[\\d.]+/g).map((v) => (v / 255) ** 2.2);
                                 return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05; };
        const { color, backgroundColor } = getComputedStyle(e);
        const [a, b] = [light(color), light(backgroundColor)];
        return Math.max(a, b) / Math.min(a, b); }"""
    header = page.output().get_by_role("rowheader", name="class 007")
    try:
        for theme in ("JupyterLab Dark", "JupyterLab Light"):
            take_theme(theme)
            assert header.evaluate(contrast) > 4.5, theme
    finally:
        take_theme("JupyterLab Light")


def test_calculator(opened):
    page = opened("08_scaling_up.ipynb")
    out = page.output()
    costs = out.get_by_role("table")
    assert "106" not in costs.inner_text()
    out.get_by_role("button", name="fma_large").click()
    out.get_by_text("106,574").wait_for()
    large = costs.inner_text()
    out.locator(".widget-hslider:has(label:text-is('devices that train')) .noUi-handle").press("ArrowRight")
    playwright.expect(costs).not_to_have_text(large, use_inner_text=True)
    page.keep("calculator")
    page.fits()
    page.tabbed()
