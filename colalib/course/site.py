"""The executed course as a static site: a page per notebook, whose sounds, maps and quiz need no kernel.

Takes the executed notebooks of `course`, which hold all that the pages show (see `widgets.PAGE`), and the
project's documents. Nothing in the site asks another host for anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import tempfile
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import nbformat
import soundfile
from jinja2 import Environment, FileSystemLoader
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import MarkdownWithMath

from colalib.course import running
from colalib.course.markdown import Renderer, render
from colalib.errors import UserError, first_line
from colalib.files import home, read_json, runs_folder, write_json
from colalib.widgets import PAGE

PAGES = Path(__file__).with_name("pages")  # the template, the style and the script
MARK = "site.json"  # lists what this module wrote into a folder, so that nothing else is ever replaced
PART = ".new-site-"  # begins the name of the folder in which a site is made, before it is moved to its place
DOCUMENTS = {  # file of the checkout → its page, and what the links to it say
    "README.md": ("readme", "Read me"),
    "RESULTS.md": ("results", "Results"),
    "data/README.md": ("data", "Data"),
    "colalib/default/README.md": ("encoder", "The encoder"),
}
STILL = "<p class='cola-note'>A picture of a widget. It moves in JupyterLab: <code>make lab</code>.</p>"


class Page(NamedTuple):
    """A page's file, its title, and its first paragraph as HTML."""

    file: str
    title: str
    line: str


def build(runs: str | Path | None = None, out: str | Path = "site") -> Path:
    """Write the executed course as a static site to the folder `out`, and return the folder.

    `runs` is the folder of the executed course (default: `runs_folder()`). Raises `UserError` if a notebook
    was not executed to its end, or if `out` holds files that this function did not write.
    """
    from tqdm.auto import tqdm

    if runs is not None:
        os.environ["COLA_RUNS"] = str(Path(runs).resolve())
    out = Path(out)
    written = own_files(out)
    notebooks = executed_notebooks()
    out.mkdir(parents=True, exist_ok=True)
    for killed in out.glob(f"{PART}*"):
        shutil.rmtree(killed)
    with tempfile.TemporaryDirectory(prefix=PART, dir=out) as folder:
        site = Site(Path(folder), [page_of(name, content) for name, content in notebooks.items()])
        for number, (name, content) in enumerate(tqdm(notebooks.items(), desc="site", unit="page")):
            site.notebook(number, name, content)
        for document in site.documents:
            site.document(document)
        site.index()
        replace(out, Path(folder), written)
    if site.silent:
        print(f"{site.silent} sounds of the maps could not be read: run `make course` again to have them")
    return out


def executed_notebooks() -> dict[str, nbformat.NotebookNode]:
    """Return the executed notebooks by name, in order. Raises `UserError` if one was not run to its end."""
    notebooks = {}
    for notebook in running.notebooks():
        copy = runs_folder() / "notebooks" / notebook.name
        if not copy.is_file():
            raise UserError(f"{copy} is not there: run `make course` first, the site shows what it leaves")
        try:
            content = nbformat.read(copy, as_version=4)
        except (ValueError, nbformat.ValidationError) as error:
            raise UserError(f"{copy}: damaged ({first_line(error)}): run `make course` again") from None
        cells = [cell for cell in content.cells if cell.cell_type == "code" and cell.source.strip()]
        failed = [o for cell in cells for o in cell.outputs if o.output_type == "error"]
        if failed:
            said = first_line(f"{failed[0].ename}: {failed[0].evalue}")
            raise UserError(f"{copy}: a cell failed ({said}): run `make course` again")
        if not all(cell.execution_count for cell in cells):
            raise UserError(f"{copy} was not run to its end: run `make course` again")
        notebooks[notebook.stem] = content
    return notebooks


def page_of(name: str, content: nbformat.NotebookNode) -> Page:
    """Return file, title and first paragraph of a notebook."""
    title, _, rest = content.cells[0].source.partition("\n")
    return Page(f"{name}.html", title.lstrip("# "), render(rest.strip().partition("\n\n")[0]))


# -------------------------------------------------------------------------------------- the folder


