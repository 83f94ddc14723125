"""Widgets of the notebooks, one call each; beside each are the functions that it shows.

A widget is imported at its first use, so that a notebook's first cell is quick.
"""

from importlib import import_module

_HOMES = {  # name in notebooks → module and class, or function
    "calculator": "costs.Calculator",
    "results_explorer": "explorer.ResultsExplorer",
    "mel_laboratory": "laboratory.MelLaboratory",
    "Space": "maps.Space",
    "embedding_map": "maps.EmbeddingMap",
    "watch_it_learn": "learning.WatchItLearn",
    "labeller": "by_ear.Labeller",
    "pair_player": "pairs.PairPlayer",
    "umap_lab": "flatten.UmapLab",
    "training_panel": "panel.TrainingPanel",
    "guess": "guesses.Question",
    "difficulty_lab": "difficulty.difficulty_lab",
    "power_lab": "consequences.power_lab",
    "temperature_lab": "consequences.temperature_lab",
}
__all__ = list(_HOMES)

# What a page without a kernel shows of a widget: {"html"} or {"map": its traits}. It is put into the executed
# notebook only while the variable is set, because it may be megabytes.
PAGE = "application/vnd.colalib.page+json"
KEEP_PAGES = "COLA_KEEP_PAGES"


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
