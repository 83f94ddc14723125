"""The demo corpus `scores`: eight kinds of music, real scores played on sampled instruments.

It is rendered on this machine. reading: what a score says; performing: how it is played; rendering: one clip,
by the sampler `soundfont`; build: the corpus on disk.
"""

CLIPS_PER_CLASS = 200
