"""What is said of the encoder that ships: figures come from committed predictions, sources are named."""

import re
from pathlib import Path

import pytest

import colalib
from colalib.evaluation import intervals
from colalib.training.runs import open_run, read_predictions

ROOT = Path(colalib.__file__).parents[1]
CARD = ROOT / "colalib" / "default" / "README.md"
# by `compare STORE --encoder default --frozen --labels-per-class 10`; kNN is left out
PREDICTIONS = {file.name.partition(".")[0]: file for file in (ROOT / "data" / "default").glob("*.csv.gz")}


def of_accuracy(row: dict) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in (row["mean"], *row["ci95"])))


def of_difference(row: dict) -> str:
    return "{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in (row["mean"], *row["ci95"])))


def table_rows(text: str, name: str) -> list[list[str]]:
    """Return the cells of every row of a table whose first cell names the corpus, without bold."""
    rows = [line.replace("**", "") for line in text.splitlines() if re.match(rf"\| [^|]*{name}", line)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


NAMES = {
    "scores": "`scores`",
    "esc10": "ESC-10",
    "philharmonia": "Philharmonia",
    "fsdd": "FSDD",
    "emotify": "Emotify",
}


def test_the_sets_are_all_there():
    assert set(PREDICTIONS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_what_the_predictions_say(name):
    summary = intervals.summary(read_predictions(PREDICTIONS[name]))
    accuracy = {row["model"]: row for row in summary["results"]}
    difference = {(row["a"], row["b"]): of_difference(row) for row in summary["differences"]}
    three = ["mel-stats", "random", "probe"]
    whole = [of_accuracy(accuracy[model]) for model in three]
    whole += [difference["probe", "mel-stats"], difference["probe", "random"]]
    few = [of_accuracy(accuracy[f"{model} (10 per class)"]) for model in ("mel-stats", "probe")]
    few.append(difference["probe (10 per class)", "mel-stats (10 per class)"])
    for page in (CARD, ROOT / "RESULTS.md"):
        rows = [row[1:] for row in table_rows(page.read_text(encoding="utf-8"), NAMES[name])]
        classes = len({*read_predictions(PREDICTIONS[name])["label"]})
        assert [str(classes), *whole] in rows, f"{page}: {whole}"
        assert few in rows, f"{page}: {few}"
    short = [f"{100 * accuracy[model]['mean']:.1f}" for model in three]
    rows = table_rows((ROOT / "README.md").read_text(encoding="utf-8"), NAMES[name])
    assert short in [row[1:] for row in rows], f"README: {short}"


def test_the_table_of_real_music_is_what_the_predictions_say():
    summary = intervals.summary(read_predictions(ROOT / "data" / "emotify.csv.gz"))
    accuracy = {row["model"]: of_accuracy(row) for row in summary["results"]}
    difference = {(row["a"], row["b"]): of_difference(row) for row in summary["differences"]}
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8").replace("**", "")
    for model in ("mel-stats", "probe", "scratch", "fine-tuned"):
        assert f"| {accuracy[f'{model} (10 per class)']} | {accuracy[model]} |" in text, model
    assert f"| | {accuracy['random']} |" in text
    ten = difference["fine-tuned (10 per class)", "scratch (10 per class)"]
    assert f"Fine-tuned − scratch: {ten} and {difference['fine-tuned', 'scratch']}." in text
    assert f"Pre-trained − random, frozen: {difference['probe', 'random']}." in text
    tuned = read_predictions(ROOT / "data" / "emotify.csv.gz").query(
        "model == 'fine-tuned' and labels_per_class == ''"
    )
    counts = intervals.confusion(tuned)
    two = counts.loc[["pop", "rock"]]
    taken = (two.loc["pop", "rock"] + two.loc["rock", "pop"]) / two.to_numpy().sum()
    assert f"pop for rock or rock for pop in {100 * taken:.0f}% of its answers to pop and rock songs." in text


def test_every_source_has_its_licence():
    seen = open_run("default").seen_clip_ids
    sources = {clip.split("/")[1] for clip in seen if not clip.startswith("scores/")}
    text = CARD.read_text(encoding="utf-8")
    for source in sources:
        ((_, clips, *_, licence),) = table_rows(text, source)
        assert int(clips) == sum(clip.startswith(f"pool/{source}/") for clip in seen)
        assert re.search(r"CC0|CC BY|MIT|Apache-2.0|ODbL|public domain", licence), f"{source}: {licence}"
        assert "NC" not in licence
    judges = ("esc10/", "esc50/", "fsdd/", "philharmonia/", "emotify/")
    assert not [clip for clip in seen if clip.startswith(judges)]
