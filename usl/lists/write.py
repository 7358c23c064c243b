"""Which images are labelled and which are not, in the files that the stages hand each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset


@dataclass(frozen=True)
class Selected:
    """The picks of one seed.

    Attributes
    ----------
    seed : int
    picks : ndarray (B,), int64
        Rows of the data set.
    clusters, sizes : ndarray (B,), int64
        The cluster of each, and its members.
    density : ndarray (B,), float64
    """

    seed: int
    picks: np.ndarray
    clusters: np.ndarray
    sizes: np.ndarray
    density: np.ndarray


# Shares by which published budgets are called, in percent.
PUBLISHED = {
    ("imagenet", 2911): "0.2",
    ("imagenet", 12820): "1",
    ("imagenet100", 400): "0.3",
}


def percent(dataset: str, budget: int, images: int) -> str:
    """What file names call a budget: percent of the images, with up to four significant digits."""
    share = Decimal(f"{100 * budget / images:.4g}")
    return PUBLISHED.get((dataset, budget)) or format(share, "f")


def image_ids(images: AnyDataset) -> list[str]:
    """``class_folder/file`` of every image; their indices where images have no files."""
    if isinstance(images, FolderDataset):
        return list(images.paths)
    return [str(index) for index in range(len(images))]


def picture_name(index: int) -> str:
    """What the file of an image in memory is called, where a tool needs one."""
    return f"{index}.png"


def index_csvs(
    images: AnyDataset,
    picks: np.ndarray,
    name: str,
    *,
    pseudo_labels: np.ndarray | None = None,
    unreadable: np.ndarray | None = None,
) -> dict[str, str]:
    """The CSV of the labelled images and that of all others, by their names.

    Columns ``Index``, ``ImageID`` and, with pseudo-labels, ``Pseudolabel``, by rising ``Index``.

    Parameters
    ----------
    images : ImageDataset or FolderDataset
    picks : ndarray (B,), int
    name : str
        Of the selection.
    pseudo_labels : ndarray (N,), int, optional
        -1 for images without one; those with one count as labelled.
    unreadable : ndarray, int, optional
        Images that are not among all others, since nobody could train on them.
    """
    labelled = np.zeros(len(images), dtype=bool)
    labelled[picks] = True
    table = pd.DataFrame({"Index": np.arange(len(images)), "ImageID": image_ids(images)})
    if pseudo_labels is not None:
        labelled = pseudo_labels >= 0
        table["Pseudolabel"] = pseudo_labels
    others = ~labelled
    if unreadable is not None:
        others[unreadable] = False
    share = percent(images.name, len(picks), len(images))
    # Decimal: 100 - 0.2 is 99.8, not 99.79999….
    rest = format(100 - Decimal(share), "f")
    # Half of the images and the other half would have one name.
    other = f"{rest}p_gen_{name}" if rest != share else f"{rest}p_gen_{name}_rest"
    return {
        f"train_{share}p_gen_{name}_index.csv": table[labelled].to_csv(index=False),
        f"train_{other}_index.csv": table[others].to_csv(index=False),
    }


def selected_csv(
    selections: Sequence[Selected], ids: Sequence[str] | None = None, *, round: int = 1
) -> str:
    """The picks of every seed, a row a pick, for people.

    Columns ``Rank`` (from 1), ``Index``, ``ImageID`` where ``ids`` (N,) name the images,
    ``Cluster``, ``ClusterSize``, ``Density``, ``Seed``, ``Round``.
    """
    parts = []
    for one in selections:
        columns: dict[str, Any] = {"Rank": range(1, 1 + len(one.picks)), "Index": one.picks}
        if ids is not None:
            columns["ImageID"] = [ids[pick] for pick in one.picks.tolist()]
        columns |= {"Cluster": one.clusters, "ClusterSize": one.sizes, "Density": one.density}
        parts.append(pd.DataFrame(columns).assign(Seed=one.seed, Round=round))
    return csv_for_people(pd.concat(parts))


def csv_for_people(table: pd.DataFrame) -> str:
    """A table as CSV whose texts no spreadsheet takes for formulas."""
    safe = table.map(lambda cell: harmless(cell) if isinstance(cell, str) else cell)
    return safe.to_csv(index=False)


def harmless(name: str) -> str:
    """A text that no spreadsheet takes for a formula: one that could be begins with ``'``."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def seeded(name: str, seed: int) -> str:
    """What files call a selection: ``name``, or ``name_seed<seed>`` unless the seed is 0."""
    # A run may lie in a folder of runs.
    name = name.replace("/", "-")
    return f"{name}_seed{seed}" if seed else name


def selector_of(path: str, dataset: str) -> str:
    """Which selector a list comes from, by its file or folder: ``cifar10_usl-t`` is ``usl-t``'s."""
    file = Path(path)
    run = file.parent.name if file.suffix == ".npy" else file.stem
    # As :func:`index_csvs` calls them.
    run = re.sub(r"^train_[\d.]+p_gen_(.+)_index$", r"\1", run)
    return re.sub(r"_seed(\d+|\{seed\})$", "", run).removeprefix(f"{dataset}_")
