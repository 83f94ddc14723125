"""The site in a browser: from a file and from a server, it is heard and answered, and asks no other host."""

import functools
import http.server
import threading

import pytest
from jupyter_page import BROWSER, PATIENCE, playwright
from site_helpers import small_course, use

from colalib.course import site


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A small site."""
    root = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        use(root, patch)
        small_course(root)
        return site.build(out=root / "site")


@pytest.fixture(params=["file", "server"])
def address(request, out):
    """Where the site begins: on the disk, or at a server."""
    if request.param == "file":
        yield out.as_uri()
        return
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=out)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(address):
    """A narrow window; at the end nothing may have failed or been asked of another host."""
    wrong = []
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        browser = running.chromium.launch(executable_path=BROWSER, args=flags)
        page = browser.new_page(viewport={"width": 400, "height": 900}, color_scheme="dark")
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or wrong.append(r.url))
        page.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status} {r.url}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a script ran"), dialog.dismiss()))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        yield page
        browser.close()
    assert wrong == []


def play(audio):
    """Play a sound until it is heard."""
    audio.evaluate("a => a.play()")
    audio.page.wait_for_function("a => a.currentTime > 0", arg=audio.element_handle())


def test_it_is_read_heard_and_answered(page, address):
    page.goto(f"{address}/index.html")
    page.get_by_role("link", name="1 Sounds").last.click()
    play(page.get_by_label("air: a tune").first)
    page.get_by_text("this", exact=True).focus()
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_text("Because.")).to_be_visible()
    page.get_by_role("link", name="2 A map →").click()
    quiz = page.locator(".cola-quiz")
    play(quiz.locator("audio").first)
    quiz.locator("summary").first.click()
    playwright.expect(quiz.locator(".cola-score")).to_have_text("Right so far: you 0 of 1, default 0 of 1")
    quiz.locator("summary").last.click()
    playwright.expect(quiz.get_by_text("Right.", exact=True)).to_be_visible()
    playwright.expect(quiz.locator(".cola-score")).to_have_text("Right so far: you 0 of 1, default 0 of 1")
    assert page.evaluate("document.documentElement.scrollWidth") == 400, "nothing sticks out"


def test_maps_are_pressed_and_heard(page, address):
    page.goto(f"{address}/02_map.html")
    for title in ("Embedding map", "Watch it learn"):
        frame = page.frame_locator(f"iframe[title='{title}']")
        frame.locator("canvas").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        audio = frame.locator("audio")
        audio.evaluate("a => new Promise(done => a.currentTime ? done() : a.ontimeupdate = done)")
    frame.get_by_role("slider", name="training step").press("ArrowRight")
    playwright.expect(frame.get_by_text("step 1", exact=True).first).to_be_visible()
