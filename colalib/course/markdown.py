"""Markdown as HTML for the site: formulas are drawn, headings get GitHub's anchors, links lead to its pages.

Takes the Markdown of notebooks and documents; `site` puts the HTML into pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape, unescape

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

SIZE = 16  # of a formula's letters in points of its own; drawn at the size of the text around it


class Renderer(IPythonRenderer):
    """Renders one page. `link` turns an address into the site's; `headings` collects those that it met."""

    def __init__(self, link: Callable[[str], str]):
        super().__init__(escape=False)
        self.address = link
        self.headings: list[tuple[int, str, str]] = []  # level, anchor, HTML

    def heading(self, text: str, level: int, **attrs) -> str:
        """Return a heading with the anchor that GitHub gives it."""
        words = re.sub(r"[^\w\- ]", "", unescape(re.sub("<[^>]+>", "", text))).strip().lower()
        anchor = base = words.replace(" ", "-")
        taken = {name for _, name, _ in self.headings}
        number = 0
        while anchor in taken:
            number += 1
            anchor = f"{base}-{number}"
        self.headings.append((level, anchor, text))
        return f'<h{level} id="{escape(anchor)}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Return a link."""
        return super().link(text, self.address(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """Return a picture."""
        return super().image(text, self.address(url), title)

    def block_html(self, html: str) -> str:
        """Return HTML that stands in the Markdown."""
        return super().block_html(self._with_addresses(html))

    def inline_html(self, html: str) -> str:
        """Return HTML that stands in a line of the Markdown."""
        return super().inline_html(self._with_addresses(html))

    def _with_addresses(self, html: str) -> str:
        pattern = r'\b(src|href)="([^"]*)"'
        return re.sub(pattern, lambda m: f'{m[1]}="{escape(self.address(unescape(m[2])))}"', html)

    def inline_math(self, body: str) -> str:
        """Return a formula within a line."""
        return formula(body)

    def block_math(self, body: str) -> str:
        """Return a formula on a line of its own."""
        return f'<span class="formula">{formula(body)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        """Return an environment, which matplotlib cannot draw, as its source."""
        return f"<code>{super().latex_environment(name, body)}</code>"


def render(text: str, link: Callable[[str], str] = str) -> str:
    """Return Markdown as HTML; `link` turns each address into the site's."""
    return MarkdownWithMath(renderer=Renderer(link)).render(text)


def formula(tex: str) -> str:
    """Return a formula in LaTeX's math as SVG, in the colour of the text and on its baseline.

    A screen reader reads the LaTeX. What matplotlib cannot draw is returned as code.
    """
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath

    tex = " ".join(tex.split())
    try:
        path = TextPath((0, 0), f"${tex}$", size=SIZE)
    except ValueError:
        return f"<code>{escape(tex)}</code>"
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    strokes = "".join(
        "Z" if code == Path.CLOSEPOLY else letters[code] + " ".join(f"{number:.2f}" for number in points)
        for points, code in path.iter_segments(simplify=False)
    )
    box = path.get_extents()
    width, height, depth = box.width + 1, box.height + 1, box.y0 - 0.5  # half a point of room on every side
    return (
        f'<svg class="math" role="img" aria-label="{escape(tex)}" viewBox="{box.x0 - 0.5:.2f} '
        f'{-box.y1 - 0.5:.2f} {width:.2f} {height:.2f}" style="width:{width / SIZE:.3f}em;'
        f'height:{height / SIZE:.3f}em;vertical-align:{depth / SIZE:.3f}em">'
        f'<path transform="scale(1,-1)" d="{strokes}"/></svg>'
    )
