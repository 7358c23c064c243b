"""The one exception for mistakes in what a person gave us."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do.

    Scripts print it as one line, ``error: …``, and leave with exit code 2. Anything else that goes
    wrong is a bug and keeps its traceback.
    """
