"""What the reports of selections show, and the end of their runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from usl.data.datasets import AnyDataset
from usl.geometry.coverage import coverage_curve
from usl.geometry.distances import distances_to
from usl.geometry.kmeans import Clusters
from usl.geometry.neighbors.search import Neighbors
from usl.geometry.points import Points, blocks
from usl.report.selection import (
    PICTURES,
    Coverage,
    Duplicates,
    Result,
    feature_map,
    write_selection_report,
)
from usl.run import Run
from usl.selectors.usl import Picks

# Pictures around a pick.
NEAREST, EDGE = 5, 3


def surroundings(
    points: Points, density: Neighbors, grouped: Clusters, chosen: Picks, rows: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """What a report shows around the first picks: the nearest images, and their clusters' edges.

    ``rows`` (N,) are what the points are called in the data set.
    """
    nearest, edge = [], []
    shown = zip(chosen.indices[:PICTURES], chosen.clusters[:PICTURES], strict=True)
    for row, cluster in shown:
        others = density.indices[row][density.indices[row] != row]
        nearest.append(rows[others[:NEAREST].numpy()])
        members = (grouped.labels == cluster).nonzero()[:, 0]
        members = members[members != row]
        distances = torch.empty(len(members), dtype=torch.float64)
        for start, stop in blocks(len(members)):
            some = points.host[members[start:stop]]
            distances[start:stop] = distances_to(some, points.host[row])
        farthest = distances.argsort(descending=True, stable=True)[:EDGE]
        edge.append(rows[members[farthest].numpy()])
    return {"nearest": nearest, "edge": edge}


def coverage(points: Points, density: Neighbors, chosen: Picks) -> Coverage:
    """How much of the pool the picks cover, and as many images again.

    Covered is what is as near to a pick as half of all images have their K nearest neighbours.
    """
    radius = float(density.distances[:, -1].median())
    budget = len(chosen.indices)
    shares, flattens = coverage_curve(points, chosen.indices, radius, beyond=budget)
    return Coverage(shares, budget, flattens, radius)


def finish(
    run: Run,
    results: Sequence[Result],
    *,
    title: str,
    facts: dict[str, Any],
    images: AnyDataset | None = None,
    points: Points | None = None,
    color: torch.Tensor | None = None,
    color_by: str = "density",
    coverage: Coverage | None = None,
    duplicates: Duplicates | None = None,
) -> None:
    """Write ``report.html``, print where it is, and close the run.

    With ``points`` and ``color`` (N,), a density or a confidence, the report has a map.
    """
    if run.folder is not None:
        path = run.folder / "report.html"
        with run.timed("report"):
            layout = None
            if points is not None and color is not None:
                layout = feature_map(points.host.numpy(), color.numpy(), results)
        write_selection_report(
            path,
            results,
            title=title,
            facts=facts | {"Device": str(run.device)},
            command=run.command,
            timings=run.timings,
            dataset=images,
            maps=layout,
            color_by=color_by,
            coverage=coverage,
            duplicates=duplicates,
        )
        print(f"report: {path}", flush=True)
    run.finish()
