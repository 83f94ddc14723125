"""Figures show the numbers that they are given, each model in its own colour."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist

from colalib.data.audio import MelConfig, log_mel
from colalib.evaluation import plots

SUMMARY = {
    "model_name": ["mel-stats", "probe"],
    "task": "scores/label",
    "chance": 0.125,
    "results": [
        {"model": "mel-stats", "per_seed": [0.4], "mean": 0.4, "ci95": [0.35, 0.45]},
        {"model": "probe", "per_seed": [0.7, 0.72], "mean": 0.71, "ci95": [0.66, 0.76]},
    ],
    "differences": [{"a": "probe", "b": "mel-stats", "mean": 0.31, "ci95": [0.25, 0.37]}],
}


@pytest.fixture(autouse=True)
def no_figure_left():
    yield
    plt.close("all")


def test_a_model_has_one_colour_in_every_figure():
    names = ["probe", "probe (10 per class)", "scratch", "random, calibrated"]
    colours = plots.colours(names)
    assert colours["probe"] == colours["probe (10 per class)"] == plots.MODELS["probe"]
    assert colours["random, calibrated"] == plots.MODELS["random"]
    assert colours["scratch"] == plots.colours(["scratch", "x", "y"])["scratch"]


def test_results_show_every_model_with_its_interval_and_chance():
    ax = plots.results(SUMMARY)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["probe", "mel-stats"]
    lines = [list(line.get_xdata()) for line in ax.lines]
    assert [66, 76] in lines
    assert [35, 45] in lines
    assert [71] in lines
    assert [12.5, 12.5] in lines
    assert {"71.0", "40.0"} <= {text.get_text() for text in ax.texts}
    assert ax.get_title() == "scores/label"


def test_a_difference_can_be_shown_the_other_way_round():
    forward = plots.differences(SUMMARY, [("probe", "mel-stats")], plt.figure().add_subplot())
    backward = plots.differences(SUMMARY, [("mel-stats", "probe")], plt.figure().add_subplot())
    assert list(forward.lines[0].get_xdata()) == [25, 37]
    assert list(backward.lines[0].get_xdata()) == [-37, -25]
    assert list(backward.lines[1].get_xdata()) == [-31]


def test_a_confusion_is_in_per_cent_of_the_true_class():
    predictions = pd.DataFrame({"label": list("aaab"), "predicted": list("aabb")})
    ax = plots.confusion(predictions)
    assert [float(text.get_text()) for text in ax.texts] == [67, 33, 0, 100]


def test_curves_leave_out_steps_without_a_value():
    frame = pd.DataFrame({"step": [4, 9, 14], "train/loss": [3.0, np.nan, 1.0]})
    ax = plots.curves({"scratch": frame, "fine-tuned": frame}, "train/loss")
    assert list(ax.lines[0].get_xdata()) == [4, 14]
    assert ax.lines[0].get_color() == plots.MODELS["scratch"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["scratch", "fine-tuned"]


def test_label_efficiency_has_a_curve_per_model():
    rows = [("probe", 5, 0.4), ("probe", 50, 0.7), ("scratch", 5, 0.2), ("scratch", 50, 0.5)]
    table = pd.DataFrame(rows, columns=["model", "labels per class", "mean"])
    ax = plots.label_efficiency(table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["probe", "scratch"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["5", "50"]


def test_spectrograms_mark_seconds_and_hertz():
    ax = plots.spectrogram(np.zeros((201, 64), np.float16), title="a tone")
    assert ax.get_xlim() == (0, pytest.approx(2.01))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[-4:] == ["500", "1k", "2k", "4k"]
    small = plots.spectrogram(np.zeros((201, 64), np.float16), ax=Figure(figsize=(2, 1)).subplots())
    assert 2 <= len(small.get_yticks()) < len(labels), "labels in a small picture do not cover each other"


def test_a_tone_is_loudest_at_the_mark_of_its_frequency():
    for config in (MelConfig(), MelConfig(n_mels=40, fmin=0.0, fmax=8000.0, n_fft=2048)):
        ticks = plots.mel_ticks(config, apart=0)
        assert list(ticks) == ["100", "200", "500", "1k", "2k", "4k"]
        for label, place in ticks.items():
            hertz = float(label.replace("k", "000"))
            frames = log_mel(np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000), config)
            # two bands hold it at its edge between them
            assert abs(frames[50].argmax() + 0.5 - place) <= 1, label


def test_a_narrow_range_has_marks_too():
    assert list(plots.mel_ticks(MelConfig(fmin=2100.0, fmax=3900.0, n_mels=8))) == ["2250", "3641"]


def test_a_player_leaves_the_loudness_as_it_is():
    wave = 0.25 * np.sin(np.arange(16_000)).astype(np.float32)
    samples = np.frombuffer(plots.player(wave).data[44:], np.int16)  # behind the header of the WAV file
    assert np.abs(samples).max() == pytest.approx(0.25 * 32_768, rel=1e-3)


# what protanopes, deuteranopes and tritanopes see of linear RGB (Machado et al. 2009, severity 1)
SEEN = {
    "all cones": np.eye(3),
    "no long": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no middle": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no short": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB [n, 3] → CIE L*a*b* (D65)."""
    xyz = np.clip(rgb, 0, 1) @ [[0.434, 0.213, 0.018], [0.376, 0.715, 0.109], [0.190, 0.072, 0.873]]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("eyes", SEEN)
def test_colours_stay_apart_for_the_colour_blind(eyes):
    rgb = np.array([to_rgb(colour) for colour in plots.PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = lab(linear @ np.transpose(SEEN[eyes]))
    assert pdist(seen).min() > 15  # 2.3 is what can just be told apart


def test_labels_beyond_the_palette_have_another_shape():
    labels = [f"class {i:02}" for i in range(2 * len(plots.PALETTE))]
    ax = plots.embedding_map(np.random.default_rng(0).random((len(labels), 2)), labels)
    drawn = {p.get_label(): p for p in ax.collections if p.get_label() in labels}
    looks = {(p.get_facecolor().tobytes(), p.get_paths()[0].vertices.tobytes()) for p in drawn.values()}
    assert len(looks) == len(labels)
    assert sum(len(p.get_offsets()) for p in ax.collections) == len(labels), "each point once"
