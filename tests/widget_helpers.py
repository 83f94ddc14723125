"""Helpers of the widget tests: waiting, dropping files, and reading what is shown."""

import json
import time
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets as w

MANY_STEPS = 1_000_000  # of a training that a test stops: no machine comes to their end


def wait(condition, minutes=15):
    """Wait until `condition()` holds. Only a test that hangs waits for so long."""
    end = time.monotonic() + 60 * minutes
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def shorten(run: Path, steps: int) -> None:
    """Let a stopped run end after `steps` steps, as if it had been begun so."""
    config = json.loads((run / "config.json").read_text())
    config["config"]["steps"] = steps
    (run / "config.json").write_text(json.dumps(config))
    record = run.with_name(f"{run.name}.job.json")
    if record.exists():
        record.write_text(record.read_text().replace(f'"{MANY_STEPS}"', f'"{steps}"'))


def send(drop, name, content, start=0, size=None, upload=1, **more):
    """Send a slice of a file to a drop button, as the page does."""
    size = len(content) if size is None else size
    message = {"id": upload, "name": name, "start": start, "size": size, **more}
    drop._handle_custom_msg(message, [memoryview(content)])


def press(matrix, label, predicted):
    """Press a cell of a confusion matrix, as the page does."""
    matrix._handle_custom_msg({"label": label, "predicted": predicted}, [])


def parts_of(widget) -> list[w.Widget]:
    """Return a widget and all that lie in it."""
    below = [part for child in getattr(widget, "children", ()) for part in parts_of(child)]
    return [widget, *below]


def html_of(widget) -> str:
    """Return all the HTML that a widget and its parts show."""
    return "\n".join(part.value for part in parts_of(widget) if isinstance(part, w.HTML))


class Tags(HTMLParser):
    """Collects the tags of HTML with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data
