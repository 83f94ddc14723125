"""Widgets of the notebooks, one call each. Beside each widget are the functions that it shows, which work
without it.
"""

from colalib.widgets.calculator import calculator
from colalib.widgets.explorer import results_explorer
from colalib.widgets.laboratory import mel_laboratory
from colalib.widgets.maps import Space, embedding_map
from colalib.widgets.pairs import pair_player
from colalib.widgets.panel import training_panel

__all__ = [
    "Space",
    "calculator",
    "embedding_map",
    "mel_laboratory",
    "pair_player",
    "results_explorer",
    "training_panel",
]
