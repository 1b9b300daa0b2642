"""The one exception that a person is meant to read."""


class UserError(ValueError):
    """Something outside the code is wrong: says what was expected, what came, and what to do.

    Entry points print its message as one line and exit with a non-zero status; any other exception is a defect and
    keeps its traceback.
    """
