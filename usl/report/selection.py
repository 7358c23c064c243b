"""The report of a selection: the picks as pictures, a map, class counts, timings, the command."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.errors import InputError
from usl.metrics import class_counts
from usl.report.page import Table, write_page
from usl.report.pictures import image_uri, map_uri, plane

log = logging.getLogger("usl")

# Pictures of picks of one selection; with more, the page would not open quickly.
PICTURES = 400
PICKS_ON_MAP = 3000


@dataclass(frozen=True)
class Result:
    """The picks of one seed, or of one head of USL-T.

    Attributes
    ----------
    name : str
        Such as ``seed 1`` or ``head 0``.
    picks : ndarray (B,), int
    sizes : ndarray (B,), int, or None
        Members of each pick's cluster.
    on_map : ndarray (B,), int, or None
        Rows of the picks in the features of a map, where these are not the picks.
    """

    name: str
    picks: np.ndarray
    sizes: np.ndarray | None = None
    on_map: np.ndarray | None = None


def print_picks(result: Result, dataset: AnyDataset | None = None) -> None:
    """Print what the original prints for a selection: its name, class counts, indices."""
    print(f"{result.name}: {len(result.picks)} picks")
    if dataset is not None and dataset.labels is not None:
        counts = class_counts(dataset.labels, result.picks, len(dataset.classes))
        print(f"class counts: {counts.tolist()}, largest {counts.max()}, smallest {counts.min()}")
    print(f"indices: {result.picks.tolist()}", flush=True)


def feature_map(features: np.ndarray, color: np.ndarray, results: Sequence[Result]) -> list[str]:
    """Maps of the features, (N, D), coloured by (N,), one for each selection, as data URIs."""
    # A map of more picks than this would show nothing, and take long to lay out.
    most = PICKS_ON_MAP // len(results)
    picks = [(r.picks if r.on_map is None else r.on_map)[:most] for r in results]
    rows, positions = plane(features, np.unique(np.concatenate(picks)))
    where = {int(row): i for i, row in enumerate(rows)}
    return [
        map_uri(positions, color[rows], np.array([where[row] for row in one.tolist()]))
        for one in picks
    ]


def write_selection_report(
    path: Path,
    results: Sequence[Result],
    *,
    title: str,
    facts: dict[str, Any],
    command: str,
    timings: dict[str, float],
    dataset: AnyDataset | None = None,
    maps: Sequence[str] | None = None,
    color_by: str = "density",
    table: Table | None = None,
) -> None:
    """Write ``report.html``, one file that needs no network.

    Parameters
    ----------
    path : Path
    results : sequence of Result
    title : str
    facts : dict
        Shown as name and value: data set, encoder, budget, …
    command : str
        What repeats the run.
    timings : dict of str to float
        Seconds by step.
    dataset : ImageDataset, optional
        For pictures, and for class counts if it has labels.
    maps : sequence of str, optional
        From :func:`feature_map`.
    color_by : {"density", "confidence"}
        What their colour stands for.
    table : Table, optional
        Results, above everything else.
    """
    write_page(
        path,
        title=title,
        facts=facts,
        command=command,
        timings=timings,
        table=table,
        classes=dataset.classes if dataset is not None and dataset.labels is not None else None,
        color_by=color_by,
        selections=[
            {
                "name": result.name,
                "tiles": _tiles(result, dataset),
                "hidden": max(0, len(result.picks) - PICTURES) if dataset is not None else 0,
                "map": map_,
                "counts": _counts(result, dataset),
                "indices": result.picks.tolist(),
            }
            for result, map_ in zip(results, maps or [""] * len(results), strict=True)
        ],
    )


def _tiles(result: Result, dataset: AnyDataset | None) -> list[dict[str, Any]]:
    if dataset is None:
        return []
    tiles = []
    for number, index in enumerate(result.picks[:PICTURES].tolist(), start=1):
        label = None if dataset.labels is None else dataset.classes[dataset.labels[index]]
        size = None if result.sizes is None else int(result.sizes[number - 1])
        picture = _picture(dataset, index)
        tiles.append(
            {
                "number": number,
                "index": index,
                "label": label,
                "size": size,
                "picture": None if picture is None else image_uri(picture),
                "file": dataset.paths[index] if isinstance(dataset, FolderDataset) else None,
            }
        )
    return tiles


def _picture(dataset: AnyDataset, index: int) -> np.ndarray | None:
    """A picture, or none of a file that cannot be read: a report shows what it can."""
    try:
        return dataset.picture(index)
    except InputError as error:
        log.warning("no picture in the report: %s", error)
        return None


def _counts(result: Result, dataset: AnyDataset | None) -> list[int] | None:
    if dataset is None or dataset.labels is None:
        return None
    counts: list[int] = class_counts(dataset.labels, result.picks, len(dataset.classes)).tolist()
    return counts
