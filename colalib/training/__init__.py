"""Training: `pretrain` and `finetune`, and the run folders that they leave.

What needs Lightning is imported at its first use, because Lightning takes seconds to import.
"""

from importlib import import_module

_HOMES = {
    "pretrain": "pretraining",
    "finetune": "finetuning",
    "predict": "finetuning",
    "load_classifier": "finetuning",
    "AudioClassifier": "finetuning",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
