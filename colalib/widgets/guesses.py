"""A question to guess at before a cell is run: choices, and after the guess why it is right or wrong."""

from __future__ import annotations

from html import escape

import ipywidgets as w

from colalib.widgets import parts


class Question(w.VBox):
    """A question; `choices` maps each answer to what is said after it, and `right` is one of them.

    The guess is kept under `name`. Raises `ValueError` if `right` is none of the choices.
    """

    def __init__(self, name: str, text: str, choices: dict[str, str], right: str):
        if right not in choices:
            raise ValueError(f"{right!r} is none of the choices")
        super().__init__()
        self.text, self.answers, self.right = text, choices, right
        self.guess = w.RadioButtons(options=[*choices], value=None, layout={"width": "max-content"})
        self.said = w.HTML()
        self.guess.observe(self.say, "value")
        parts.persist("questions", {name: self.guess})
        self.children = [w.HTML(f"<b>Guess first.</b> {escape(text)}"), self.guess, self.said]

    def say(self, change) -> None:
        """Say whether the guess is right, and why."""
        if change["new"] is not None:
            self.said.value = self.verdict(change["new"])

    def verdict(self, choice: str) -> str:
        """Return as HTML whether a choice is right, and why."""
        word = "Right." if choice == self.right else "No."
        return f"<b>{word}</b> {escape(self.answers[choice])}"

    def _repr_mimebundle_(self, **kwargs):
        """Add the choices, with what is said of each folded: that is seen where widgets cannot run."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        choices = "".join(
            f"<details><summary>{escape(choice)}</summary>{self.verdict(choice)}</details>"
            for choice in self.answers
        )
        data["text/plain"] = f"Guess first. {self.text}"
        data["text/html"] = (
            f'<div class="cola-guess"><p><b>Guess first.</b> {escape(self.text)}</p>{choices}</div>'
        )
        return bundle
