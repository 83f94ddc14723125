"""What the user got wrong, told in one line.

Every part of colalib raises `UserError` where a person's input is at fault; the command line prints
its text without a traceback.
"""


class UserError(ValueError):
    """Input that cannot be used: the message says what is wrong and what to do."""
