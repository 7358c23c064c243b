"""Engines by name."""

from __future__ import annotations

from collections.abc import Callable

from usl.engines.local import LOCAL, Local
from usl.engines.ray import Ray
from usl.errors import InputError

# Given the address of a cluster, or none.
ENGINES: dict[str, Callable[[str], Local]] = {"local": lambda address: LOCAL, "ray": Ray}


def engine_named(name: str, address: str = "") -> Local:
    """The engine of this name.

    Raises
    ------
    InputError
        Unknown, in which case the known names are listed, or it does not run here.
    """
    if name not in ENGINES:
        raise InputError(f"unknown `engine` {name!r}; choose one of {', '.join(ENGINES)}")
    return ENGINES[name](address)
