"""Engines by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from usl.engines.local import Local
from usl.engines.ray import Ray
from usl.errors import InputError

# Given the address of a cluster, or none, and bytes of memory and a folder, see ``Local``.
ENGINES: dict[str, Callable[[str, int | None, Path | None], Local]] = {
    "local": lambda address, memory, folder: Local(memory, folder),
    "ray": lambda address, memory, folder: Ray(address),
}


def engine_named(
    name: str, address: str = "", *, memory: int | None = None, folder: Path | None = None
) -> Local:
    """The engine of this name.

    Parameters
    ----------
    name : str
    address : str
        Of a cluster.
    memory, folder
        Of this machine, see :class:`usl.engines.local.Local`.

    Raises
    ------
    InputError
        Unknown, in which case the known names are listed, or it does not run here.
    """
    if name not in ENGINES:
        raise InputError(f"unknown `engine` {name!r}; choose one of {', '.join(ENGINES)}")
    return ENGINES[name](address, memory, folder)
