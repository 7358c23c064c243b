"""The steps of a selection, each reusing what an earlier run left in RUN_DIR if it still holds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from usl.artifacts import fingerprint
from usl.config import CfgNode, find_input
from usl.data.datasets import AnyDataset
from usl.data.labelled import read_labelled
from usl.errors import InputError
from usl.features import extract
from usl.report.page import Table
from usl.report.selection import SeedResult, feature_map, write_selection_report
from usl.run import Expected, Run
from usl.selection.kmeans import Clusters, kmeans
from usl.selection.neighbors import Neighbors, check_backend, find_neighbors
from usl.selection.points import Points
from usl.selection.usl import Picks, Regularizer, check_budget, pick
from usl.steps.inputs import Encoder

FEATURES = "memory_feats_list.npy"
# Budgets whose published picks come from more clusters than picks.
SPARE_CLUSTERS = {2500: 2501}


def image_features(
    run: Run,
    encoder: Encoder,
    images: AnyDataset,
    *,
    batch_size: int,
    name: str = FEATURES,
    width: int | None = None,
) -> np.ndarray:
    """Features of every image, (N, D), from the encoder or from RUN_DIR; ``width`` is D if known.

    Raises
    ------
    InputError
        Features of another width, or what :func:`usl.features.extract` raises.
    """
    source = {
        "images": images.fingerprint(),
        "encoder": encoder.made_from,
        "transform": encoder.transform,
        "batch_size": batch_size,
    }
    shards = None if run.folder is None else run.folder / f"{Path(name).stem}.partial"

    def compute() -> list[np.ndarray]:
        return [
            extract(
                encoder.network,
                images,
                transform=encoder.transform,
                batch_size=batch_size,
                device=run.device,
                shards=shards,
                source=source,
            )
        ]

    with run.timed(f"features ({images.split})"):
        features = run.cached([Expected(name, (len(images), width))], source, compute)[0]
        assert features is not None
    if width not in (None, features.shape[1]):
        raise InputError(
            f"the features have {features.shape[1]} columns, and the heads of the checkpoint see "
            f"{width}; give one that usl-t_pretraining wrote"
        )
    if shards is not None:
        shutil.rmtree(shards, ignore_errors=True)
    if name == FEATURES:
        run.note(dataset=images.name, size=len(images), **source, features=run.print_of(name))
    return features


def note_features(run: Run, features: torch.Tensor) -> None:
    """Record which features the run starts from, where they are not its own."""
    run.note(size=len(features), features=fingerprint(features.numpy()))


def check_settings(cfg: CfgNode, budgets: Sequence[int], images: int) -> None:
    """Raise InputError where the settings ask the impossible of ``images`` images."""
    if not budgets:
        raise InputError("COMPARE.BUDGETS is empty; give at least one budget")
    for budget in budgets:
        check_budget(budget, images)
    check_seeds(cfg.USL.SEEDS, "USL.SEEDS")
    check_neighbors(cfg.USL.KNN_K, "USL.KNN_K", cfg.KNN.BACKEND, images)
    if cfg.USL.K_MEANS_NITERS < 1:
        raise InputError(f"USL.K_MEANS_NITERS is {cfg.USL.K_MEANS_NITERS}; choose at least 1")
    if "DATALOADER" in cfg and cfg.DATALOADER.BATCH_SIZE < 1:
        raise InputError(f"DATALOADER.BATCH_SIZE is {cfg.DATALOADER.BATCH_SIZE}; choose at least 1")


def check_neighbors(k: int, name: str, backend: str, images: int) -> None:
    """Raise InputError unless so many images have k neighbours, and something finds them."""
    if not 1 <= k <= images:
        raise InputError(f"{name} is {k}; choose 1 to {images}, the number of images")
    check_backend(backend)


def check_seeds(seeds: Sequence[int], name: str) -> None:
    """Raise InputError unless there are seeds and generators take each of them."""
    if not seeds:
        raise InputError(f"{name} is empty; give at least one seed")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{name} has a seed twice: {seeds}; give each once")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"{name} has {seed}; give numbers from 0 to {2**32 - 1}")


def neighbors(run: Run, points: Points, *, k: int, backend: str) -> Neighbors:
    """The K nearest neighbours of every image, of the features noted in the run."""
    n, suffix = len(points), "" if k == 20 else f"_{k}"
    expected = [
        Expected(f"d_knns{suffix}.npy", (n, k), low=0.0),
        Expected(f"ind_knns{suffix}.npy", (n, k), kind="iu", low=0, high=n - 1),
        Expected(f"spread{suffix}.npy", (n,), low=0.0, optional=True),
    ]

    source = {"features": run.facts["features"], "k": k}

    def compute() -> list[np.ndarray]:
        found = find_neighbors(points, k, backend=backend)
        return [found.distances.numpy(), found.indices.numpy(), found.spread.numpy()]

    with run.timed("neighbours"):
        distances, indices, spread = run.cached(expected, source, compute)
        assert distances is not None and indices is not None
        if spread is None:
            spread = distances.mean(axis=1, dtype=np.float64)
    return Neighbors(
        torch.from_numpy(distances), torch.from_numpy(indices), torch.from_numpy(spread).double()
    )


def clusters(run: Run, points: Points, *, budget: int, seed: int, iterations: int) -> Clusters:
    """One cluster for every pick (with spares for a published budget of 2500)."""
    n = len(points)
    count = min(n, SPARE_CLUSTERS.get(budget, budget))
    source = {
        "features": run.facts["features"],
        "clusters": count,
        "seed": seed,
        "iterations": iterations,
    }
    expected = [
        Expected(f"cluster_labels_{budget}_{seed}.npy", (n,), kind="iu", low=0, high=count - 1),
        Expected(f"centroids_{budget}_{seed}.npy", (count, points.dim)),
    ]

    def compute() -> list[np.ndarray]:
        found = kmeans(points, count, seed=seed, iterations=iterations, alive=budget)
        return [found.labels.numpy(), found.centroids.float().numpy()]

    with run.timed("k-means"):
        labels, centroids = run.cached(expected, source, compute, by_budget=True)
        assert labels is not None and centroids is not None
    return Clusters(torch.from_numpy(labels).long(), torch.from_numpy(centroids).double())


def picks(
    run: Run,
    points: Points,
    density: Neighbors,
    grouped: Clusters,
    *,
    budget: int,
    seed: int,
    regularizer: Regularizer,
) -> Picks:
    """One image from each cluster; always computed, since it takes seconds."""
    with run.timed("picks"):
        chosen = pick(points, density.density, grouped.labels, budget, regularizer)
    source = {
        "features": run.facts["features"],
        "neighbours": fingerprint(density.spread.numpy()),
        "clusters": run.print_of(f"cluster_labels_{budget}_{seed}.npy"),
        "regularizer": vars(regularizer),
    }
    save_picks(run, chosen.indices.numpy(), budget=budget, seed=seed, source=source)
    return chosen


def save_picks(
    run: Run, indices: np.ndarray, *, budget: int, seed: int, source: dict[str, Any]
) -> None:
    """Write ``selected_indices_<budget>_<seed>.npy``."""
    run.save(f"selected_indices_{budget}_{seed}.npy", indices, source, by_budget=True)


def listed_picks(
    pattern: str, images: AnyDataset, budgets: Sequence[int], seeds: Sequence[int]
) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Picks that were made elsewhere, by budget and seed, then by the name of their selector.

    Parameters
    ----------
    pattern : str
        A list for :func:`usl.data.labelled.read_labelled`, in whose name {budget} and {seed} stand
        for each; without any, there are none.
    images : ImageDataset or FolderDataset
    budgets, seeds : sequences of int

    Raises
    ------
    InputError
        No such list, or one of another length.
    """
    found: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for budget, seed in product(budgets, seeds):
        found[budget, seed] = {}
        if pattern:
            path = pattern.replace("{budget}", str(budget)).replace("{seed}", str(seed))
            listed = read_labelled(find_input(path, "list of picks (COMPARE.LIST)"), images)
            if len(listed) != budget:
                raise InputError(f"{path} has {len(listed)} picks, and the budget is {budget}")
            found[budget, seed][f"listed {selector_of(pattern, images.name)}"] = listed.indices
    return found


