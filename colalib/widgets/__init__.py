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
    "pair_player": "pairs",
    "training_panel": "panel",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
