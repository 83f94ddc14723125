"""A notebook in a browser: opened, run, pressed, and all that goes wrong on the way.

Where there is no browser, whoever imports this is skipped, and the reason is told.
"""

import base64
import io
import os
import re
import shutil
import time
import warnings

import pytest
from helpers import SCREENSHOTS
from PIL import Image


def skip_all(reason: str) -> None:
    """Skip the tests that import this, and say why: pytest's summary shows warnings, but no reasons."""
    if os.environ.get("CI"):
        raise RuntimeError(f"{reason}, and CI must not pass without these tests")
    warnings.warn(f"the browser tests are skipped: {reason}", stacklevel=2)
    pytest.skip(reason, allow_module_level=True)


try:
    import playwright.sync_api as playwright
except ImportError:
    skip_all("playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
if BROWSER is None:
    skip_all("no Chromium or Chrome is installed")

PATIENCE = 5 * 60  # seconds; only a test that fails waits for so long, whatever else the machine does
playwright.expect.set_options(timeout=1000 * PATIENCE)


class Page:
    """A notebook, opened and run to its end, and all that went wrong on the way."""

    def __init__(self, browser, lab, name, place="lab/tree"):
        self.address, self.root = lab
        self.wrong, self.outside = [], []
        self.context = browser.new_context(viewport={"width": 1300, "height": 1000})
        self.context.set_default_timeout(1000 * PATIENCE)
        self.page = self.context.new_page()
        self.page.on("dialog", self.asked)
        self.page.on("pageerror", lambda e: self.wrong.append(f"page error: {e}"))
        self.page.on("request", lambda r: self.watch(r.url))
        self.page.on("requestfailed", lambda r: self.failed(r))
        self.page.on("response", lambda r: r.status >= 400 and self.refused(r))
        self.page.goto(f"{self.address}/{place}/{name}?token=course&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.run_all()

    def asked(self, dialog):
        if dialog.type != "beforeunload":  # that is the lab's, about what is not saved
            self.wrong.append(f"a script ran: {dialog.message}")
        dialog.accept()

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

    def run_all(self):
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
        idle = self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            idle.wait_for()
            found = self.page.evaluate(prompts)
            if all(re.search(r"\d", prompt) for prompt in found):
                if self.shown():
                    return
                # the page asked a kernel that was only coming up for its widgets, and waits for ever
                self.page.reload()
                self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
            # such a kernel drops cells, too, silently
            elif not any("*" in prompt for prompt in found):
                self.page.get_by_role("menuitem", name="Run", exact=True).click()
                self.page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
            time.sleep(1)
        raise AssertionError(f"the cells did not all run: {found}")

    def shown(self, seconds=30):
        """Return whether the last cell shows its widget, which may take a while."""
        shows = "e => e.innerText.trim() && !/Loading widget|Error displaying widget/.test(e.innerText)"
        try:
            self.page.wait_for_function(shows, arg=self.output().element_handle(), timeout=1000 * seconds)
            return True
        except playwright.TimeoutError:
            return False

    def output(self):
        """Return the output of the last cell."""
        return self.page.locator(".jp-CodeCell").last.locator(".jp-OutputArea")

    def silent(self, locator):
        """Stop a player and wind it back, so that `playing` sees what comes next."""
        locator.evaluate("a => { a.pause(); a.currentTime = 0; }")

    def wait_until(self, condition, locator=None):
        """Wait until a condition holds in the page, of an element if one is given."""
        self.page.wait_for_function(condition, arg=locator and locator.element_handle())

    def playing(self, locator):
        """Wait until the sound has moved on by itself."""
        self.wait_until("a => a.ended || (!a.paused && a.currentTime > 0)", locator)

    def restart(self, and_run=False):
        shown = self.output().locator(":scope > *").first.element_handle()
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        item = "^Restart Kernel and Run All Cells…" if and_run else "^Restart Kernel…"
        self.page.get_by_role("menuitem", name=re.compile(item)).click()
        with self.page.expect_response(re.compile("/restart")):  # the answer comes when it is done
            self.page.locator(".jp-Dialog button.jp-mod-warn, .jp-Dialog button.jp-mod-accept").last.click()
        if and_run:
            shown.wait_for_element_state("hidden")  # the output of before
            self.run_all()

    def fits(self, width=740):
        """Wait until nothing is cut off at the right, on half a screen with the file browser closed."""
        usual = self.page.viewport_size
        # a widget that keeps the keyboard for itself would keep this shortcut too
        self.page.evaluate("document.activeElement.blur()")
        self.page.keyboard.press("Control+b")
        self.page.set_viewport_size({"width": width, "height": 1000})
        beyond = """[...e.querySelectorAll("*")].filter(c => c.offsetParent
                    && c.getBoundingClientRect().right > e.getBoundingClientRect().right + 1)
                    .map(c => c.outerHTML.slice(0, 120))"""
        try:
            narrow = f"innerWidth === {width} && e.getBoundingClientRect().right <= innerWidth"
            self.wait_until(f"e => {narrow} && {beyond}.length === 0", self.output())
        except playwright.TimeoutError:
            raise AssertionError(f"cut off: {self.output().evaluate(f'e => {beyond}')}") from None
        self.page.set_viewport_size(usual)
        self.page.keyboard.press("Control+b")

    def tabbed(self):
        """Assert that Tab reaches every control of the output, in turn."""
        self.output().evaluate("""e => {
            const list = () => [...e.querySelectorAll("button, select, input, audio, canvas, [tabindex='0']")]
                .filter(c => !c.disabled && c.tabIndex >= 0 && c.checkVisibility());
            e.met = new Set();
            e.missed = () => list().filter(c => !e.met.has(c));
            list()[0].focus();
        }""")
        # anew at every press: sounds and pictures may still come
        for _ in range(300):
            if self.output().evaluate(
                "e => { e.met.add(document.activeElement); return !e.missed().length; }"
            ):
                return
            self.page.keyboard.press("Tab")
        missed = self.output().evaluate("e => e.missed().map(c => c.outerHTML.slice(0, 120))")
        raise AssertionError(f"Tab does not reach {missed}")

    def keep(self, name):
        """Save a picture of the widget for the README, without the lab around it, in 256 colours."""
        if SCREENSHOTS:
            usual = self.page.viewport_size
            self.page.set_viewport_size({"width": 1300, "height": 1800})
            self.wait_until("() => innerHeight === 1800")
            shot = Image.open(io.BytesIO(self.output().screenshot())).convert("RGB")
            os.makedirs(SCREENSHOTS, exist_ok=True)
            shot.quantize(256, dither=Image.Dither.NONE).save(f"{SCREENSHOTS}/{name}.png", optimize=True)
            self.page.set_viewport_size(usual)

    def close(self):
        self.context.close()
        assert self.wrong == [], self.wrong
        assert self.outside == []


def a_point(page: Page, canvas):
    """Return the canvas' box, and a place in the page where a clip lies under the pointer."""
    canvas.scroll_into_view_if_needed()
    page.wait_until(
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)", canvas
    )
    box = canvas.bounding_box()
    for x in range(20, int(box["width"]), 14):
        for y in range(20, int(box["height"]), 14):
            page.page.mouse.move(box["x"] + x, box["y"] + y)
            if page.output().get_by_role("tooltip").count():
                return box, (box["x"] + x, box["y"] + y)
    raise AssertionError("no clip under the pointer anywhere")


def drop(button, *files):
    """Drop files on a button, each by a drop of its own, at the same moment."""
    button.evaluate(
        """(button, files) => files.forEach(([name, data]) => {
             const moved = new DataTransfer();
             moved.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
             button.dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true }));
           })""",
        [[name, base64.b64encode(content).decode()] for name, content in files],
    )
