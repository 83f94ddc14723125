"""Data: from audio files to batches of log-mel segments.

corpora (a table of clips) → audio (decode, log-mel) → store (frames on disk) → clips → segments
(crops, pairs, batches).
"""
