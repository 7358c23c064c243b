"""How much memory there is."""

from __future__ import annotations

import os
from pathlib import Path

from usl.errors import InputError


def free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        # Systems without /proc say how much there is at all, some of them.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def check_free(needed: int, what: str) -> None:
    """Raise InputError where less memory is free."""
    free = free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"{what} would take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; choose "
            "fewer neighbours or fewer images"
        )
