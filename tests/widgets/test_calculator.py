"""The calculator, and the pictures that stand in for all widgets."""

import base64

import matplotlib.pyplot as plt

from colalib import widgets
from colalib.training.cost import CORPORA, Constants
from colalib.widgets.choices import change_choice

# -------------------------------------------------------------------------------------- calculator

MEASURED = [
    Constants("b0-small", "cpu", pairs_per_s=100, weights_mb=10, segment_mb=5, prepare_s=0.01),
    Constants("b0", "cpu", pairs_per_s=20, weights_mb=60, segment_mb=20, prepare_s=0.01),
]


def test_the_calculator_follows_what_is_chosen():
    shown = widgets.calculator(MEASURED)
    assert "8,000" in shown.costs.value
    assert shown.sliders["clips"].layout.display == "none"
    before = shown.costs.value
    shown.sliders["devices"].value = 8
    assert shown.costs.value != before
    shown.corpus.value = "other"
    assert shown.sliders["clips"].layout.display == ""
    assert shown.project() == {
        "clips": 10_000,
        "seconds": 30,
        "epochs": 100,
        "batch": 1024,
        "cores": 2,
        "devices": 8,
        "speed": 1,
        "chunk": 0,
    }
    change_choice("calculator", lambda settings: settings | {"arch": "b0"})
    again = widgets.calculator(MEASURED)
    assert again.corpus.value == "other"
    assert again.arch.value == "b0"
    assert again.corpus.options == (*CORPORA, "other")


def test_where_widgets_cannot_run_a_picture_stands(corpus, mel_store, predictions, space, folder, tmp_path):
    plt.close("all")
    every = [
        widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))}),
        widgets.pair_player(corpus, mel_store),
        widgets.training_panel([mel_store.path], tmp_path),
        widgets.results_explorer(corpus, predictions),
        widgets.embedding_map(corpus, mel_store, {"a": space}),
        widgets.calculator(MEASURED),
    ]
    for shown in every:
        bundle = shown._repr_mimebundle_()
        assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
        assert "application/vnd.jupyter.widget-view+json" in bundle
    assert not plt.get_fignums(), "a figure that stays open would be shown a second time"
