"""Flags of a command line that stand for settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A word of the command line that fills a setting, as ``--opts KEY VALUE`` would.

    Attributes
    ----------
    names : tuple of str
        Such as ``--lr``; without dashes: the argument that needs no name.
    key : str
        The setting, with dots; empty: the flag is accepted, and nothing depends on it.
    kind : callable
        What makes a value of the text: int, float, str.
    value : Any
        The flag takes no text, and means this.
    choices : dict, optional
        The texts that it takes, and what each means.
    to : callable
        What makes the setting of the value.
    text : str
        For ``--help``.
    """

    names: tuple[str, ...]
    key: str = ""
    kind: Callable[[str], Any] = str
    value: Any = None
    choices: dict[str, Any] | None = None
    to: Callable[[Any], Any] = lambda value: value
    text: str = ""


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    """Let a parser take flags. One that comes twice counts as it comes last."""
    group = parser.add_argument_group("flags of the original", "each fills the setting it names")
    for number, flag in enumerate(flags):
        text = f"{flag.text}{' ' if flag.text else ''}[{flag.key or 'nothing depends on it'}]"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if flag.names[0].startswith("-"):
            options["dest"] = _dest(number)
        if flag.value is not None:
            group.add_argument(*flag.names, action="store_const", const=flag.value, **options)
            continue
        options["type"] = flag.kind
        if flag.choices is not None:
            options["choices"] = list(flag.choices)
        if flag.names[0].startswith("-"):
            options["metavar"] = flag.names[-1].strip("-").upper().replace("-", "_")
            group.add_argument(*flag.names, **options)
        else:
            group.add_argument(_dest(number), nargs="?", metavar=flag.names[0], **options)


def given(arguments: argparse.Namespace, flags: Sequence[Flag]) -> Iterator[tuple[Flag, Any]]:
    """The flags that came, in their order in ``flags``, each with its setting."""
    found = vars(arguments)
    for number, flag in enumerate(flags):
        if _dest(number) in found:
            value = found[_dest(number)]
            yield flag, flag.to(value if flag.choices is None else flag.choices[value])


def _dest(number: int) -> str:
    return f"flag {number}"
