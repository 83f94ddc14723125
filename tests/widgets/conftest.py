"""What the widget tests share: a corpus, predictions, a space, a finished run, and a folder for runs."""

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from colalib import evaluation, training, widgets
from colalib.data import corpora
from colalib.settings import PretrainConfig


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLA_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLA_PROFILE", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def corpus(folder):
    return corpora.load(folder)


@pytest.fixture(scope="session")
def short_run(mel_store, tmp_path_factory):
    """A finished pre-training of two steps. Copy it before you change it."""
    out = tmp_path_factory.mktemp("runs") / "short"
    return training.pretrain([mel_store], out, PretrainConfig(steps=2, batch_size=8), progress=False)


@pytest.fixture
def predictions(mel_store):
    """Answers of two models with two seeds each; they take some clips for low."""
    clips = mel_store.clips
    clips = clips[["clip_id", "group", "label"]].assign(task="tones/label", fold="")
    rng = np.random.default_rng(0)
    wrong = [clips["label"].where(rng.random(len(clips)) < share, "low") for share in (0.5, 0.8)]
    return pd.concat(
        [
            clips.assign(model=model, seed=seed, predicted=predicted)
            for model, predicted in zip(("random", "probe"), wrong)
            for seed in (0, 1)
        ]
    )


@pytest.fixture(scope="session")
def space(mel_store):
    """Embeddings of the clips, and a map of them."""
    x = evaluation.embed(mel_store.path).vectors

    class Plane(PCA):  # stands for UMAP, which takes long
        def fit(self, x):
            super().fit(x)
            self.embedding_ = self.transform(x)
            return self

    return widgets.Space(x, Plane(2).fit(StandardScaler().fit_transform(x)), "default")
