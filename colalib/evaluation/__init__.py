"""Evaluation: embeddings of clips, probes on them, comparisons of models, intervals, plots."""

from colalib.evaluation.comparison import ablation, compare, evaluate, probe, supervised
from colalib.evaluation.embedding import Embedded, embed
from colalib.evaluation.embedding_files import embed_to_file
from colalib.evaluation.features import calibrate_batchnorm, embed_frames, mel_stats
from colalib.evaluation.probes import (
    effective_rank,
    evaluate_features,
    knn,
    linear_probe,
    neighbours,
    temperature_scaled_loss,
)
from colalib.evaluation.sources import feature_source

__all__ = [
    "Embedded",
    "ablation",
    "calibrate_batchnorm",
    "compare",
    "effective_rank",
    "embed",
    "embed_frames",
    "embed_to_file",
    "evaluate",
    "evaluate_features",
    "feature_source",
    "knn",
    "linear_probe",
    "mel_stats",
    "neighbours",
    "probe",
    "supervised",
    "temperature_scaled_loss",
]
