"""The one exception for mistakes in what a person gave us."""

from __future__ import annotations

import re
from collections.abc import Callable


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do.

    Scripts print it as one line, ``error: …``, and leave with exit code 2. Anything else that goes
    wrong is a bug and keeps its traceback.

    The library names an option in backticks, as in "`batch_size` is 0; choose at least 1". A stage
    turns that into the name of its setting.
    """

    def naming(self, key_of: Callable[[str], str | None]) -> InputError:
        """The same error with options called as ``key_of`` calls them; None keeps a name."""

        def named(match: re.Match[str]) -> str:
            return key_of(match[1]) or match[0]

        return InputError(re.sub(r"`(\w+)`", named, str(self)))


class Unreachable(InputError):
    """A place that does not answer: of the files there nothing is known."""
