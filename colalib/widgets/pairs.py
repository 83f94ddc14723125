"""The pair player (notebook 2): anchor, positive and distractors to hear and see, and the contrastive task
as a quiz.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import ipywidgets as w
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.nn import functional as F

from colalib.data import audio, segments
from colalib.data.corpus import Corpus
from colalib.data.segments import SEGMENT_FRAMES
from colalib.data.store import MelStore
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.training.runs import open_run
from colalib.widgets import parts, quiz
from colalib.widgets.choices import change_choice, read_settings

AUGMENTATIONS = {
    "random_filter": segments.random_filter,
    "random_band_mask": segments.random_band_mask,
    "random_mask": segments.random_mask,
    "random_multiply": segments.random_multiply,
}


@dataclass
class Question:
    """An anchor and candidates, each (clip number, first frame).

    `answer` is the index of the positive among the candidates.
    """

    anchor: tuple[int, int]
    candidates: list[tuple[int, int]]
    answer: int

    def crops(self) -> list[tuple[str, tuple[int, int]]]:
        """Return role and place of the anchor and of each candidate."""
        roles = ["positive" if i == self.answer else "distractor" for i in range(len(self.candidates))]
        return [("anchor", self.anchor), *zip(roles, self.candidates)]


def draw(
    store: MelStore, rng: np.random.Generator, candidates: int = 4, rows: np.ndarray | None = None
) -> Question:
    """Draw a question as pre-training asks it.

    Two crops of one clip are drawn independently, and one crop each of other clips, of other groups.
    `rows`: the clips to draw from. Raises `UserError` if they are too few.
    """
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    groups = store.clips["group"].values

    def crop(clip: int) -> tuple[int, int]:
        return int(clip), int(rng.integers(max(len(store.frames(int(clip))) - SEGMENT_FRAMES, 0) + 1))

    chosen = rng.choice(rows)
    others = rows[groups[rows] != groups[chosen]]
    if len(others) < candidates - 1:  # hardly any other group
        others = rows[rows != chosen]
    if len(others) < candidates - 1:
        raise UserError(f"{len(rows)} clips are too few to choose from: at least {candidates} are needed")
    crops = [crop(chosen), *(crop(clip) for clip in rng.choice(others, candidates - 1, replace=False))]
    order = rng.permutation(candidates)
    return Question(crop(chosen), [crops[i] for i in order], int(np.flatnonzero(order == 0)[0]))


def segment(store: MelStore, place: tuple[int, int]) -> np.ndarray:
    """Return the log-mel segment [SEGMENT_FRAMES, n_mels] at a place.

    A shorter clip is centred among silence, as when a whole clip is embedded.
    """
    clip, start = place
    frames = store.frames(clip)[start : start + SEGMENT_FRAMES]
    return segments.split_segments(frames, SEGMENT_FRAMES, silence=store.mel.silence)[0]


@torch.no_grad()
def similarities(encoder: Encoder, anchor: np.ndarray, candidates: list[np.ndarray]) -> np.ndarray:
    """Return the cosine of each candidate's h and the anchor's, [candidates].

    All are segments [SEGMENT_FRAMES, n_mels]. An encoder chooses the candidate with the largest.
    """
    h = encoder.eval()(torch.from_numpy(np.stack([anchor, *candidates])))  # [1 + candidates, dim]
    return F.cosine_similarity(h[:1], h[1:]).numpy()


class PairPlayer(parts.WidgetWithFallback):
    """Anchor, positive and distractors side by side, to hear and to see where they lie in their clips.

    You can draw others and switch augmentations on. In the quiz you say which candidate comes from the
    anchor's clip. Then you see how similar each of `encoders` (name → `Encoder`) finds every candidate to the
    anchor, and its score beside yours; by default the encoder that comes with the course answers.
    `candidates` to choose from; `seed` of what is drawn. Clips are those of the validation split, if it
    has enough groups.

    `cards[0]` is the anchor's; `choose[i]` chooses candidate i. `score` maps each name to [right, asked].
    """

    def __init__(
        self,
        corpus: Corpus,
        store: MelStore,
        encoders: dict[str, Encoder] | None = None,
        candidates: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        self.corpus = corpus
        self.store = store
        self.encoders = encoders or {}
        self.seed = seed
        self.score = valid_score(read_settings("quiz"))
        # after a restart other questions than those that were answered before
        self.rng = np.random.default_rng([seed, self.score.get("you", [0, 0])[1]])
        self.rows = clips_to_ask(store, candidates)
        self.drawn = 0  # questions so far
        self.answered = False
        self.load_audio = lru_cache(maxsize=16)(audio.load_audio)  # the clips of about three questions
        self.mode = w.ToggleButtons(options=["listen", "quiz"], style={"button_width": "6em"})
        self.another = w.Button(description="draw another", icon="random", button_style="primary")
        self.switches = {
            name: w.Checkbox(False, description=name, indent=False, layout={"width": "auto"})
            for name in AUGMENTATIONS
        }
        self.cards = [w.HTML() for _ in range(candidates + 1)]
        self.choose = [w.Button(description="this one", layout={"width": "8em"}) for _ in range(candidates)]
        self.verdict = w.HTML()
        self.forget = w.Button(description="reset the score", layout={"width": "9em"})
        self.children = self.arrange()
        parts.persist("pair_player", {"mode": self.mode, **self.switches})
        # a new question too, because the answer of this one was shown
        self.mode.observe(self.ask, "value")
        self.another.on_click(self.ask)
        for switch in self.switches.values():
            switch.observe(self.show, "value")
        for button in self.choose:
            button.on_click(self.answer)
        self.forget.on_click(self.reset_score)
        self.ask()

    def arrange(self) -> list[w.Widget]:
        """Return the rows of the widget."""
        flow = parts.ROW | {"align_items": "center"}
        narrow = {"flex": "1 1 164px", "min_width": "164px", "max_width": "260px"}
        columns = [w.VBox([self.cards[0]], layout=narrow)]
        for pair in zip(self.cards[1:], self.choose):
            columns.append(w.VBox(pair, layout=narrow | {"align_items": "center"}))
        return [
            w.HBox([self.mode, self.another, *self.switches.values()], layout=flow),
            w.HBox(columns, layout=parts.ROW),
            w.HBox([self.verdict, self.forget], layout=flow),
        ]

    def ask(self, *_) -> None:
        """Draw another question, and show it."""
        self.question = draw(self.store, self.rng, len(self.choose), self.rows)
        self.drawn += 1
        self.answered = False
        self.show()

    def show(self, *_) -> None:
        """Show the question, or in the quiz what belongs to it."""
        quiz = self.mode.value == "quiz"
        hidden = quiz and not self.answered
        for number, (role, place) in enumerate(self.question.crops()):
            self.cards[number].value = self.card(number, role, place, hidden)
        for button in self.choose:
            button.layout.visibility = "visible" if quiz else "hidden"
            button.disabled = not hidden
        self.forget.layout.visibility = "visible" if quiz and self.score else "hidden"
        words = "Which candidate comes from the anchor's clip?" if hidden else self.standing()
        self.verdict.value = words if quiz else ""

    def cosines(self, question: Question) -> dict[str, np.ndarray]:
        """Return how similar every encoder finds the anchor to each candidate."""
        anchor, *candidates = (self.altered(i, place) for i, (_, place) in enumerate(question.crops()))
        # loaded at the first answer: who only listens does not need it
        self.encoders = self.encoders or {"default": open_run("default").load_encoder()}
        return {name: similarities(encoder, anchor, candidates) for name, encoder in self.encoders.items()}

    def answer(self, button: w.Button) -> None:
        """Count an answer beside those of the encoders, and show what was right."""
        if self.answered:  # pressed twice
            return
        cosines = self.cosines(self.question)
        self.answered = True
        chosen = {"you": self.choose.index(button)}
        chosen |= {name: int(row.argmax()) for name, row in cosines.items()}

        def count(kept: dict) -> dict:
            score = valid_score(kept)
            for name, candidate in chosen.items():
                right, asked = score.get(name, [0, 0])
                score[name] = [right + (candidate == self.question.answer), asked + 1]
            return score

        self.score = change_choice("quiz", count)
        self.show()
        right = chosen["you"] == self.question.answer
        verdict = "Right" if right else f"No, it was candidate {self.question.answer + 1}"
        others = "; ".join(f"{name} chose {chosen[name] + 1}" for name in self.encoders)
        self.verdict.value = (
            f"<b>{verdict}.</b> {parts.escape(others)}<br>{self.standing()}{self.similarity_table(cosines)}"
        )

    def similarity_table(self, cosines: dict[str, np.ndarray]) -> str:
        """Return the cosines of each encoder (name → [candidates]) as HTML, a column for each candidate."""
        columns = [f"candidate {i + 1}" for i in range(len(self.choose))]
        columns[self.question.answer] += " (positive)"
        rows = [[name, *(f"{cosine:.3f}" for cosine in row)] for name, row in cosines.items()]
        return parts.table(pd.DataFrame(rows, columns=["cosine similarity to the anchor", *columns]))

    def reset_score(self, _) -> None:
        """Forget the score."""
        self.score = change_choice("quiz", lambda kept: {})
        self.show()

    def standing(self) -> str:
        """Return the score in words, as HTML."""
        score = {name: self.score.get(name, [0, 0]) for name in ("you", *self.encoders)}
        words = (f"{name} {right} of {asked}" for name, (right, asked) in score.items())
        return parts.escape("right so far: " + ", ".join(words))

    def altered(self, number: int, place: tuple[int, int]) -> np.ndarray:
        """Return the segment [SEGMENT_FRAMES, n_mels] as the encoders get it; the same for one question."""
        x = segment(self.store, place)
        rng = np.random.default_rng([self.seed, self.drawn, number])
        for name, switch in self.switches.items():
            if switch.value:
                x = AUGMENTATIONS[name](x, rng)
        return x

    def card(self, number: int, role: str, place: tuple[int, int], hidden: bool) -> str:
        """Return player, picture and origin of a segment as HTML; only the first two if `hidden`."""
        name = f"candidate {number}" if hidden and number else role
        x = self.altered(number, place)
        try:
            player = parts.sound(self.heard(x, place), name, self.store.mel.sample_rate)
        except parts.NO_SOUND as error:
            player = f"<b>{name}</b> cannot be played: {parts.reason(error)}"
        picture = parts.picture(
            card_figure(self.store, place, x, hidden), f"log-mel spectrogram of the {name}"
        )
        origin = "" if hidden else parts.escape(self.origin(place))
        colour = "#555555" if hidden and number else plots.ROLES[role]
        return (
            f'<div style="border-top:5px solid {colour};padding:4px 6px">{player}{picture}'
            f'<div style="line-height:1.3;height:3.9em;overflow:hidden">{origin}</div></div>'
        )

    def origin(self, place: tuple[int, int]) -> str:
        """Return in words where a segment comes from."""
        clip, start = place
        title = self.store.clips.get("title", self.store.clips["clip_id"]).iloc[clip]
        return f"{self.store.mel.seconds(start):.2f} s into {title}"

    def heard(self, x: np.ndarray, place: tuple[int, int]) -> np.ndarray:
        """Return samples: of the recording, or of what the augmentations left.

        Raises one of `parts.NO_SOUND`.
        """
        if any(switch.value for switch in self.switches.values()):
            return audio.resynthesise(x, self.store.mel)
        clip, start = place
        path = self.corpus.root / self.store.clips["path"].iloc[clip]
        wave = self.load_audio(path, self.store.mel.sample_rate)
        hop = self.store.mel.hop
        return wave[start * hop : (start + SEGMENT_FRAMES) * hop]

    def without_kernel(self) -> dict:
        """Return a quiz as HTML. Its questions are drawn here, once."""
        rng = np.random.default_rng([self.seed, quiz.QUESTIONS])  # not those that the player asks
        items = []
        for number in range(1, quiz.QUESTIONS + 1):
            question = draw(self.store, rng, len(self.choose), self.rows)
            chosen = {name: int(row.argmax()) for name, row in self.cosines(question).items()}
            crops = enumerate(question.crops())
            cards = [self.card(i, role, place, hidden=True) for i, (role, place) in crops]
            origins = [self.origin(place) for place in question.candidates]
            items.append(quiz.question_html(number, cards, origins, question.answer, chosen))
        return {"html": quiz.quiz_html(items)}

    def static_figure(self) -> Figure:
        """Return all segments of the question side by side."""
        return plots.panels([(role, segment(self.store, place)) for role, place in self.question.crops()])


def valid_score(kept: dict) -> dict[str, list[int]]:
    """Return the score that is kept, name → [right, asked], without what is no score."""
    return {name: counts for name, counts in kept.items() if is_count(counts)}


def is_count(counts) -> bool:
    """Return whether these are two whole numbers, [right, asked], that a person can have reached."""
    whole = isinstance(counts, list) and [type(number) for number in counts] == [int, int]
    return whole and 0 <= counts[0] <= counts[1] < 1_000_000


def clips_to_ask(store: MelStore, candidates: int) -> np.ndarray:
    """Return the validation clips, so that the test stays closed; all if their groups are too few."""
    rows = np.flatnonzero(store.clips["split"].values == "valid")
    enough = len(set(store.clips["group"].values[rows])) > candidates
    return rows if enough else np.arange(len(store))


def card_figure(store: MelStore, place: tuple[int, int], x: np.ndarray, hidden: bool) -> Figure:
    """Draw a segment [SEGMENT_FRAMES, n_mels], and unless `hidden` its clip with the segment marked."""
    figure = Figure(figsize=(2.1, 1.5 if hidden else 2.5), layout="constrained")
    if hidden:
        narrow_axes(plots.spectrogram(x, store.mel, figure.subplots()))
        return figure
    clip, start = place
    top, bottom = figure.subplots(2, 1)
    narrow_axes(plots.spectrogram(x, store.mel, top)).set_xlabel("")
    narrow_axes(plots.spectrogram(store.frames(clip), store.mel, bottom))
    corner = (store.mel.seconds(start), 0.5)  # half a band inside, so that the frame is seen
    size = (store.mel.seconds(SEGMENT_FRAMES), store.mel.n_mels - 1)
    bottom.add_patch(Rectangle(corner, *size, fill=False, ec="white", lw=3))
    return figure


def narrow_axes(ax: Axes) -> Axes:
    """Write small, for a narrow card."""
    ax.set_ylabel("Hz")
    ax.tick_params(labelsize=8)
    return ax
