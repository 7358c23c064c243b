"""The steps of a selection, each reusing what an earlier run left in RUN_DIR if it still holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usl.artifacts import fingerprint
from usl.config.parse import CfgNode
from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.encoders.registry import Encoder
from usl.engines.local import LOCAL, Local
from usl.errors import InputError
from usl.geometry.hierarchy import hierarchical_kmeans
from usl.geometry.kmeans import Clusters, kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.neighbors.search import APPROXIMATE, Neighbors, backend_of
from usl.geometry.points import Points, as_features, oddities, unit_rows
from usl.inference import Features, extract
from usl.lists.copies import copy_picks
from usl.lists.exports import EXPORTS, Picked
from usl.lists.labelstudio import LOCAL_FILES
from usl.lists.write import index_csvs, seeded
from usl.run import Expected, Run, log
from usl.selectors.regularizer import Regularizer
from usl.selectors.usl import Picks, check_neighbors, pick
from usl.shards import remove

FEATURES = "memory_feats_list.npy"
# Budgets whose published picks come from more clusters than picks.
SPARE_CLUSTERS = {
    ("cifar10", 2500): 2501,
    ("cifar100", 2500): 2501,
    ("imagenet", 12820): 12900,
}


def add_export(c: CfgNode) -> CfgNode:
    """Settings of stages that choose images."""
    # Also write the picks as other tools read them, below RUN_DIR/exports: eman, usb, torchssl,
    # labelstudio, cvat, coco, folders.
    c.EXPORT = []
    # What people may answer in Label Studio, CVAT, COCO and folders; empty: the data set's classes.
    c.EXPORT_CLASSES = []
    # What Label Studio finds before the names of files; its local files, or https://….
    c.EXPORT_PREFIX = LOCAL_FILES
    return c


def image_features(
    run: Run,
    cfg: CfgNode,
    encoder: Encoder,
    images: AnyDataset,
    *,
    name: str = FEATURES,
    width: int | None = None,
) -> Features:
    """Features of every image, from the encoder or from RUN_DIR; ``width`` is D if known.

    Raises
    ------
    InputError
        Features of another width, or what :func:`usl.inference.extract` raises.
    """
    values, source = encoded(run, cfg, encoder, images, name=name, width=width)
    features = features_of(values, scale=encoder.scale, name=name)
    if name == FEATURES:
        log.info("encoder %s", encoder)
        say_oddities(features)
        run.note(dataset=images.name, size=len(images), **source, features=features.fingerprint)
    return features


def features_of(
    values: np.ndarray,
    *,
    scale: bool,
    name: str = FEATURES,
    rows: np.ndarray | None = None,
    engine: Local = LOCAL,
) -> Features:
    """Rows as stages use them: of length 1 where the encoder wants that.

    ``rows`` (N,) are what they are called in an error; the engine has room for a copy.
    """
    if scale:
        given = as_features(values, name, rows=rows, engine=engine)
        values = unit_rows(given, name, rows=rows, engine=engine).numpy()
    return Features(values, fingerprint(values))


def encoded(
    run: Run,
    cfg: CfgNode,
    encoder: Encoder,
    images: AnyDataset,
    *,
    name: str = FEATURES,
    width: int | None = None,
    skip_unreadable: bool = False,
    engine: Local = LOCAL,
) -> tuple[np.ndarray, dict[str, Any]]:
    """What an encoder makes of every image, as it comes, (N, D), and what that depends on.

    Saved in RUN_DIR, or from there. With ``skip_unreadable`` rows of images that cannot be read are
    NaN.
    """
    source = {
        "images": images.fingerprint(),
        "encoder": encoder.source,
        "preprocess": asdict(encoder.preprocess),
        "batch_size": cfg.DATALOADER.BATCH_SIZE,
        "precision": cfg.FEATURES.PRECISION,
    }
    shards = None if run.folder is None else run.folder / f"{Path(name).stem}.partial"

    def compute() -> list[np.ndarray]:
        return [
            extract(
                encoder.network,
                images,
                preprocess=encoder.preprocess,
                batch_size=cfg.DATALOADER.BATCH_SIZE,
                device=run.device,
                precision=cfg.FEATURES.PRECISION,
                skip_unreadable=skip_unreadable,
                finite=True,
                shards=shards,
                source=source,
                engine=engine,
            )
        ]

    expected = Expected(name, (len(images), width), rows_of_nan=skip_unreadable)
    with run.timed(f"features ({images.split})"):
        (values,) = run.cached([expected], source, compute)
        assert values is not None
    if width not in (None, values.shape[1]):
        raise InputError(
            f"the features have {values.shape[1]} columns, and the heads of the checkpoint see "
            f"{width}; give one that usl-t_pretraining wrote"
        )
    if shards is not None:
        remove(shards)
    return values, source


def say_oddities(features: Features) -> None:
    """Log rows of zeros, exact copies and constant columns, which nobody may have looked at."""
    for remark in oddities(as_features(features.values)).remarks():
        log.warning("features: %s", remark)


def check_density(k: int, backend: str, images: int) -> None:
    """Raise InputError unless k neighbours say how dense images lie, and something finds them."""
    check_neighbors(k, images)
    backend_of(backend)


def neighbors_for(k: int, images: int, budget: int) -> int:
    """``k``; for 0 a quarter of the mean cluster, between 10 and 400, of fewer images all."""
    return k or min(images, max(10, min(400, images // (4 * budget))))


def neighbors(run: Run, features: Features, points: Points, *, k: int, backend: str) -> Neighbors:
    """The K nearest neighbours of every image."""
    n, suffix = len(points), "" if k == 20 else f"_{k}"
    expected = [
        Expected(f"d_knns{suffix}.npy", (n, k), low=0.0),
        Expected(f"ind_knns{suffix}.npy", (n, k), kind="iu", low=0, high=n - 1),
        Expected(f"mean_d_knns{suffix}.npy", (n,), low=0.0, optional=True),
    ]
    source: dict[str, Any] = {"features": features.fingerprint, "k": k}
    if backend in APPROXIMATE:
        expected.append(Expected(f"recall_knns{suffix}.npy", (2,), low=0.0, high=1.0))
        source["backend"] = backend
    shards = None if run.folder is None else run.folder / f"knns{suffix}.partial"

    def compute() -> list[np.ndarray]:
        found = find_neighbors(points, k, backend=backend, shards=shards, source=source)
        exact = [found.distances.numpy(), found.indices.numpy(), found.mean_distances.numpy()]
        return [*exact, np.array([found.recall, found.margin])][: len(expected)]

    with run.timed("neighbours"):
        distances, indices, mean_distances, *recall = run.cached(expected, source, compute)
        assert distances is not None and indices is not None
        if run.folder is not None:
            # Those of another K, too.
            for left in run.folder.glob("knns*.partial"):
                remove(left)
        if mean_distances is None:
            mean_distances = distances.mean(axis=1, dtype=np.float64)
    return Neighbors(
        torch.from_numpy(distances),
        torch.from_numpy(indices),
        torch.from_numpy(mean_distances).double(),
        *(() if not recall or recall[0] is None else map(float, recall[0])),
    )


def neighbors_fact(k: int, backend: str, found: Neighbors) -> str:
    """How many neighbours, and what an approximate backend has missed of them, for the report."""
    share = f"{100 * found.recall:.2f} ± {100 * found.margin:.2f} %"
    missed = f", approximate ({backend}): {share} of them found"
    return f"{k}{missed if backend in APPROXIMATE else ''}"


def clusters_for(budget: int, images: int, dataset: str) -> int:
    """How many clusters are made for a budget: as many, and spares for two published budgets."""
    return min(images, SPARE_CLUSTERS.get((dataset, budget), budget))


def clusters(
    run: Run,
    features: Features,
    points: Points,
    *,
    budget: int,
    seed: int,
    iterations: int,
    hierarchical: bool = False,
    dataset: str = "",
    labelled: int = 0,
) -> Clusters:
    """One cluster for every pick and labelled image, with spares for two published budgets."""
    n = len(points)
    count = min(n, clusters_for(budget, n, dataset) + labelled)
    source = {
        "features": features.fingerprint,
        "clusters": count,
        "seed": seed,
        "iterations": iterations,
    } | ({"hierarchical": True} if hierarchical else {})
    expected = [
        Expected(f"cluster_labels_{budget}_{seed}.npy", (n,), kind="iu", low=0, high=count - 1),
        Expected(f"centroids_{budget}_{seed}.npy", (count, points.dim)),
    ]

    kept = None if run.folder is None else run.folder / f"clusters_{budget}_{seed}.partial"

    def compute() -> list[np.ndarray]:
        given: dict[str, Any] = {"seed": seed, "iterations": iterations, "source": source}
        if hierarchical:
            found = hierarchical_kmeans(points, count, shards=kept, **given)
        else:
            found = kmeans(points, count, nonempty=budget + labelled, kept=kept, **given)
        return [found.labels.numpy(), found.centroids.float().numpy()]

    with run.timed("k-means"):
        labels, centroids = run.cached(expected, source, compute, by_budget=True)
        assert labels is not None and centroids is not None
        if kept is not None:
            remove(kept)
    return Clusters(torch.from_numpy(labels).long(), torch.from_numpy(centroids).double())


def picks(
    run: Run,
    features: Features,
    points: Points,
    density: Neighbors,
    grouped: Clusters,
    *,
    budget: int,
    seed: int,
    regularizer: Regularizer,
    labelled: torch.Tensor | None = None,
) -> tuple[Picks, dict[str, Any]]:
    """One image from each cluster, and what it was computed from; it takes seconds."""
    with run.timed("picks"):
        chosen = pick(
            points, density.density, grouped.labels, budget, regularizer, labelled=labelled
        )
    source = {
        "features": features.fingerprint,
        "neighbours": fingerprint(density.mean_distances.numpy()),
        "clusters": fingerprint(grouped.labels.numpy()),
        "regularizer": vars(regularizer),
        "labelled": [] if labelled is None else labelled.tolist(),
    }
    return chosen, source


def save_picks(
    run: Run, indices: np.ndarray, *, budget: int, seed: int, source: dict[str, Any]
) -> None:
    """Write ``selected_indices_<budget>_<seed>.npy``."""
    run.save(f"selected_indices_{budget}_{seed}.npy", indices, source, by_budget=True)


def save_csvs(
    run: Run,
    images: AnyDataset,
    picks: np.ndarray,
    *,
    name: str,
    seed: int,
    unreadable: np.ndarray | None = None,
) -> None:
    """Write the CSVs of the labelled and of all other images, as the original names them."""
    csvs = index_csvs(images, picks, seeded(name, seed), unreadable=unreadable)
    for file, text in csvs.items():
        run.save_text(file, text)


def export_picks(
    run: Run,
    cfg: CfgNode,
    images: AnyDataset,
    indices: np.ndarray,
    *,
    seed: int,
    unreadable: np.ndarray | None = None,
) -> None:
    """Write the picks as the tools of EXPORT read them."""
    if run.folder is None:
        return
    picked = Picked(
        indices,
        cfg.RUN_NAME or run.folder.name,
        seed,
        classes=tuple(cfg.EXPORT_CLASSES),
        prefix=cfg.EXPORT_PREFIX,
        unreadable=unreadable,
    )
    for name in cfg.EXPORT:
        folder = run.folder / "exports" / name
        folder.mkdir(parents=True, exist_ok=True)
        EXPORTS[name](images, picked, folder)


def copy(run: Run, cfg: CfgNode, images: FolderDataset, picks: np.ndarray, *, seed: int) -> None:
    """Copy the picks into RUN_DIR as PICKS_TO says; of several seeds each into its own place."""
    form = cfg.get("PICKS_TO")
    if form and run.folder is not None:
        name = "picks" if len(cfg.USL.SEEDS) == 1 else f"picks_seed{seed}"
        print(f"copies: {copy_picks(images, picks.tolist(), run.folder / name, form)}")
