"""The demo corpus `scores`: real scores played on sampled instruments, rendered on this machine."""

from colalib.data.scores.build import CLIPS_PER_CLASS, build

__all__ = ["CLIPS_PER_CLASS", "build"]
