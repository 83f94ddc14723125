"""Widgets of the notebooks, one call each; beside each are the functions that it shows.

A widget is imported at its first use, so that a notebook's first cell is quick.
"""

from importlib import import_module

_HOMES = {
    "calculator": "costs",
    "results_explorer": "explorer",
    "mel_laboratory": "laboratory",
    "Space": "maps",
    "embedding_map": "maps",
    "watch_it_learn": "learning",
    "labeller": "by_ear",
    "pair_player": "pairs",
    "umap_lab": "flatten",
    "training_panel": "panel",
    "guess": "guesses",
    "difficulty_lab": "difficulty",
    "power_lab": "consequences",
    "temperature_lab": "consequences",
}
__all__ = list(_HOMES)

# What a page without a kernel shows of a widget: {"html"} or {"map": its traits}. It is put into the executed
# notebook only while the variable is set, because it may be megabytes.
PAGE = "application/vnd.colalib.page+json"
KEEP_PAGES = "COLA_KEEP_PAGES"


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
