"""The widgets as people use them: a real JupyterLab, a real browser, on the course at the size for
tests.
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from PIL import Image

from colalib.course import running
from colalib.training.runs import Run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
if BROWSER is None and os.environ.get("CI"):
    raise RuntimeError("no Chromium or Chrome is installed, and CI must not pass without these tests")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
PRELUDE = "corpus, store, encoder = course.corpus(), course.store(), course.encoder()"


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


def widget_notebook(source, to):
    """Write a notebook of a notebook's first code cell, its widgets, and the cells that these need."""
    content = nbformat.read(source, 4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    tagged = [c for c in code[1:] if {"needed", "widget"} & set(c.metadata.get("tags", []))]
    prelude = nbformat.v4.new_code_cell(PRELUDE + "\nfolder = course.supervised_folder(encoder)")
    cells = [code[0], prelude, *tagged]
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
    many = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(MANY)])
    nbformat.write(many, root / "many.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"COLA_PROFILE": "test", "COLA_RUNS": str(runs.parent), "COLA_DATA": str(root / "data")}
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
            env={**os.environ, **places, **home},
            cwd=root,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status?token=course", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (root / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield address, root
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        found = running.chromium.launch(executable_path=BROWSER, args=flags)
        yield found
        found.close()


class Page:
    """A notebook, opened and run to its end, and all that went wrong on the way."""

    def __init__(self, browser, lab, name, place="lab/tree"):
        self.address, self.root = lab
        self.wrong, self.outside = [], []
        self.context = browser.new_context(viewport={"width": 1300, "height": 1000})
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda e: self.wrong.append(f"page error: {e}"))
        self.page.on("request", lambda r: self.watch(r.url))
        self.page.on("requestfailed", lambda r: self.failed(r))
        self.page.on("response", lambda r: r.status >= 400 and self.refused(r))
        self.page.goto(f"{self.address}/{place}/{name}?token=course&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        self.run_all()

    def watch(self, url):
        if url.startswith("http") and not url.startswith(self.address):
            self.outside.append(url)

    def failed(self, request):
        if "ERR_ABORTED" not in (request.failure or ""):  # left before it had come
            self.wrong.append(f"failed: {request.url}: {request.failure}")

    def refused(self, response):
        # the lab asks for settings that are not there
        if "/api/" not in response.url and "/lab/api" not in response.url:
            self.wrong.append(f"{response.status}: {response.url}")

    def run_all(self, seconds=240):
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
        idle = self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            idle.wait_for(timeout=1000 * seconds)
            found = self.page.evaluate(prompts)
            if all(re.search(r"\d", prompt) for prompt in found):
                return
            # a kernel that is only coming up drops cells silently
            if not any("*" in prompt for prompt in found):
                self.page.get_by_role("menuitem", name="Run", exact=True).click()
                self.page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
            time.sleep(3)
        raise AssertionError(f"the cells did not all run: {found}")

    def output(self):
        """Return the output of the last cell."""
        return self.page.locator(".jp-CodeCell").last.locator(".jp-OutputArea")

    def silent(self, locator):
        """Stop a player and wind it back, so that `playing` sees what comes next."""
        locator.evaluate("a => { a.pause(); a.currentTime = 0; }")

    def playing(self, locator):
        """Return whether the sound moves on by itself, within 5 seconds."""
        for _ in range(50):
            if locator.evaluate("a => !a.paused && a.currentTime > 0"):
                return True
            time.sleep(0.1)
        return False

    def restart(self, and_run=False):
        shown = self.output().locator(":scope > *").first.element_handle()
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        item = "^Restart Kernel and Run All Cells…" if and_run else "^Restart Kernel…"
        self.page.get_by_role("menuitem", name=re.compile(item)).click()
        self.page.locator(".jp-Dialog button.jp-mod-warn, .jp-Dialog button.jp-mod-accept").last.click()
        time.sleep(3)
        if and_run:
            shown.wait_for_element_state("hidden", timeout=120_000)  # the output of before
            self.run_all()

    def fits(self, width=740):
        """Assert that nothing is cut off at the right, on half a screen with the file browser closed."""
        usual = self.page.viewport_size
        self.page.keyboard.press("Control+b")
        self.page.set_viewport_size({"width": width, "height": 1000})
        time.sleep(1)
        beyond = """e => [...e.querySelectorAll("*")].filter(c => c.offsetParent
                         && c.getBoundingClientRect().right > e.getBoundingClientRect().right + 1)
                         .map(c => c.outerHTML.slice(0, 120))"""
        assert self.output().evaluate(beyond) == []
        self.page.set_viewport_size(usual)
        self.page.keyboard.press("Control+b")

    def settled(self, seconds=30):
        """Wait until the output has not changed for two seconds; sounds may come after pictures."""
        end, seen, since = time.monotonic() + seconds, None, time.monotonic()
        while time.monotonic() < end and time.monotonic() - since < 2:
            now = self.output().evaluate("e => e.innerHTML.length + ' ' + e.querySelectorAll('*').length")
            if now != seen:
                seen, since = now, time.monotonic()
            time.sleep(0.2)

    def tabbed(self):
        """Assert that Tab reaches every control of the output, in turn."""
        self.settled()
        controls = """e => [...e.querySelectorAll("button, select, input, audio, canvas, [tabindex='0']")]
                           .filter(c => !c.disabled && c.tabIndex >= 0 && c.checkVisibility())"""
        self.output().evaluate(f"e => {{ e.all = ({controls})(e); e.met = new Set(); e.all[0].focus(); }}")
        note = "e => { e.met.add(document.activeElement); return e.all.every(c => e.met.has(c)); }"
        for _ in range(150):
            if self.output().evaluate(note):
                return
            self.page.keyboard.press("Tab")
        missed = "e => e.all.filter(c => !e.met.has(c)).map(c => c.outerHTML.slice(0, 120))"
        raise AssertionError(f"Tab does not reach {self.output().evaluate(missed)}")

    def keep(self, name):
        """Save a picture of the widget for the README, without the lab around it, in 256 colours."""
        folder = os.environ.get("COLA_SCREENSHOTS")
        if folder:
            usual = self.page.viewport_size
            self.page.set_viewport_size({"width": 1300, "height": 1800})
            time.sleep(1)
            shot = Image.open(io.BytesIO(self.output().screenshot())).convert("RGB")
            os.makedirs(folder, exist_ok=True)
            shot.quantize(256, dither=Image.Dither.NONE).save(f"{folder}/{name}.png", optimize=True)
            self.page.set_viewport_size(usual)
            time.sleep(1)

    def close(self):
        self.context.close()
        assert self.wrong == []
        assert self.outside == []


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
    first, before = picture.get_attribute("src"), numbers.inner_text()
    handle = out.locator(".widget-hslider:has(label:text-is('bands')) .noUi-handle")
    handle.focus()
    for _ in range(3):
        page.page.keyboard.press("ArrowLeft")
    playwright.expect(picture).not_to_have_attribute("src", first, timeout=30_000)
    playwright.expect(numbers).not_to_have_text(before, timeout=30_000, use_inner_text=True)
    out.get_by_text("working").wait_for(state="hidden")
    page.settled()
    page.keep("mel_laboratory")
    page.fits()
    page.tabbed()
    for name in ("original", "re-synthesis from the spectrogram"):
        player = out.get_by_label(name)
        player.evaluate("a => a.play()")
        assert page.playing(player)
    mine = next((page.root / "data").rglob("*.mp3"))
    out.get_by_role("button", name="your own file").evaluate(
        """(button, [name, data]) => {
             const moved = new DataTransfer();
             moved.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
             button.dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true }));
           }""",
        [mine.name, base64.b64encode(mine.read_bytes()).decode()],
    )
    playwright.expect(out.get_by_label("clip")).to_have_value(f"{mine.name} (yours)")
    kept = handle.get_attribute("aria-valuenow")
    page.restart(and_run=True)
    playwright.expect(handle).to_have_attribute("aria-valuenow", kept, timeout=60_000)


def test_quiz(opened):
    page = opened("02_segment_pairs.ipynb")
    out = page.output()
    assert out.locator("audio").count() == 5
    anchor = out.get_by_label("anchor", exact=True)
    anchor.evaluate("a => a.play()")
    assert page.playing(anchor)
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
    playwright.expect(picture).not_to_have_attribute("src", first, timeout=30_000)


def test_training_panel(opened):
    page = opened("03_contrastive_pretraining.ipynb")
    out = page.output()
    out.get_by_role("button", name="Train").click()
    out.get_by_text(re.compile(r"run-1: \d+%")).wait_for(timeout=90_000)
    picture = out.get_by_role("img", name=re.compile("^curves"))
    picture.wait_for()
    first = picture.get_attribute("src")
    playwright.expect(picture).not_to_have_attribute("src", first, timeout=60_000)
    out.get_by_role("button", name="Stop").click()
    out.get_by_text("run-1: stopped").wait_for(timeout=60_000)
    run = Run(page.root / "runs" / "test" / "run-1")
    assert run.exists
    assert not run.finished
    out.get_by_role("button", name="Resume").click()
    out.get_by_text("run-1: finished").wait_for(timeout=180_000)
    assert run.finished
    assert "run-1" in out.get_by_role("table").inner_text()
    out.get_by_role("img", name=re.compile("^similarity matrix")).wait_for()
    page.keep("training_panel")
    page.fits()
    page.tabbed()
    out.get_by_label("name of the run").fill("run-1")
    out.get_by_role("button", name="Train").click()
    out.get_by_role("alert").get_by_text("holds a run already").wait_for(timeout=60_000)


def a_point(page, canvas):
    """Return the canvas' box, and a place in the page where a clip lies under the pointer."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for x in range(20, int(box["width"]), 14):
        for y in range(20, int(box["height"]), 14):
            page.page.mouse.move(box["x"] + x, box["y"] + y)
            if page.output().get_by_role("tooltip").count():
                return box, (box["x"] + x, box["y"] + y)
    raise AssertionError("no clip under the pointer anywhere")


def test_a_map_of_5000_clips_stays_fluid_and_its_sounds_are_files(opened):
    page = opened("many.ipynb")
    box, found = a_point(page, page.output().get_by_role("application").first)
    page.page.mouse.click(*found)
    audio = page.output().get_by_label("the selected clip")
    assert page.playing(audio)
    assert "/files/data/scores" in audio.evaluate("a => a.src")
    latency = page.output().locator(".cola-map").get_attribute("data-latency")
    print(f"from click to sound, as a file: {latency} ms")
    page.page.evaluate("""() => {
        let last = performance.now();
        const next = (now) => { gaps.push(now - last); last = now; requestAnimationFrame(next); };
        window.gaps = [];
        requestAnimationFrame(next);
    }""")
    for i in range(120):
        page.page.mouse.move(
            box["x"] + box["width"] * (0.1 + i / 150), box["y"] + box["height"] * (0.4 + 0.01 * (i % 20))
        )
    gaps = sorted(page.page.evaluate("gaps.slice(2)"))
    middle, longest = gaps[len(gaps) // 2], gaps[-1]
    print(f"5,000 clips twice, the pointer moving: {middle:.0f} ms per frame, {longest:.0f} at most")


def test_notebook_7(opened):
    page = opened("06_embedding_map.ipynb", place="notebooks")
    page.page.mouse.click(*a_point(page, page.output().get_by_role("application").first)[1])
    assert page.playing(page.output().get_by_label("the selected clip"))
    # Notebook 7.6's, with any notebook
    own = ("reading 'schema')", "'filebrowser:open-path' not registered.")
    page.wrong = [wrong for wrong in page.wrong if not wrong.endswith(own)]


def test_embedding_map(opened):
    page = opened("06_embedding_map.ipynb")
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
    assert page.playing(audio)
    print(f"from click to sound: {out.locator('.cola-map').get_attribute('data-latency')} ms")
    assert status.inner_text()
    assert out.get_by_role("list").get_by_role("button").count() == 1 + 2 * 5
    canvas.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.page.keyboard.press(key)
    page.silent(audio)
    page.page.keyboard.press("Enter")
    assert page.playing(audio)
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
    assert page.playing(audio)
    out.get_by_role("button", name="clear").click()
    with page.page.expect_file_chooser() as chooser:
        out.get_by_role("button", name="your own file").click()
    mine = next((page.root / "data").rglob("*.mp3"))
    chooser.value.set_files(mine)
    out.get_by_text(f"{mine.name}: the star on the map").wait_for(timeout=60_000)
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
    assert page.playing(audio)
    assert out.locator(".cola-map").get_attribute("data-selected") == first


def test_results_explorer(opened):
    page = opened("05_evaluation.ipynb")
    out = page.output()
    out.get_by_role("img", name=re.compile("^accuracies")).wait_for()
    assert not out.locator("audio").count()
    cells = out.get_by_role("button", disabled=False).and_(out.get_by_title(re.compile(" called ")))
    cells.first.click()
    out.locator("audio").first.wait_for()
    page.keep("results_explorer")
    page.fits()
    page.tabbed()
    out.locator("audio").first.evaluate("a => a.play()")
    assert page.playing(out.locator("audio").first)


def test_calculator(opened):
    page = opened("07_scaling_up.ipynb")
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
