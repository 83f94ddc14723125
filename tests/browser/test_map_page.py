"""The map as a file: opened from the disk in a real browser, without a server and without a network."""

import csv
import io
import re

import numpy as np
import pytest
import soundfile
from helpers import tone
from jupyter_page import BROWSER, playwright

from colalib.widgets import maps, parts
from colalib.widgets.page import standalone

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
TITLES = [SCRIPT, "=1+1", 'a, "b" 🎻', "שלום", *(f"clip {i}" for i in range(4, 24))]
BESIDE, MISSING = 22, 23  # the sound of one is a file, that of the other is gone


def make_map(size=24, titles=TITLES):
    """Return the page of a map: clips on a ring, the first at the right, neighbours beside each other."""
    angles = 2 * np.pi * np.arange(size) / size
    points = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    sound = maps.to_mp3(tone(440, 2.0, 0))
    sounds = [b"" if i >= BESIDE else sound for i in range(size)]
    labels = np.array([SCRIPT if i % 2 else "even" for i in range(size)], dtype=object)
    links = ["" if i != BESIDE else "map-sounds/0.mp3" for i in range(size)]
    return maps.Map(
        size=size,
        names=["encoder: default"],
        titles=titles,
        ids=titles,
        paths=[f"-{i}.wav" for i in range(size)],
        columns={
            "label": maps.encode_column(labels),
            "third": maps.encode_column(np.array(["first", "second", "last"])[np.arange(size) * 3 // size]),
        },
        column="label",
        points=points.tobytes(),
        near=[np.stack([(np.arange(size) + step) % size for step in (1, -1)], 1).ravel().tolist()],
        k=2,
        previews=b"".join(sounds),
        offsets=np.cumsum([0, *map(len, sounds)]).tolist(),
        links=links,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page and the sound beside it."""
    root = tmp_path_factory.mktemp("page")
    (root / "map.html").write_text(standalone(make_map(), f"Map {SCRIPT}"), encoding="utf-8")
    (root / "map-sounds").mkdir()
    (root / "map-sounds" / "0.mp3").write_bytes(maps.to_mp3(tone(880, 2.0, 0)))
    return root


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        flags += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a microphone
        found = running.chromium.launch(executable_path=BROWSER, args=flags)
        yield found
        found.close()


@pytest.fixture
def opened(folder, browser):
    """Open the page; no script of a name may run, no request may leave, no error may be raised."""
    wrong, contexts = [], []

    def open_(file="map.html", **options):
        context = browser.new_context(viewport={"width": 1000, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("dialog", lambda dialog: (wrong.append(f"a script ran: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and wrong.append(request.url))
        context.route(re.compile("^https?:"), lambda route: route.abort())
        page.goto((folder / file).as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def drawn(page):
    return page.get_by_role("application").evaluate("c => c.toDataURL()")


def changed(page, before):
    """Wait until the map is drawn otherwise."""
    page.wait_for_function(
        "before => document.querySelector('.cola-view canvas').toDataURL() !== before", arg=before
    )


def press(page, name):
    """Go to a clip of the list and press it."""
    page.get_by_role("list").get_by_role("button", name=name, exact=False).first.click()


def test_a_press_sounds_and_shows_its_spectrogram(opened):
    page = opened()
    canvas, audio = page.get_by_role("application"), page.get_by_label("the selected clip")
    box = canvas.bounding_box()
    side = min(box["width"], box["height"]) / 2 - 14  # the ring's radius: the first clip lies at the right
    page.mouse.click(box["x"] + box["width"] / 2 + side, box["y"] + box["height"] / 2)
    playing = "a => a.ended || (!a.paused && a.currentTime > 0)"
    page.wait_for_function(playing, arg=audio.element_handle())
    assert page.locator(".cola-map").get_attribute("data-selected") == "0"
    assert SCRIPT in page.get_by_role("status").inner_text()
    assert SCRIPT in page.locator("h1").inner_text()
    picture = page.get_by_role("img", name="mel spectrogram of")
    picture.wait_for()
    rows = picture.evaluate("""c => {
        const { data } = c.getContext("2d").getImageData(100, 0, 1, c.height);
        return Array.from({ length: c.height }, (_, y) => data[4 * y] + data[4 * y + 1]); }""")
    # the tone of 440 Hz and its four overtones lie in the lower half, the axis is mel
    assert max(rows[32:]) > 200
    assert max(rows[:10]) < max(rows[32:]) - 100
    page.locator(".cola-head").wait_for()
    page.wait_for_function("() => parseFloat(document.querySelector('.cola-head').style.left) > 0")
    assert page.locator("img").count() == 0


def test_a_sound_beside_the_page_plays_and_a_missing_one_is_named(opened):
    page = opened()
    canvas, audio, status = (
        page.get_by_role("application"),
        page.get_by_label("the selected clip"),
        page.get_by_role("status"),
    )
    page.get_by_role("searchbox").fill("clip 22")
    page.get_by_role("searchbox").press("Enter")
    press(page, "clip 22")
    page.wait_for_function("a => a.ended || a.currentTime > 0", arg=audio.element_handle())
    page.get_by_text("no spectrogram: this sound is a file beside the page").wait_for()
    canvas.press("Escape")
    page.get_by_role("searchbox").fill("clip 23")
    page.get_by_role("searchbox").press("Enter")
    press(page, "clip 23")
    assert status.inner_text().endswith("its sound is missing")
    assert audio.get_attribute("src") is None


def test_filter_and_export(opened):
    page = opened()
    box, status = page.get_by_role("searchbox"), page.get_by_role("status")
    before = drawn(page)
    box.fill("EVEN third: first")
    changed(page, before)
    assert status.inner_text() == "4 of 24 clips match: Enter lists them"
    box.fill("nothing is called so")
    assert status.inner_text() == "0 of 24 clips match"
    box.fill("third: first")
    box.press("Enter")
    assert status.inner_text() == "8 clips selected"
    with page.expect_download() as download:
        page.get_by_role("button", name="save as CSV").click()
    text = download.value.path().read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["clip_id", "path", "label", "third"]
    assert [row[0] for row in rows[1:5]] == [SCRIPT, "'=1+1", 'a, "b" 🎻', "שלום"]
    assert rows[1][1] == "'-0.wav"
    assert len(rows) == 9


def test_zoom_and_move(opened):
    page = opened()
    canvas = page.get_by_role("application")
    box, whole = canvas.bounding_box(), drawn(page)

    def zoom():
        return float(canvas.get_attribute("data-zoom") or 1)

    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -100)  # nobody has pressed the map: the page would scroll
    assert zoom() == 1
    canvas.focus()
    page.mouse.wheel(0, -200)
    page.wait_for_function("() => document.querySelector('.cola-view canvas').dataset.zoom > 1")
    by_wheel = zoom()
    canvas.press("]")
    assert zoom() > by_wheel
    place = canvas.get_attribute("data-place")
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 130, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert canvas.get_attribute("data-place") != place
    assert page.get_by_role("button", name="clear").is_disabled(), "to move is not to choose"
    place = canvas.get_attribute("data-place")
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.up(button="right")
    assert canvas.get_attribute("data-place") != place
    place = canvas.get_attribute("data-place")
    canvas.press("Shift+ArrowLeft")
    assert canvas.get_attribute("data-place") != place
    canvas.press("0")
    page.mouse.move(0, 0)
    page.wait_for_function("w => document.querySelector('.cola-view canvas').toDataURL() === w", arg=whole)
    page.get_by_role("button", name="zoom in").click()
    assert zoom() == 1.5


def test_two_fingers_enlarge_the_map(opened):
    page = opened()
    canvas = page.get_by_role("application")
    canvas.evaluate("""c => {
        c.setPointerCapture = () => {};
        const { left, top } = c.getBoundingClientRect();
        const finger = (type, pointerId, x) => c.dispatchEvent(
            new PointerEvent(type, { pointerId, clientX: left + x, clientY: top + 100 }));
        finger("pointerdown", 1, 100), finger("pointerdown", 2, 200);
        finger("pointermove", 1, 50), finger("pointermove", 2, 250);
        finger("pointerup", 1, 50), finger("pointerup", 2, 250);
    }""")
    assert float(canvas.get_attribute("data-zoom")) == pytest.approx(2, abs=0.02)
    assert page.locator(".cola-map").get_attribute("data-selected") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_text_can_be_seen_in_both_themes(opened, scheme):
    page = opened(color_scheme=scheme)
    canvas = page.get_by_role("application")
    canvas.press("ArrowRight")  # chooses the first clip
    contrast = """e => {
        const light = (css) => { const [r, g, b] = css.match(/[\\d.]+/g).map((v) => (v / 255) ** 2.2);
                                 return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05; };
        const ground = getComputedStyle(document.body).backgroundColor;
        const [a, b] = [light(getComputedStyle(e).color), light(ground)];
        return Math.max(a, b) / Math.min(a, b); }"""
    for element in (canvas, page.get_by_role("status"), page.locator("h1"), page.locator(".cola-note")):
        assert element.evaluate(contrast) > 4.5
    # the ring of the chosen clip has the colour of text
    ink = canvas.evaluate("""c => {
        const ink = getComputedStyle(c).color.match(/\\d+/g).map(Number);
        const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height); let count = 0;
        const off = (i) => ink.slice(0, 3).reduce((sum, value, j) => sum + Math.abs(data[i + j] - value), 0);
        for (let i = 0; i < data.length; i += 4) count += off(i) < 30 && data[i + 3] > 200;
        return count; }""")
    assert ink > 40


def test_many_points_are_moved_by_the_frame(opened, folder):
    size = 10_000
    many = make_map(size, [f"clip {i}" for i in range(size)])
    (folder / "many.html").write_text(standalone(many, "many"), encoding="utf-8")
    page = opened("many.html")
    canvas = page.get_by_role("application")
    canvas.press("]")
    spent = canvas.evaluate("""async (c) => {
        c.setPointerCapture = () => {};
        const move = (type, x) => c.dispatchEvent(
            new PointerEvent(type, { pointerId: 1, clientX: x, clientY: 300, shiftKey: true }));
        const frame = () => new Promise(requestAnimationFrame), times = [];
        move("pointerdown", 300);
        for (let i = 0, before = await frame(); i < 40; i++) {
          move("pointermove", 300 + 3 * i);
          const now = await frame();
          times.push(now - before), (before = now);
        }
        move("pointerup", 420);
        return times.sort((a, b) => a - b)[20];
    }""")
    print(
        f"a frame of {size} points that move: {spent:.1f} ms (median), painted in "
        f"{canvas.get_attribute('data-cost')} ms"
    )
    assert canvas.get_attribute("data-place") != "0.0 0.0"


def test_a_recording_is_sent_as_a_file(opened, folder):
    html = standalone(parts.FileDrop(lambda name, load: None), "drop")
    html = html.replace("send() {}", "send: (...sent) => { window.sent = sent; }")
    (folder / "drop.html").write_text(html, encoding="utf-8")
    page = opened("drop.html", bypass_csp=True)
    page.get_by_role("button", name="record").click()
    page.get_by_role("button", name=re.compile(r"stop \([1-9]\d* s\)")).wait_for()
    page.get_by_role("button", name="stop").click()
    page.wait_for_function("() => window.sent")
    about, _, content = page.evaluate("() => [sent[0], 0, [...new Uint8Array(sent[2][0])]]")
    assert about["name"] == "recording 1.wav"
    assert about["size"] == len(content)
    wave, rate = soundfile.read(io.BytesIO(bytes(content)))
    assert rate == 16_000
    assert len(wave) > 8_000
    assert np.abs(wave).max() > 0.01  # the pretended microphone beeps
    page.get_by_role("button", name="record").wait_for()


def test_points_that_learn_glide_and_come_back(opened, folder):
    still = make_map()
    spaces = np.frombuffer(still.points, np.float32).reshape(1, 24, 2)
    still.points = np.concatenate([spaces, 0.5 * spaces, spaces[:, ::-1]]).tobytes()
    still.names, still.near = ["step 0", "step 1", "step 2"], 3 * still.near
    still.scores = [{"words": f"{i} of 9", "mean": i / 9, "low": 0, "high": 1} for i in range(3)]
    (folder / "learning.html").write_text(standalone(still, "learning"), encoding="utf-8")
    page = opened("learning.html", reduced_motion="reduce")
    slider, canvas = page.get_by_label("training step"), page.get_by_role("application")
    assert canvas.count() == 1
    before = drawn(page)
    slider.press("ArrowRight")
    changed(page, before)
    assert page.locator(".cola-map").get_attribute("data-moment") == "1"
    page.get_by_text("1 of 9").wait_for()
    slider.press("ArrowLeft")
    page.wait_for_function("w => document.querySelector('.cola-view canvas').toDataURL() === w", arg=before)
