"""The report of a selection: the picks as pictures, a map, class counts, timings, the command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.metrics import class_counts
from usl.report.page import write_page
from usl.report.pictures import FeatureMap, curve_uri, draw_map, histogram_uri, picture_uris, plane

# Pictures of picks of one selection; with more, the page would not open quickly.
PICTURES = 400
PICKS_ON_MAP = 3000
# Pairs of near-duplicates.
PAIRS = 24
# Longest side of the pictures around a pick, in pixels.
SMALL = 64


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
    clusters : ndarray (B,), int, or None
        The cluster of each pick.
    nearest, edge : sequence of B ndarrays, int, or None
        Images nearest to each pick, and those of its cluster that are farthest from it.
    """

    name: str
    picks: np.ndarray
    sizes: np.ndarray | None = None
    on_map: np.ndarray | None = None
    clusters: np.ndarray | None = None
    nearest: Sequence[np.ndarray] | None = None
    edge: Sequence[np.ndarray] | None = None


@dataclass(frozen=True)
class Coverage:
    """How much of the pool picks cover, see :func:`usl.geometry.coverage.coverage_curve`.

    Attributes
    ----------
    shares : ndarray (B or more,)
    budget : int
        B.
    flattens : int
    radius : float
        A squared distance.
    """

    shares: np.ndarray
    budget: int
    flattens: int
    radius: float


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates among the images.

    Attributes
    ----------
    distances : ndarray (N,), float32
        Squared, of each image to its nearest other; of exact copies only the first counts.
    threshold : float
        The squared distance below which two images are near-duplicates.
    near : list of (int, int, float)
        A near-duplicate, the image it is one of, and their squared distance; nearest first.
    copies : int
        Exact copies of other images, which are left out.
    merged : bool
        Near-duplicates are left out too.
    """

    distances: np.ndarray
    threshold: float
    near: list[tuple[int, int, float]]
    copies: int
    merged: bool


def print_picks(result: Result, dataset: AnyDataset | None = None) -> None:
    """Print what the original prints for a selection: its name, class counts, indices."""
    print(f"{result.name}: {len(result.picks)} picks")
    if dataset is not None and dataset.labels is not None:
        counts = class_counts(dataset.labels, result.picks, len(dataset.classes))
        print(f"class counts: {counts.tolist()}, largest {counts.max()}, smallest {counts.min()}")
    print(f"indices: {result.picks.tolist()}", flush=True)


def feature_map(
    features: np.ndarray, color: np.ndarray, results: Sequence[Result]
) -> list[FeatureMap]:
    """Maps of the features, (N, D), coloured by (N,), one for each selection."""
    # A map of more picks than this would show nothing, and take long to lay out.
    most = PICKS_ON_MAP // len(results)
    picks = [(r.picks if r.on_map is None else r.on_map)[:most] for r in results]
    rows, positions = plane(features, np.unique(np.concatenate(picks)))
    where = {int(row): i for i, row in enumerate(rows)}
    return [
        draw_map(positions, color[rows], np.array([where[row] for row in one.tolist()]))
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
    maps: Sequence[FeatureMap] | None = None,
    color_by: str = "density",
    coverage: Coverage | None = None,
    duplicates: Duplicates | None = None,
) -> None:
    """Write ``report.html``, one file that needs no network.

    Parameters
    ----------
    path : Path
    results : sequence of Result
        Of the first, picks show what is around them.
    title : str
    facts : dict
        Shown as name and value: data set, encoder, budget, …
    command : str
        What repeats the run.
    timings : dict of str to float
        Seconds by step.
    dataset : ImageDataset, optional
        For pictures, and for class counts if it has labels.
    maps : sequence of FeatureMap, optional
        From :func:`feature_map`.
    color_by : {"density", "confidence"}
        What their colour stands for.
    coverage : Coverage, optional
        Of the first of the results.
    duplicates : Duplicates, optional
    """
    drawn: list[FeatureMap | None] = list(maps) if maps else [None] * len(results)
    write_page(
        path,
        title=title,
        facts=facts,
        command=command,
        timings=timings,
        classes=dataset.classes if dataset is not None and dataset.labels is not None else None,
        color_by=color_by,
        selections=[
            {
                "name": result.name,
                "tiles": _tiles(result, dataset, around=number == 0),
                "hidden": max(0, len(result.picks) - PICTURES) if dataset is not None else 0,
                "map": map_,
                "counts": _counts(result, dataset),
                "indices": result.picks.tolist(),
                "files": _files(result, dataset),
            }
            for number, (result, map_) in enumerate(zip(results, drawn, strict=True))
        ],
        coverage=None if coverage is None else _coverage(coverage),
        duplicates=None if duplicates is None else _duplicates(duplicates, dataset),
    )


def _tiles(result: Result, dataset: AnyDataset | None, *, around: bool) -> list[dict[str, Any]]:
    if dataset is None:
        return []
    picks = result.picks[:PICTURES].tolist()
    pictures = picture_uris(dataset, picks)
    groups = {"Nearest to it": result.nearest, "Edge of its cluster": result.edge}
    shown = {k: [row.tolist() for row in v[:PICTURES]] for k, v in groups.items() if v and around}
    small = picture_uris(dataset, _flat(shown.values()), side=SMALL)
    tiles = []
    for number, index in enumerate(picks, start=1):
        label = None if dataset.labels is None else dataset.classes[dataset.labels[index]]
        tiles.append(
            {
                "number": number,
                "index": index,
                "label": label,
                "size": None if result.sizes is None else int(result.sizes[number - 1]),
                "cluster": None if result.clusters is None else int(result.clusters[number - 1]),
                "picture": pictures[index],
                "file": dataset.paths[index] if isinstance(dataset, FolderDataset) else None,
                "around": {
                    name: [(_name(dataset, row), small[row]) for row in rows[number - 1]]
                    for name, rows in shown.items()
                },
            }
        )
    return tiles


def _flat(groups: Iterable[list[list[int]]]) -> list[int]:
    return [row for rows in groups for one in rows for row in one]


def _name(dataset: AnyDataset, index: int) -> str:
    return dataset.paths[index] if isinstance(dataset, FolderDataset) else f"image {index}"


def _files(result: Result, dataset: AnyDataset | None) -> list[str]:
    """What the files of all picks are called."""
    if not isinstance(dataset, FolderDataset):
        return []
    return [dataset.paths[index] for index in result.picks.tolist()]


def _counts(result: Result, dataset: AnyDataset | None) -> list[int] | None:
    if dataset is None or dataset.labels is None:
        return None
    counts: list[int] = class_counts(dataset.labels, result.picks, len(dataset.classes)).tolist()
    return counts


def _coverage(coverage: Coverage) -> dict[str, Any]:
    budget, shares = coverage.budget, 100 * coverage.shares
    numbers = np.arange(1, 1 + len(shares))
    curves = {"your picks": (numbers[:budget], shares[:budget])}
    if len(shares) > budget:
        curves["more like them"] = (numbers[budget - 1 :], shares[budget - 1 :])
    return {
        "picture": curve_uri(
            curves, axis="picks", height="% of images near", mark=coverage.flattens
        ),
        "share": f"{shares[budget - 1]:.0f} %",
        "budget": budget,
        "whole": bool(shares[budget - 1] == 100),
        "flattens": coverage.flattens,
        "radius": f"{coverage.radius:.3g}",
    }


def _duplicates(found: Duplicates, dataset: AnyDataset | None) -> dict[str, Any]:
    pairs = [] if dataset is None else found.near[:PAIRS]
    uris = (
        {} if dataset is None else picture_uris(dataset, [r for a, b, _ in pairs for r in (a, b)])
    )
    return {
        "copies": found.copies,
        "count": len(found.near),
        "merged": found.merged,
        "threshold": f"{found.threshold:.3g}",
        "picture": histogram_uri(
            found.distances, axis="squared distance to the nearest image", mark=found.threshold
        )
        if found.threshold
        else None,
        "pairs": [
            {
                "images": [(_name(dataset, row), uris[row]) for row in pair[:2]],
                "distance": f"{pair[2]:.2g}",
            }
            for pair in pairs
            if dataset is not None
        ],
    }
