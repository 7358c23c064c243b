"""What every script shares with the command line: its exit codes, and its device."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from usl.distributed import is_main
from usl.errors import InputError


def cli(main: Callable[[], Any]) -> NoReturn:
    """Run a script's ``main``; bad input becomes one line on stderr and exit code 2."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has left, as `| head` does; there is nothing to tell anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except InputError as error:
        message = " ".join(str(error).split())
        if is_main():
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if is_main():
            print("stopped; what was finished is kept", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


@dataclass(frozen=True)
class Call:
    """How a script was called.

    Attributes
    ----------
    script : str
        Its file name.
    command : str
        What to type to call it again.
    words : tuple of str
        Its path and its arguments.
    """

    script: str
    command: str
    words: tuple[str, ...] = ()


def call_of(script: str, argv: Sequence[str] | None = None) -> Call:
    """The call of a script, ``__file__``, with its arguments, by default those of the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    folder, path = Path.cwd(), Path(script).resolve()
    # From the stage's own folder, which is where the README's commands run, the name is enough.
    command = f"cd {path.parent.name} && python {shlex.join([path.name, *words])}"
    if folder != path.parent:
        command = f"cd {shlex.quote(str(folder))} && python {shlex.join([str(path), *words])}"
    return Call(path.name, command, (str(path), *words))


def choose_device(name: str) -> torch.device:
    """Return the device of this name; ``auto`` takes CUDA if there is one.

    Raises
    ------
    InputError
        It is not on this machine, or not of a kind that is used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"`device` {name} is not on this machine; choose auto or cpu") from None
    return device
