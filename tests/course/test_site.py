"""The site: what stands on its pages, and what is refused and never replaced."""

import re

import nbformat
import pytest
import soundfile
from site_helpers import SCRIPT, links_are_whole, listed, small_course, use
from widget_helpers import Tags

from colalib.course import markdown, running, site
from colalib.errors import UserError
from colalib.widgets import PAGE


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A small executed course."""
    use(tmp_path, monkeypatch)
    small_course(tmp_path)
    return tmp_path


def test_every_page_leads_only_to_what_is_there(course):
    out = site.build(out=course / "site")
    pages = sorted(out.rglob("*.html"))
    assert {"index.html", "01_sounds.html", "02_map.html", "results.html"} <= {page.name for page in pages}
    assert links_are_whole(out) > 30
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == listed(out) | {"site.json"}


def test_sounds_are_whole_mp3_files_stored_once(course, capsys):
    out = site.build(out=course / "site")
    html = (out / "01_sounds.html").read_text()
    players = [attributes for tag, attributes in Tags(html).tags if tag == "audio"]
    assert [player["aria-label"] for player in players] == [r"air: a tune \sum"] * 2
    assert len({player["src"] for player in players}) == 1
    sound = soundfile.info(out / players[0]["src"])
    assert sound.format == "MP3"
    assert sound.duration == pytest.approx(1.0, abs=0.1)
    assert len(list((out / "sounds").iterdir())) == 1 + 3 + 2, "player, quiz, and both maps the same two"
    assert "2 sounds of the maps could not be read" in capsys.readouterr().out


def test_a_notebook_shows_its_outputs_without_a_kernel(course):
    out = site.build(out=course / "site")
    html = (out / "01_sounds.html").read_text()
    page = Tags(html)
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert alts == ["a picture", "Figure: A recording, twice", "Widget: A recording, twice"]
    assert html.count("It moves in JupyterLab") == 1
    assert "loaded" in page.text
    assert "1%" not in page.text, "progress"
    assert "a warning" not in page.text
    assert "Right. Because." in page.text
    assert SCRIPT in page.text, "text, and no tag"
    assert 'href="02_map.html#a-map"' in html
    assert 'rel="next" href="02_map.html"' in html
    assert PAGE not in html
    second = (out / "02_map.html").read_text()
    frames = [attributes for tag, attributes in Tags(second).tags if tag == "iframe"]
    assert [frame["title"] for frame in frames] == ["Embedding map", "Watch it learn"]
    assert '"../sounds/' in (out / frames[0]["src"]).read_text()
    assert "<img src=x" not in second
    assert "You hear <em>one</em> sound." in (out / "index.html").read_text()


def test_formulas_are_drawn_here():
    drawn = markdown.formula(r"\frac{1}{2} \sum_i x_i")
    assert drawn.startswith('<svg class="math" role="img" aria-label="\\frac{1}{2} \\sum_i x_i"')
    assert len(re.findall("M", drawn)) >= 6, "an outline per letter"
    assert "<code>" in markdown.formula(r"\nosuchthing<b>")
    assert "<b>" not in markdown.formula(r"\nosuchthing<b>")
    assert markdown.render("`$x$` costs $x$").count("<svg") == 1
    assert '<span class="formula">' in markdown.render("$$x$$")


def test_headings_have_githubs_anchors():
    html = markdown.render("## What's `new`, in 2?\n\n## What's new in 2\n")
    assert 'id="whats-new-in-2"' in html
    assert 'id="whats-new-in-2-1"' in html


def copy_of(course, name="02_map"):
    return course / "runs" / "notebooks" / f"{name}.ipynb"


def missing(path):
    path.unlink()


def damaged(path):
    path.write_text('{"cells": 3')


def failed(path):
    notebook = nbformat.read(path, 4)
    notebook.cells[1].outputs = [
        nbformat.v4.new_output("error", ename="ValueError", evalue="no\nway", traceback=[])
    ]
    nbformat.write(notebook, path)


def interrupted(path):
    notebook = nbformat.read(path, 4)
    notebook.cells[1].execution_count = None
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, "run `make course` first"),
        (damaged, "damaged"),
        (failed, r"a cell failed \(ValueError: no\)"),
        (interrupted, "was not run to its end"),
    ],
)
def test_a_course_that_was_not_executed_is_refused(course, spoil, words):
    spoil(copy_of(course))
    with pytest.raises(UserError, match=words):
        site.build(out=course / "site")
    assert not (course / "site").exists()


def test_only_its_own_files_are_replaced(course):
    out = course / "site"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no site of this project"):
        site.build(out=out)
    (out / "mine.txt").unlink()
    (out / ".nojekyll").touch()
    site.build(out=out)
    before = listed(out)
    (out / "mine.txt").write_text("mine")
    (out / ".new-site-killed").mkdir()

    (course / "RESULTS.md").unlink()
    site.build(out=out)
    assert before - listed(out) >= {"results.html"}
    assert not (out / "results.html").exists()
    assert (out / "mine.txt").read_text() == "mine"
    assert (out / ".nojekyll").exists()
    assert not (out / ".new-site-killed").exists()

    (out / "results.html").write_text("mine")
    (course / "RESULTS.md").write_text("# Results\n")
    index = (out / "index.html").read_text()
    with pytest.raises(UserError, match=r"results\.html was not written by `make site`"):
        site.build(out=out)
    assert (out / "results.html").read_text() == "mine"
    assert (out / "index.html").read_text() == index


def test_a_list_of_files_elsewhere_deletes_nothing(course):
    out = site.build(out=course / "site")
    text = (out / "site.json").read_text()
    (out / "site.json").write_text(text.replace('"index.html"', '"index.html", "../RESULTS.md"'))
    site.build(out=out)
    assert (course / "RESULTS.md").exists()


def test_a_file_in_place_of_the_folder_is_refused(course):
    with pytest.raises(UserError, match="is a file: name a folder with --out"):
        site.build(out=course / "RESULTS.md")


def test_the_notebooks_in_the_project_get_no_pages(course):
    content = nbformat.read(copy_of(course), 4)
    kept = running.stripped(content).cells[1].outputs
    assert PAGE in content.cells[1].outputs[0].data
    assert not any(PAGE in output.data for output in kept)
