"""Images that are the same twice, or nearly: which there are, and which are left out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image

from usl.artifacts import fingerprint
from usl.config.parse import CfgNode
from usl.data.folder import FolderDataset
from usl.engines.local import Local
from usl.errors import InputError
from usl.geometry.duplicates import nearest_others, stand_ins, unusual_nearness
from usl.geometry.points import Points, blocks, squared_distances, taken_rows
from usl.inference import Features
from usl.lists.write import csv_for_people
from usl.report.selection import Duplicates
from usl.run import Expected, Run, log
from usl.stages import selection
from usl.stages.pool import Pool

# Same pixels have the same features up to rounding: squared distances below this, to lengths of 1.
ROUNDING = 1e-6


def add_duplicates(c: CfgNode) -> CfgNode:
    """Settings of stages that look for duplicates; exact ones are always left out."""
    # Of images nearer to each other than this squared distance the first stands for the others, the
    # near-duplicates, which duplicates.csv and the report list; 0: far below what is usual here,
    # Tukey's outer fence of the distances.
    c.USL.NEAR_DUPLICATE_DISTANCE = 0.0
    # Leave out all but the first of near-duplicates.
    c.USL.MERGE_NEAR_DUPLICATES = False
    return c


def check_duplicates(usl: CfgNode) -> None:
    """Raise InputError unless a threshold is 0 or a squared distance."""
    given = usl.get("NEAR_DUPLICATE_DISTANCE", 0.0)
    if not 0 <= given < math.inf:
        raise InputError(
            f"USL.NEAR_DUPLICATE_DISTANCE is {given}; choose a squared distance, or 0 for the usual"
        )


def leave_out_duplicates(
    run: Run, cfg: CfgNode, pool: Pool, images: FolderDataset, *, engine: Local
) -> tuple[Pool, Duplicates]:
    """Leave out images with the pixels of an earlier one, and perhaps near-duplicates.

    Writes ``duplicates.csv`` of both. Without the files themselves no pixels are compared.
    """
    points = Points(pool.features.values, run.device, engine=engine)

    def nearest() -> list[np.ndarray]:
        return [_nearest(run, cfg, pool, points).numpy()]

    # Kept apart: where copies are left out, the neighbours in RUN_DIR are those of the rest.
    expected = Expected("nearest.npy", (len(points),), low=0.0)
    source = {"features": pool.features.fingerprint, "backend": cfg.KNN.BACKEND}
    alone = len(points) == 1
    (kept,) = nearest() if alone else run.cached([expected], source, nearest, part=True)
    distances = torch.from_numpy(np.array(kept))
    same = _same_pixels(pool, points, distances, images)
    rows = pool.rows
    exact = [(rows[i], rows[first], 0.0) for i, first in enumerate(same) if i != first]
    if exact:
        pool = _without(pool, same, engine)
        points = Points(pool.features.values, run.device, engine=engine)
        distances = _nearest(run, cfg, pool, points)
        log.info("left out as copies of others, pixel by pixel: %d", len(exact))
        _check_left(cfg, len(pool.rows), "exact copies are left out")

    threshold = cfg.USL.NEAR_DUPLICATE_DISTANCE or unusual_nearness(distances)
    first = stand_ins(points, distances, threshold)
    twins = (first != torch.arange(len(first))).nonzero()[:, 0]
    apart = squared_distances(points.exact[twins], points.exact[first[twins]]).cpu()
    near = [
        (int(pool.rows[i]), int(pool.rows[first[i]]), float(apart[n]))
        for n, i in sorted(enumerate(twins.tolist()), key=lambda item: float(apart[item[0]]))
    ]
    merged = bool(near) and cfg.USL.MERGE_NEAR_DUPLICATES
    log.info(
        "near-duplicates, nearer than %.3g (squared) to one that stands for them: %d%s; half of "
        "all images have their nearest at %.3g or more",
        threshold, len(near), ", left out" if merged else "", distances.median(),
    )  # fmt: skip
    _save(run, exact, near, images)
    if merged:
        pool = _without(pool, first.numpy(), engine)
        _check_left(cfg, len(pool.rows), "USL.MERGE_NEAR_DUPLICATES leaves out near-duplicates")
    return pool, Duplicates(distances.numpy(), threshold, near, len(exact), merged)


def _check_left(cfg: CfgNode, left: int, why: str) -> None:
    budget = cfg.USL.NUM_SELECTED_SAMPLES
    if budget > left:
        raise InputError(
            f"USL.NUM_SELECTED_SAMPLES is {budget}, and {why}; choose 1 to {left}, the images left"
        )


def _nearest(run: Run, cfg: CfgNode, pool: Pool, points: Points) -> torch.Tensor:
    """Squared distance of each image to its nearest other, from the neighbours that density needs.

    Where nothing is left out, the selection finds them in RUN_DIR.
    """
    k = selection.neighbors_for(cfg.USL.KNN_K, len(points), cfg.USL.NUM_SELECTED_SAMPLES)
    k = min(max(k, 2), len(points))
    return nearest_others(
        selection.neighbors(run, pool.features, points, k=k, backend=cfg.KNN.BACKEND)
    )


def _same_pixels(
    pool: Pool, points: Points, distances: torch.Tensor, images: FolderDataset
) -> np.ndarray:
    """For each image of the pool the first with the same pixels, (N,), int64.

    Only images whose features agree are read again.
    """
    first = np.arange(len(points))
    length = sum(
        float(points.host[a:b].double().square().sum()) for a, b in blocks(len(points))
    ) / len(points)
    suspects = (distances <= ROUNDING * length).nonzero()[:, 0].numpy()
    if not images.present:
        return first

    def digest(picture: Image.Image) -> str:
        return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()

    rows = pool.rows[suspects].tolist()
    seen: dict[str, int] = {}
    for i, content in zip(suspects, images.each(rows, digest, instead=_alone), strict=True):
        first[i] = seen.setdefault(content, i)
    return first


def _alone(row: int, error: Exception) -> str:
    """What stands for the pixels of a file that cannot be read any more."""
    return str(row)


def _without(pool: Pool, first: np.ndarray, engine: Local) -> Pool:
    """The pool less the images for which another one stands."""
    kept = first == np.arange(len(first))
    values = taken_rows(pool.features.values, np.flatnonzero(kept), engine)
    step = np.arange(pool.size)
    step[pool.rows] = pool.rows[first]
    return replace(
        pool,
        features=Features(values, fingerprint(values)),
        rows=pool.rows[kept],
        stand_in=step if pool.stand_in is None else step[pool.stand_in],
    )


def _save(
    run: Run,
    exact: list[tuple[int, int, float]],
    near: list[tuple[int, int, float]],
    images: FolderDataset,
) -> None:
    """Write ``duplicates.csv``, or remove an earlier run's."""
    found = [("exact", *item) for item in exact] + [("near", *item) for item in near]
    if not found:
        run.remove("duplicates.csv")
        return
    table = pd.DataFrame(found, columns=["Kind", "Index", "OfIndex", "Distance"])
    table.insert(2, "ImageID", [images.paths[row] for row in table["Index"]])
    table.insert(4, "OfImageID", [images.paths[row] for row in table["OfIndex"]])
    run.save_text("duplicates.csv", csv_for_people(table))
