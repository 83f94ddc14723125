"""The pair player (notebook 2): anchor, positive and distractors to hear and see, and the
contrastive task as a quiz.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import ipywidgets as w
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.nn import functional as F

from colalib.data import audio, segments
from colalib.data.corpora import Corpus
from colalib.data.segments import SEGMENT_FRAMES
from colalib.data.store import MelStore
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.widgets import parts
from colalib.widgets.choices import keep_choice, read_choices

AUGMENTATIONS = {
    "random_filter": segments.random_filter,
    "random_band_mask": segments.random_band_mask,
    "random_mask": segments.random_mask,
    "random_multiply": segments.random_multiply,
}


@dataclass
class Question:
    """An anchor and candidates, each (clip number, first frame); `answer` is the place of the
    positive among the candidates.
    """

    anchor: tuple[int, int]
    candidates: list[tuple[int, int]]
    answer: int


def draw(
    store: MelStore, rng: np.random.Generator, candidates: int = 4, rows: np.ndarray | None = None
) -> Question:
    """A question as pre-training asks it: two crops of one clip drawn independently, and one crop
    each of other clips, of other groups. `rows`: the clips to draw from."""
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)

    def crop(i: int) -> tuple[int, int]:
        return int(i), int(rng.integers(max(len(store.frames(int(i))) - SEGMENT_FRAMES, 0) + 1))

    chosen, groups = rng.choice(rows), store.clips["group"].values
    others = rows[groups[rows] != groups[chosen]]
    if len(others) < candidates - 1:  # hardly any other group
        others = rows[rows != chosen]
    if len(others) < candidates - 1:
        raise UserError(f"{len(rows)} clips are too few to choose from: at least {candidates}")
    places = [crop(chosen), *(crop(i) for i in rng.choice(others, candidates - 1, replace=False))]
    order = rng.permutation(candidates)
    return Question(crop(chosen), [places[k] for k in order], int(np.flatnonzero(order == 0)[0]))


def segment(store: MelStore, place: tuple[int, int]) -> np.ndarray:
    """The log-mel segment [SEGMENT_FRAMES, n_mels] at a place; a short clip is centred among
    silence, as in a whole-clip embedding.
    """
    clip, start = place
    return segments.split_segments(
        store.frames(clip)[start : start + SEGMENT_FRAMES], SEGMENT_FRAMES, SEGMENT_FRAMES, store.mel.silence
    )[0]


@torch.no_grad()
def choice(encoder: Encoder, anchor: np.ndarray, candidates: list[np.ndarray]) -> int:
    """The candidate whose h is most similar to the anchor's (cosine), of segments [SEGMENT_FRAMES,
    n_mels].
    """
    h = encoder.eval()(torch.from_numpy(np.stack([anchor, *candidates])))
    return int(F.cosine_similarity(h[:1], h[1:]).argmax())


def pair_player(
    corpus: Corpus,
    store: MelStore,
    encoders: dict[str, Encoder] | None = None,
    candidates: int = 4,
    seed: int = 0,
) -> parts.WidgetWithFallback:
    """Anchor, positive and distractors side by side: hear them, see where in their clips they lie,
    draw others, switch augmentations on; or be asked which candidate comes from the anchor's clip,
    with the score of `encoders` (name → `Encoder`) beside yours. `candidates` to choose from;
    `seed` of what is drawn. Clips of the test split, if there are enough groups."""
    kept = read_choices().get("quiz")  # name → [right, asked]
    score = kept if isinstance(kept, dict) and all(isinstance(v, list) for v in kept.values()) else {}
    # after a restart other questions than those answered before
    rng = np.random.default_rng([seed, score.get("you", [0, 0])[1]])
    state = {"rng": rng, "question": None, "drawn": 0, "answered": True}
    # unheard by encoders of the course
    rows = np.flatnonzero(store.clips["split"].values == "test")
    if len(set(store.clips["group"].values[rows])) <= candidates:
        rows = np.arange(len(store))

    mode = w.ToggleButtons(options=["listen", "quiz"], description="", style={"button_width": "6em"})
    another = w.Button(description="draw another", icon="random", button_style="primary")
    switches = {
        name: w.Checkbox(False, description=name, indent=False, layout=w.Layout(width="auto"))
        for name in AUGMENTATIONS
    }
    cards = [w.HTML() for _ in range(candidates + 1)]
    buttons = [w.Button(description="this one", layout=w.Layout(width="8em")) for _ in range(candidates)]
    forget = w.Button(description="score to zero", layout=w.Layout(width="9em"))
    verdict = w.HTML()

    @lru_cache(maxsize=16)
    def wave(clip: int) -> np.ndarray:
        return audio.load_audio(corpus.root / store.clips["path"].iloc[clip])

    def altered(k: int, place: tuple[int, int]) -> np.ndarray:
        """The segment as the encoders get it; the same again until another question is drawn."""
        x, rng = segment(store, place), np.random.default_rng([seed, state["drawn"], k])
        for name, switch in switches.items():
            if switch.value:
                x = AUGMENTATIONS[name](x, rng)
        return x

    def card(k: int, place: tuple[int, int], role: str, hidden: bool) -> str:
        clip, start = place
        x, name = altered(k, place), "anchor" if k == 0 else f"candidate {k}" if hidden else role
        rate, hop = store.mel.sample_rate, store.mel.hop
        try:
            if any(s.value for s in switches.values()):
                heard = audio.resynthesise(x, store.mel)
            else:
                heard = wave(clip)[start * hop : start * hop + int(rate * store.mel.seconds(SEGMENT_FRAMES))]
            player = parts.sound(heard, name, rate)
        except audio.Unusable as error:
            player = f"<b>{name}</b> cannot be played: {parts.text(str(error))}"
        figure = _figure(store, place, x, hidden)
        title = store.clips.get("title", store.clips["clip_id"]).iloc[clip]
        where = f"{store.mel.seconds(start):.2f} s into {parts.text(title)}" if not hidden else ""
        colour = "#555555" if hidden and k else plots.ROLES[role]
        return (
            f'<div style="border-top:5px solid {colour};padding:4px 6px">'
            f"{player}{parts.picture(figure, f'log-mel spectrogram of the {name}')}"
            f'<div style="line-height:1.3;height:3.9em;overflow:hidden">{where}</div></div>'
        )

    def show(*_) -> None:
        q = state["question"]
        hidden = mode.value == "quiz" and not state["answered"]
        for k, place in enumerate([q.anchor, *q.candidates]):
            role = "anchor" if k == 0 else "positive" if k - 1 == q.answer else "distractor"
            cards[k].value = card(k, place, role, hidden)
        for button in buttons:
            button.layout.visibility = "visible" if mode.value == "quiz" else "hidden"
            button.disabled = not hidden
        forget.layout.visibility = "visible" if mode.value == "quiz" and score else "hidden"
        asked = "Which candidate comes from the anchor's clip?" if hidden else _standing(score, encoders)
        verdict.value = asked if mode.value == "quiz" else ""

    def fresh(*_) -> None:
        state.update(
            question=draw(store, state["rng"], candidates, rows), drawn=state["drawn"] + 1, answered=False
        )
        show()

    def answered(button: w.Button) -> None:
        if state["answered"]:  # pressed twice
            return
        q, given = state["question"], buttons.index(button)
        state["answered"] = True
        anchor, others = (altered(0, q.anchor), [altered(k, c) for k, c in enumerate(q.candidates, start=1)])
        said = {name: choice(e, anchor, others) for name, e in (encoders or {}).items()}
        for name, k in {"you": given, **said}.items():
            right, asked = score.get(name, [0, 0])
            score[name] = [right + (k == q.answer), asked + 1]
        keep_choice("quiz", score)
        show()
        told = "; ".join(f"{name} chose {k + 1}" for name, k in said.items())
        right = "Right" if given == q.answer else f"No, it was candidate {q.answer + 1}"
        verdict.value = f"<b>{right}.</b> {told}<br>{_standing(score, encoders)}"

    def zero(_) -> None:
        score.clear()
        keep_choice("quiz", score)
        show()

    mode.observe(fresh, "value")  # a question whose answer was shown is no question
    another.on_click(fresh)
    for switch in switches.values():
        switch.observe(show, "value")
    for button in buttons:
        button.on_click(answered)
    forget.on_click(zero)
    parts.persist("pair_player", {"mode": mode, **switches})
    fresh()
    flow = w.Layout(flex_flow="row wrap", align_items="center")
    narrow = {"flex": "1 1 164px", "min_width": "164px", "max_width": "260px"}
    columns = [w.VBox([cards[0]], layout=w.Layout(**narrow))]
    columns += [
        w.VBox(pair, layout=w.Layout(**narrow, align_items="center")) for pair in zip(cards[1:], buttons)
    ]
    return parts.WidgetWithFallback(
        [
            w.HBox([mode, another, *switches.values()], layout=flow),
            w.HBox(columns, layout=w.Layout(flex_flow="row wrap")),
            w.HBox([verdict, forget], layout=flow),
        ],
        lambda: _overview(store, state["question"]),
    )


def _standing(score: dict, encoders: dict | None) -> str:
    """The score in words."""
    told = {name: score.get(name, [0, 0]) for name in ("you", *(encoders or {}))}
    return "right so far: " + ", ".join(f"{name} {right} of {asked}" for name, (right, asked) in told.items())


def _figure(store: MelStore, place: tuple[int, int], x: np.ndarray, hidden: bool) -> Figure:
    """The segment [SEGMENT_FRAMES, n_mels], and unless `hidden` its clip with the segment marked."""
    figure = Figure(figsize=(2.1, 1.5 if hidden else 2.5), layout="constrained")
    if hidden:
        _plain(plots.spectrogram(x, store.mel, figure.subplots()))
        return figure
    clip, start = place
    top, bottom = figure.subplots(2, 1)
    _plain(plots.spectrogram(x, store.mel, top)).set_xlabel("")
    _plain(plots.spectrogram(store.frames(clip), store.mel, bottom))
    height = store.mel.n_mels - 1
    box = Rectangle(
        (store.mel.seconds(start), 0.5),
        store.mel.seconds(SEGMENT_FRAMES),
        height,
        fill=False,
        ec="white",
        lw=3,
    )
    bottom.add_patch(box)
    return figure


def _plain(ax: Axes) -> Axes:
    """Fewer marks, for a narrow card."""
    labels = [label.get_text() for label in ax.get_yticklabels()]
    ax.set_yticks(ax.get_yticks()[::2], labels[::2])
    ax.set_ylabel("Hz")
    ax.tick_params(labelsize=8)
    return ax


def _overview(store: MelStore, question: Question) -> Figure:
    """All segments of a question side by side, for where widgets cannot run."""
    roles = ["positive" if k == question.answer else "distractor" for k in range(len(question.candidates))]
    places = [question.anchor, *question.candidates]
    return plots.panels([(r, segment(store, p)) for r, p in zip(["anchor", *roles], places)])
