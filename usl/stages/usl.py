"""USL, random picks, neighbours for training, and the comparison of selectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from usl.artifacts import fingerprint, load_array
from usl.checkpoints import read_tensor
from usl.config.parse import CfgNode
from usl.config.paths import NOT_FINITE, find_input
from usl.data.datasets import AnyDataset
from usl.errors import InputError
from usl.geometry.kmeans import Clusters
from usl.geometry.points import Points, as_features, check_budget, not_finite
from usl.inference import Features
from usl.lists.exports import check_exports
from usl.lists.read import read_indices, read_labelled
from usl.lists.write import selector_of
from usl.report.selection import Result, print_picks
from usl.run import Run
from usl.selectors.usl import Regularizer
from usl.stages import selection
from usl.stages.inputs import (
    add_image_files,
    add_recompute,
    check_seeds,
    encoder_defaults,
    run_defaults,
)


def add_usl(c: CfgNode) -> CfgNode:
    """Settings of USL."""
    c.USL = CfgNode()
    # The budget: how many images can be labelled.
    c.USL.NUM_SELECTED_SAMPLES = 40
    # Neighbours that make the density, the image itself included.
    c.USL.KNN_K = 400
    # Limit; k-means stops when no image changes its cluster.
    c.USL.K_MEANS_NITERS = 200
    # One selection for each.
    c.USL.SEEDS = [1, 2, 3, 4, 5]
    c.USL.REG = CfgNode()
    # Rounds of picking; 1: no regulariser, the densest image of each cluster.
    c.USL.REG.NITERS = 10
    # Weight of the regulariser.
    c.USL.REG.W = 0.5
    # Share of the last round's regulariser that a round keeps.
    c.USL.REG.MOMENTUM = 0.9
    # dist: picks nearer than HORIZON_DIST repel. num: the HORIZON_NUM nearest picks repel.
    c.USL.REG.HORIZON = "dist"
    # A squared distance.
    c.USL.REG.HORIZON_DIST = 4.0
    # A pick at squared distance d² repels with 1 / d²^ALPHA.
    c.USL.REG.ALPHA = 0.5
    # How many picks, with HORIZON num.
    c.USL.REG.HORIZON_NUM = 128
    # With HORIZON num: leave out the own cluster's pick instead of picks at distance 0.
    c.USL.REG.EXCLUDE_SAME_CLUSTER = False
    return add_neighbors(c)


def add_neighbors(c: CfgNode) -> CfgNode:
    """Settings of stages that search neighbours."""
    c.KNN = CfgNode()
    # Who searches neighbours: auto, torch. All find the same ones.
    c.KNN.BACKEND = "auto"
    return c


def add_features(c: CfgNode) -> CfgNode:
    """Settings of stages that take features from a file."""
    c.FEATURES = CfgNode()
    # A .npy file, or a .npz or .pt of one array, (images, dimensions).
    c.FEATURES.PATH = ""
    # Divide every row by its length first. HORIZON_DIST 4 is meant for rows of length 1.
    c.FEATURES.NORMALIZE = False
    return c


def usl_defaults() -> CfgNode:
    """Settings of ``usl-cifar.py``."""
    return selection.add_export(add_usl(encoder_defaults()))


def features_defaults() -> CfgNode:
    """Settings of ``usl-features.py``."""
    c = add_features(add_usl(add_recompute(run_defaults())))
    # Rows to leave out, which keep their numbers: a .npy of indices, a .csv with a column Index, or
    # nan for those with NaN or infinite values.
    c.FEATURES.EXCLUDE = ""
    return c


def mine_defaults() -> CfgNode:
    """Settings of ``mine-neighbors.py``: FEATURES.PATH goes before the features of MODEL."""
    c = add_neighbors(add_features(add_image_files(encoder_defaults())))
    # Beside the image itself.
    c.NUM_NEIGHBORS = 20
    return c


def random_defaults() -> CfgNode:
    """Settings of ``random-cifar.py``."""
    c = selection.add_export(encoder_defaults())
    c.RANDOM = CfgNode()
    # One draw for each.
    c.RANDOM.SEEDS = [1, 2, 3, 4, 5]
    # The budget: how many images can be labelled.
    c.RANDOM.NUM_SELECTED_SAMPLES = 40
    return c


def compare_defaults() -> CfgNode:
    """Settings of ``compare.py``."""
    c = add_usl(encoder_defaults())
    c.COMPARE = CfgNode()
    # Budgets to compare at; USL.NUM_SELECTED_SAMPLES is not used.
    c.COMPARE.BUDGETS = [40]
    # Picks from elsewhere to compare too, .npy or .csv; {budget} and {seed} stand for each.
    c.COMPARE.LIST = ""
    return c


def check_settings(cfg: CfgNode, budgets: Sequence[int], images: int) -> None:
    """Raise InputError where the settings ask the impossible of ``images`` images."""
    if not budgets:
        raise InputError("COMPARE.BUDGETS is empty; give at least one budget")
    for budget in budgets:
        check_budget(budget, images)
    check_seeds(cfg.USL.SEEDS, "USL.SEEDS")
    selection.check_neighbors(cfg.USL.KNN_K, "USL.KNN_K", cfg.KNN.BACKEND, images)
    if cfg.USL.K_MEANS_NITERS < 1:
        raise InputError(f"USL.K_MEANS_NITERS is {cfg.USL.K_MEANS_NITERS}; choose at least 1")
    if "DATALOADER" in cfg and cfg.DATALOADER.BATCH_SIZE < 1:
        raise InputError(f"DATALOADER.BATCH_SIZE is {cfg.DATALOADER.BATCH_SIZE}; choose at least 1")
    check_exports(cfg.get("EXPORT", []))
    regularizer_of(cfg.USL.REG)


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


@dataclass(frozen=True)
class FeatureFile:
    """Features from a file, less the rows that are left out.

    Attributes
    ----------
    features : Features
    rows : ndarray (N,), int64
        Their rows in the file.
    size : int
        Rows of the file.
    """

    features: Features
    rows: np.ndarray
    size: int


def read_features(section: CfgNode) -> FeatureFile:
    """The features that the FEATURES settings name.

    Raises
    ------
    InputError
        No such file, not a table of finite numbers, or rows to leave out that are none.
    """
    if not section.PATH:
        raise InputError("FEATURES.PATH is empty; give a .npy file of shape (images, dimensions)")
    found = find_input(section.PATH, "file of features (FEATURES.PATH)")
    advice = "give a .npy of shape (images, dimensions)"
    array: np.ndarray | torch.Tensor
    if found.suffix in (".pt", ".pth", ".safetensors"):
        array = read_tensor(found).detach()
    else:
        array = load_array(found, kind="fiu", advice=advice)
    size = len(array) if array.ndim else 0
    rows = np.arange(size)
    if section.get("EXCLUDE"):
        if array.ndim != 2:
            raise InputError(f"{found} has shape {tuple(array.shape)}; {advice}")
        rows = np.setdiff1d(rows, _excluded(section.EXCLUDE, array))
        if not len(rows):
            raise InputError(f"FEATURES.EXCLUDE leaves out all rows of {found}; keep some")
        array = array[rows]
    try:
        features = as_features(array, f"features in {found}", rows=rows)
    except InputError as error:
        hint = ", with FEATURES.EXCLUDE nan" if "EXCLUDE" in section and "NaN" in str(error) else ""
        raise InputError(f"{error}{hint}") from None
    if section.NORMALIZE:
        lengths = features.double().norm(dim=1, keepdim=True)
        if not lengths.all():
            zero = rows[int((lengths == 0).nonzero()[0, 0])]
            raise InputError(
                f"row {zero} of {found} is all zeros and cannot be normalised; leave it out"
            )
        features = (features / lengths).to(features.dtype)
    values = features.numpy()
    return FeatureFile(Features(values, fingerprint(values)), rows, size)


def _excluded(name: str, array: np.ndarray | torch.Tensor) -> np.ndarray:
    """Rows that FEATURES.EXCLUDE names."""
    if name == NOT_FINITE:
        if isinstance(array, torch.Tensor):
            return not_finite(array).numpy()
        return not_finite(torch.from_numpy(np.array(array, dtype=np.float64))).numpy()
    path = find_input(name, "list of rows (FEATURES.EXCLUDE)")
    excluded = np.array(read_indices(path))
    wrong = excluded[(excluded < 0) | (excluded >= len(array))]
    if len(wrong):
        raise InputError(f"{path} has the row {wrong[0]}; give rows from 0 to {len(array) - 1}")
    return excluded


def note_features(run: Run, given: FeatureFile) -> None:
    """Record which features the run starts from, where they are not its own."""
    run.note(size=len(given.features), features=given.features.fingerprint)
    if len(given.rows) < given.size and run.folder is not None:
        run.save("rows.npy", given.rows, {"features": given.features.fingerprint})
    selection.say_oddities(given.features)


def choose(
    run: Run,
    cfg: CfgNode,
    features: Features,
    *,
    title: str,
    facts: dict[str, Any],
    images: AnyDataset | None = None,
    rows: np.ndarray | None = None,
) -> None:
    """Choose with USL from features, once for every seed: section 3 of the paper, step by step.

    Parameters
    ----------
    run, cfg
    features : Features
        Of the pool.
    title : str
        Of the report.
    facts : dict
        For the report.
    images : ImageDataset or FolderDataset, optional
        The pool, for pictures, class counts and exports.
    rows : ndarray (N,), int64, optional
        What the pool's rows are called; default 0 to N - 1.
    """
    budget, regularizer = cfg.USL.NUM_SELECTED_SAMPLES, regularizer_of(cfg.USL.REG)
    points = Points(features.values, run.device)

    # 1. How dense is the feature space around each image?
    density = selection.neighbors(run, features, points, k=cfg.USL.KNN_K, backend=cfg.KNN.BACKEND)
    results = []
    for seed in cfg.USL.SEEDS:
        # 2. One cluster for every label we can afford.
        grouped = selection.clusters(
            run, features, points, budget=budget, seed=seed, iterations=cfg.USL.K_MEANS_NITERS,
            dataset="" if images is None else images.name,
        )  # fmt: skip
        # 3. From each, a dense image far from the other picks.
        chosen, source = selection.picks(
            run, features, points, density, grouped,
            budget=budget, seed=seed, regularizer=regularizer,
        )  # fmt: skip
        indices = chosen.indices.numpy()
        named = indices if rows is None else rows[indices]
        selection.save_picks(run, named, budget=budget, seed=seed, source=source)
        if images is not None:
            selection.export_picks(run, cfg, images, indices, seed=seed)
        sizes = grouped.sizes[chosen.clusters].numpy()
        results.append(Result(f"seed {seed}", named, sizes, on_map=indices))
        print_picks(results[-1], images)

    # 4. Show them.
    selection.finish(
        run,
        results,
        title=title,
        facts=facts | {"Neighbours": cfg.USL.KNN_K},
        images=images,
        points=points,
        color=density.density,
    )


def clusterer(
    run: Run, cfg: CfgNode, features: Features, points: Points, *, dataset: str
) -> Callable[[int, int], Clusters]:
    """What makes the clustering for a budget and a seed, or takes it from RUN_DIR."""

    def cluster(budget: int, seed: int) -> Clusters:
        return selection.clusters(
            run, features, points, budget=budget, seed=seed, iterations=cfg.USL.K_MEANS_NITERS,
            dataset=dataset,
        )  # fmt: skip

    return cluster


def listed_picks(
    pattern: str, images: AnyDataset, budgets: Sequence[int], seeds: Sequence[int]
) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Picks that were made elsewhere, by budget and seed, then by the name of their selector.

    Parameters
    ----------
    pattern : str
        A list for :func:`usl.lists.read.read_labelled`, in whose name {budget} and {seed} stand
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


def save_lists(
    run: Run, dataset: str, selections: dict[str, torch.Tensor], *, budget: int, seed: int
) -> None:
    """Write each selection as a CSV with a column Index, ``lists/<budget>/….csv``."""
    for selector, picks in selections.items():
        name = f"{dataset}_{selector.replace(' ', '-')}_seed{seed}.csv"
        table = pd.DataFrame({"Index": picks.tolist()})
        run.save_text(f"lists/{budget}/{name}", table.to_csv(index=False))
