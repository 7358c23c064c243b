"""Picks as other tools read them.

To add one, write a function like those below and enter it in ``EXPORTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from usl.artifacts import save_array, save_text
from usl.data.datasets import AnyDataset
from usl.errors import InputError
from usl.lists.write import index_csvs, seeded


@dataclass(frozen=True)
class Picked:
    """Picks and what files call them.

    Attributes
    ----------
    indices : ndarray (B,), int64
    name : str
        Of the run.
    seed : int
        Or, for USL-T, the head.
    """

    indices: np.ndarray
    name: str
    seed: int


def check_exports(names: list[str]) -> None:
    """Raise InputError, with the known names, unless there are exports of these names."""
    for name in names:
        if name not in EXPORTS:
            known = ", ".join(EXPORTS)
            raise InputError(f"unknown `export` {name!r}; choose from {known}")


def _eman(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """The CSVs that EMAN's FixMatch reads: the labelled images, and all others."""
    for file, text in index_csvs(images, picks.indices, seeded(picks.name, picks.seed)).items():
        save_text(folder / file, text)


def _usb(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """The pair of arrays that USB looks for in ``data/<dataset>/labeled_idx``."""
    others = np.setdiff1d(np.arange(len(images)), picks.indices)
    end = f"labels{len(picks.indices)}_1_seed{picks.seed}_idx.npy"
    save_array(folder / f"lb_{end}", picks.indices)
    save_array(folder / f"ulb_{end}", others)


def _torchssl(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """The array that TorchSSL reads, one folder a seed."""
    inner = folder / f"seed{picks.seed}"
    inner.mkdir(exist_ok=True)
    save_array(inner / "sampled_label_idx.npy", picks.indices)


# By name: ``f(images, picks, folder)``, which writes files into a folder that is there.
EXPORTS: dict[str, Callable[[AnyDataset, Picked, Path], None]] = {
    "eman": _eman,
    "usb": _usb,
    "torchssl": _torchssl,
}
