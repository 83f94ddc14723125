"""The page of an audit: one HTML file in which the first findings of each kind are read and heard."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

import pandas as pd

from colalib.collection.audit import KINDS, LEAD, Audit
from colalib.data.audio import previews
from colalib.data.tables import write_table
from colalib.files import atomic, check_ours, check_writable

SHOWN = 25  # findings per kind with their sound: up to 1.5 MB of previews per kind
GENERATOR = '<meta name="generator" content="colalib audit">'  # tells our page from others

STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #666; --card: #f6f6f6; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #aaa; --card: #222; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; text-transform: capitalize; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; } p, ol { margin: .5rem 0; }
ol { list-style: none; padding: 0; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem;
  margin: .6rem 0; }
.soft { color: var(--soft); } .name { font-weight: 600; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); }
.pair { gap: .3rem 1.5rem; }
audio { width: 100%; height: 36px; margin-top: .2rem; }
"""


def check_audit_folder(out: Path) -> None:
    """Raise `UserError` if the folder `out` cannot take findings: call this before a long computation."""
    check_writable(out)
    check_ours(out / "findings.csv", b"kind,rank,score,clip_id,")
    check_ours(out / "findings.html", GENERATOR.encode())


def write_audit(audit: Audit, out: Path) -> None:
    """Write findings.csv and findings.html into the folder `out`; raises `UserError` as `check_audit_folder`.

    The page holds an MP3 of up to 6 s for each clip of the first 25 findings of each kind; the table has all.
    """
    check_audit_folder(out)
    page = make_page(audit)
    write_table(out / "findings.csv", audit.findings)
    with atomic(out / "findings.html", "w") as file:
        file.write(page)


def make_page(audit: Audit) -> str:
    """Return the page as HTML. All names, labels and words are escaped."""
    shown = audit.findings[audit.findings["rank"] <= SHOWN]
    sounds = load_sounds(audit, shown)
    counts = audit.counts()
    links = "".join(
        f'<a href="#{kind.replace(" ", "-")}">{kind}: {count}</a>' if count else f"<span>{kind}: none</span>"
        for kind, count in counts.items()
    )
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in audit.notes)
    sections = "".join(
        section(kind, count, shown[shown["kind"] == kind], sounds) for kind, count in counts.items() if count
    )
    title = f"Audit of {escape(audit.name)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'{GENERATOR}<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; media-src data:\">"
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>"
        f"<p>{audit.clips:,} clips. A finding is a place to listen, not a verdict.</p>"
        f"<nav>{links}</nav>{notes}{sections}</body></html>\n"
    )


def section(kind: str, count: int, findings: pd.DataFrame, sounds: dict) -> str:
    """Return the part of the page about one kind of finding."""
    items = "".join(item(finding, sounds) for finding in findings.itertuples())
    rest = (
        f'<p class="soft">{count - len(findings)} more in findings.csv</p>' if count > len(findings) else ""
    )
    return (
        f'\n<h2 id="{kind.replace(" ", "-")}">{kind} <span class="soft">{count}</span></h2>'
        f"<p>{escape(KINDS[kind])}</p><ol>{items}</ol>{rest}"
    )


def item(finding, sounds: dict) -> str:
    """Return one finding: its words, and the clips with their players."""
    clips = [(finding.clip_id, finding.path, finding.second)]
    if finding.other_path:
        clips.append((finding.other, finding.other_path, finding.other_second))
    players = "".join(
        f'<div><div class="name" dir="auto">{escape(name)}</div>'
        f"{player(name, sounds.get(place(path, second)))}</div>"
        for name, path, second in clips
    )
    return (
        f'\n<li><div><span class="soft">{finding.rank}, score {finding.score:.2f}:</span> '
        f'{escape(finding.words)}</div><div class="pair">{players}</div></li>'
    )


def player(name: str, sound: bytes | None) -> str:
    """Return an audio player as HTML; it plays nothing by itself."""
    if not sound:
        return '<span class="soft">no sound: the recording cannot be read</span>'
    data = base64.b64encode(sound).decode()
    source = f"data:audio/mpeg;base64,{data}"
    return f'<audio controls preload="none" aria-label="{escape(name)}" src="{source}"></audio>'


def place(path: str, second: float) -> tuple[str, float]:
    """Return a file and the second from which it is heard."""
    return path, 0.0 if pd.isna(second) else max(second - LEAD, 0.0)


def load_sounds(audit: Audit, findings: pd.DataFrame) -> dict[tuple[str, float], bytes]:
    """Return the previews of all clips of some findings, by file and second."""
    if audit.audio is None:
        return {}
    places = {place(f.path, f.second) for f in findings.itertuples()}
    places |= {place(f.other_path, f.other_second) for f in findings.itertuples() if f.other_path}
    places = sorted(places)
    root = Path(audit.audio).absolute()
    return dict(zip(places, [*previews((root / path, second) for path, second in places)]))
