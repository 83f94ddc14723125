"""Data: from audio files to batches of log-mel segments.

corpora (a table of clips) → audio (decode, log-mel) → store (frames on disk) → clips → segments
(crops, pairs, batches).
"""

import pandas as pd

# Text is kept in the same way with and without pyarrow, whose regular expressions and strings are others.
pd.set_option("mode.string_storage", "python")