def selector_of(path: str, dataset: str) -> str:
    """Which selector a list comes from, by its file or folder: ``cifar10_usl-t`` is ``usl-t``'s."""
    file = Path(path)
    run = file.parent.name if file.suffix == ".npy" else file.stem
    return re.sub(r"_seed(\d+|\{seed\})$", "", run).removeprefix(f"{dataset}_")


def save_lists(
    run: Run, dataset: str, selections: dict[str, torch.Tensor], *, budget: int, seed: int
) -> None:
    """Write each selection as a CSV with a column Index, ``lists/<budget>/….csv``."""
    for selector, picks in selections.items():
        name = f"{dataset}_{selector.replace(' ', '-')}_seed{seed}.csv"
        table = pd.DataFrame({"Index": picks.tolist()})
        run.save_text(f"lists/{budget}/{name}", table.to_csv(index=False))


def regularizer_of(reg: CfgNode) -> Regularizer:
    """The regulariser that the USL.REG settings describe."""
    return Regularizer(
        weight=reg.W,
        alpha=reg.ALPHA,
        momentum=reg.MOMENTUM,
        rounds=reg.NITERS,
        horizon=reg.HORIZON,
        horizon_dist=reg.HORIZON_DIST,
        horizon_num=reg.HORIZON_NUM,
        exclude_same_cluster=reg.EXCLUDE_SAME_CLUSTER,
    )


def finish(
    run: Run,
    results: Sequence[SeedResult],
    *,
    title: str,
    facts: dict[str, Any],
    images: AnyDataset | None = None,
    points: Points | None = None,
    shade: torch.Tensor | None = None,
    table: Table | None = None,
) -> None:
    """Write ``report.html``, print where it is, and close the run.

    With ``points`` and ``shade`` (N,), a density or a confidence, the report has a map.
    """
    if run.folder is not None:
        path = run.folder / "report.html"
        with run.timed("report"):
            layout = None
            if points is not None and shade is not None:
                layout = feature_map(points.host.numpy(), shade.numpy(), results)
        write_selection_report(
            path,
            results,
            title=title,
            facts=facts | {"Device": str(run.device)},
            command=run.command,
            timings=run.timings,
            dataset=images,
            maps=layout,
            table=table,
        )
        print(f"report: {path}", flush=True)
    run.finish()
