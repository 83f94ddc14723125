"""The pair player's quiz for a page without a kernel. Its questions do not change, and each answer is folded.

Takes cards as HTML, and who answered what. A page's script may count the score.
"""

from __future__ import annotations

import json
from html import escape

QUESTIONS = 8


def question_html(
    number: int, cards: list[str], origins: list[str], answer: int, chosen: dict[str, int]
) -> str:
    """Return a question as HTML.

    `cards`: HTML of the anchor and of each candidate. `origins`: where each candidate comes from, in words.
    `answer`: index of the positive among the candidates. `chosen`: encoder → the candidate that it chose.
    """
    others = "".join(f" {name} chose candidate {candidate + 1}." for name, candidate in chosen.items())
    columns = [f"<div>{cards[0]}</div>"]
    for i, (card, origin) in enumerate(zip(cards[1:], origins)):
        verdict = "Right." if i == answer else f"No, it is candidate {answer + 1}."
        columns.append(
            f'<div>{card}<details data-right="{int(i == answer)}"><summary>this one</summary>'
            f"<b>{verdict}</b> This is {escape(origin)}.{escape(others)}</details></div>"
        )
    right = escape(json.dumps({name: candidate == answer for name, candidate in chosen.items()}))
    return (
        f'<section class="cola-question" data-others="{right}"><p>Question {number} of {QUESTIONS}</p>'
        f'<div class="cola-cards">{"".join(columns)}</div></section>'
    )


def quiz_html(questions: list[str]) -> str:
    """Return the quiz as HTML, with a place for the score."""
    return (
        '<div class="cola-quiz"><p><b>Which candidate comes from the anchor\'s clip?</b> Listen, then press '
        f'"this one".</p>{"".join(questions)}<p class="cola-score" role="status"></p></div>'
    )
