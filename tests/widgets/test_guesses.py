"""A question is answered, explained, kept, and readable where widgets cannot run."""

import pytest

from colalib import widgets
from colalib.course.running import stripped

CHOICES = {"louder": "A gain <b>only</b> shifts.", "higher": "Yes: mel bands shift."}


def make():
    return widgets.guess("q1", "What moves?", CHOICES, "higher")


def test_each_guess_is_explained_and_kept():
    shown = make()
    assert shown.said.value == ""
    shown.guess.value = "louder"
    assert shown.said.value == "<b>No.</b> A gain &lt;b&gt;only&lt;/b&gt; shifts."
    shown.guess.value = "higher"
    assert shown.said.value.startswith("<b>Right.</b>")
    assert make().guess.value == "higher"
    assert make().said.value.startswith("<b>Right.</b>")


def test_it_is_read_where_widgets_cannot_run():
    import nbformat

    bundle = make()._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "What moves?" in data["text/html"]
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=dict(data))])
    kept = stripped(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs[0]
    assert "<details>" in kept["data"]["text/html"]
    assert not [kind for kind in kept["data"] if "widget" in kind]


def test_the_right_answer_must_be_a_choice():
    with pytest.raises(ValueError, match="none of the choices"):
        widgets.guess("q", "?", CHOICES, "lower")
