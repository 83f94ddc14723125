"""What can be turned and heard in the notebooks: one call a widget, each a thin face on functions
that work without it.
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
