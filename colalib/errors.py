"""The error for input that a person can correct.

Every part of colalib raises `UserError` where the input is at fault. The command line prints its
message in one line, without a traceback.
"""


class UserError(ValueError):
    """Input that cannot be used. The message says what is wrong, where, and what to do."""