def own_files(out: Path) -> set[str]:
    """Return the names of the files that an earlier call wrote into `out`.

    Raises `UserError` if `out` holds others, or is no folder. Hidden files (`.git`) may be there.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out")
    if not out.exists() or not [path for path in out.iterdir() if path.name[0] != "."]:
        return set()
    if not (out / MARK).is_file():
        raise UserError(
            f"{out} holds files, and no {MARK}: it is no site of this project. Choose another with --out"
        )
    inside = out.resolve()
    names = {str(name) for name in read_json(out / MARK, "a site (made by `make site`)").get("files", [])}
    return {name for name in names if (out / name).resolve().is_relative_to(inside)}


def replace(out: Path, new: Path, written: set[str]) -> None:
    """Move the files of `new` into `out`; of those `written` before, the ones that are gone are removed.

    Raises `UserError` if a file that is not in `written` is in the way.
    """
    names = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    if in_the_way := sorted(name for name in names - written if (out / name).exists()):
        raise UserError(f"{out / in_the_way[0]} was not written by `make site`: move it away")
    write_json(out / MARK, {"files": sorted(names | written)})  # interrupted from here on: still ours
    for name in sorted(names):
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(new / name, out / name)
    for name in written - names:
        (out / name).unlink(missing_ok=True)
    write_json(out / MARK, {"files": sorted(names)})


# --------------------------------------------------------------------------------------- the pages


class Site:
    """The pages in `folder` as they are written, and the files beside them, named by their content."""

    def __init__(self, folder: Path, notebooks: list[Page]):
        self.folder = folder
        self.notebooks = notebooks
        self.silent = 0  # clips of maps without a sound
        self.documents = [name for name in DOCUMENTS if (home() / name).is_file()]
        self.addresses = {home() / name: f"{DOCUMENTS[name][0]}.html" for name in self.documents}
        for page in notebooks:
            self.addresses[home() / "notebooks" / Path(page.file).with_suffix(".ipynb")] = page.file
        self.templates = Environment(loader=FileSystemLoader(PAGES), autoescape=True)
        self.links = [(f"{page}.html", words) for page, words in map(DOCUMENTS.get, self.documents)]
        for asset in ("site.css", "site.js"):
            shutil.copy(PAGES / asset, folder)
        with open(folder / "site.css", "a", encoding="utf-8") as style:
            style.write(code_colours())

    def write(self, file: str, title: str, body: str, headings: list = (), number: int | None = None) -> None:
        """Write a page around `body`; `number` is that of a notebook."""
        near = {}
        if number is not None:
            near = {"before": self.notebooks[number - 1] if number else None}
            near["after"] = next(iter(self.notebooks[number + 1 :]), None)
        html = self.templates.get_template("page.html").render(
            file=file,
            title=title,
            body=body,
            headings=headings,
            notebooks=self.notebooks,
            links=self.links,
            **near,
        )
        (self.folder / file).write_text(html, encoding="utf-8", newline="\n")

    def keep(self, kind: str, suffix: str, content: bytes) -> str:
        """Keep a file in the folder `kind` under a name made of its content; return its address."""
        name = f"{kind}/{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
        (self.folder / kind).mkdir(exist_ok=True)
        (self.folder / name).write_bytes(content)
        return name

    def link(self, address: str, base: Path) -> str:
        """Return where the site has what `address` means in a text of the folder `base`.

        Pages of the course become pages of the site, other files are copied. What is not in the checkout, or
        is elsewhere in the web, stays as it is.
        """
        path, hash, anchor = address.partition("#")
        file = Path(os.path.normpath(base / unquote(path)))
        if not path or re.match(r"[\w+.-]+:|//", path) or not file.is_relative_to(home()):
            return address
        if file in self.addresses:
            return self.addresses[file] + hash + anchor
        if file.is_file():
            # a browser shows a text, and would download what it does not know; nbconvert strips "files/"
            known = file.suffix in (".png", ".svg", ".jpg")
            return self.keep("extras", file.suffix if known else ".txt", file.read_bytes())
        return address

    def document(self, name: str) -> None:
        """Write the page of a document."""
        file = home() / name
        page, title = DOCUMENTS[name]
        body = render(file.read_text(encoding="utf-8"), lambda address: self.link(address, file.parent))
        self.write(f"{page}.html", title, f'<div class="rendered_html">{body}</div>')

    def index(self) -> None:
        """Write the first page: the map of the course."""
        picture = self.link("pictures/cola.svg", home() / "notebooks")
        index = self.templates.get_template("index.html")
        body = index.render(notebooks=self.notebooks, links=self.links, picture=picture)
        self.write("index.html", "COLA, the course", body)

    def notebook(self, number: int, name: str, content: nbformat.NotebookNode) -> None:
        """Write the page of an executed notebook."""
        heading = ""
        for cell in content.cells:
            if cell.cell_type == "markdown":
                heading = (re.findall(r"^#+ (.*)", cell.source, flags=re.M) or [heading])[-1]
            before = ""
            for output in cell.get("outputs", []):
                self.prepare(output, heading, before)
                before = output.get("text", "").strip().rpartition("\n")[2] or before
        renderer = Renderer(lambda address: self.link(address, home() / "notebooks"))
        exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
        exporter.register_filter(
            "markdown2html", lambda text: MarkdownWithMath(renderer=renderer).render(text)
        )
        body, _ = exporter.from_notebook_node(running.stripped(content))  # without progress bars and warnings
        headings = [(anchor, text) for level, anchor, text in renderer.headings if level == 2]
        self.write(f"{name}.html", self.notebooks[number].title, body, headings, number)

    def prepare(self, output: nbformat.NotebookNode, heading: str, before: str) -> None:
        """Give an output the HTML that the page shows of it.

        Its figure and its sounds become files. They are named after the `heading` above, and after the line
        that was printed `before`.
        """
        data = output.get("data", {})
        kept = data.get(PAGE, {})
        if "map" in kept:
            html = self.map_frame(kept["map"])
        elif "html" in kept:
            html = self.with_files(kept["html"], before or heading)
        elif "image/png" in data:
            alt = f"{'Widget' if running.WIDGET in data else 'Figure'}: {heading}"
            picture = f'<img alt="{escape(alt)}" src="data:image/png;base64,{data["image/png"]}">'
            html = self.with_files(picture, "") + STILL * (running.WIDGET in data)
        elif "text/html" in data:
            html = self.with_files("".join(data["text/html"]), before or heading)
        else:
            return
        data.clear()
        data["text/html"] = html

    def with_files(self, html: str, label: str) -> str:
        """Return HTML whose sounds and pictures are files of the site; players without a name get `label`."""

        def file(match: re.Match) -> str:
            content = base64.b64decode(match[2])
            return f'src="{self.sound(content) if match[1] == "audio" else self.picture(content)}"'

        html = re.sub(r'src="data:(audio|image)/[\w.+-]+;base64,([^"]*)"', file, html)
        begun = f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        player = r'<audio[^>]*>\s*<source (src="[^"]*")[^>]*>.*?</audio>'
        html = re.sub(player, lambda match: f"{begun}{match[1]}></audio>", html, flags=re.S)
        return html.replace('preload="auto"', 'preload="metadata"')

    def sound(self, content: bytes) -> str:
        """Keep a sound as MP3, whole; return its address."""
        wave, rate = soundfile.read(io.BytesIO(content))
        file = io.BytesIO()
        try:
            soundfile.write(file, wave, rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.5)
        except soundfile.LibsndfileError:  # a sample rate that MP3 does not have
            return self.keep("sounds", ".wav", content)
        return self.keep("sounds", ".mp3", file.getvalue())

    def picture(self, content: bytes) -> str:
        """Keep a figure (PNG) with 256 colours; return its address."""
        small = running.small_png(base64.b64encode(content).decode())
        return self.keep("figures", ".png", base64.b64decode(small))

    def map_frame(self, packed: dict) -> str:
        """Write a map as a page of its own, its sounds beside it; return the frame that shows it."""
        from colalib.data.audio import previews
        from colalib.widgets.maps import Map
        from colalib.widgets.page import standalone

        view = Map.unpacked(packed)
        if view.links:
            paths = [home() / unquote(link.removeprefix("files/")) for link in view.links]
            sounds = [*previews((path, 0.0) for path in paths)]
        else:
            sounds = [view.previews[a:b] for a, b in zip(view.offsets, view.offsets[1:])]
        self.silent += sounds.count(b"")
        view.links = [f"../{self.keep('sounds', '.mp3', sound)}" if sound else "" for sound in sounds]
        view.previews, view.offsets = b"", []
        title = "Watch it learn" if view.scores else "Embedding map"
        file = self.keep("widgets", ".html", standalone(view, title).encode())
        return (
            f'<iframe class="cola-frame" title="{title}" src="{file}"></iframe>'
            f'<p class="cola-note"><a href="{file}">{title}, on a page of its own</a></p>'
        )


def code_colours() -> str:
    """Return the style of highlighted code, for a light and a dark page."""
    from pygments.formatters import HtmlFormatter

    def rules(style: str) -> str:
        lines = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
        return "\n".join(line for line in lines if line.startswith(".highlight ."))

    return f"{rules('default')}\n@media (prefers-color-scheme: dark) {{\n{rules('github-dark')}\n}}\n"
