"""The error for input that a person can correct.

Every part of colalib raises `UserError` where the input is at fault. The command line prints its
message in one line, without a traceback.
"""


class UserError(ValueError):
    """Input that cannot be used. The message says what is wrong, where, and what to do."""


def first_line(error: Exception) -> str:
    """Return what a library's error says, in a line of at most 200 characters, for a message of ours."""
    text = str(error).strip()
    if " " not in text:  # a KeyError says only the key, others nothing
        text = f"{type(error).__name__} {text}"
    return text.splitlines()[0][:200].strip()
