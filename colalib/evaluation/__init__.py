"""Evaluation: embeddings of clips, probes on them, comparisons of models, intervals, plots."""

from colalib.evaluation.comparison import ablation, compare, evaluate, probe, supervised
from colalib.evaluation.embedding import embed
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
