"""USL, random picks, neighbours for training, and the comparison of selectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from usl.artifacts import fingerprint, load_array
from usl.checkpoints import read_tensor
from usl.cli import Call
from usl.config.parse import CfgNode
from usl.config.paths import NOT_FINITE, find_input, is_file
from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.encoders.registry import Encoder, saved_as_it_comes
from usl.errors import InputError
from usl.geometry.kmeans import Clusters
from usl.geometry.points import Points, as_features, check_budget, not_finite, unit_rows
from usl.inference import Features
from usl.lists.exports import check_exports
from usl.lists.read import read_indices, read_labelled
from usl.lists.write import selector_of
from usl.report.selection import Result, print_picks
from usl.run import Expected, Run, log
from usl.selectors.random import random_picks
from usl.selectors.usl import Regularizer
from usl.stages import selection
from usl.stages.inputs import (
    add_folders,
    add_image_files,
    add_recompute,
    begin,
    check_seeds,
    embedding_defaults,
    encoder_defaults,
    encoder_of,
    open_images,
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
    c.FEATURES = c.get("FEATURES") or CfgNode()
    # A .npy file, or a .npz or .pt of one array, (images, dimensions).
    c.FEATURES.PATH = ""
    # Divide every row by its length first. HORIZON_DIST 4 is meant for rows of length 1.
    c.FEATURES.NORMALIZE = False
    return c


def usl_defaults() -> CfgNode:
    """Settings of ``usl-cifar.py``."""
    return selection.add_export(add_usl(embedding_defaults()))


def usl_imagenet_defaults() -> CfgNode:
    """Settings of ``usl-imagenet.py``."""
    c = add_image_files(usl_defaults())
    # Files that are no images: stop, or skip: they are listed in unreadable.csv and never picked.
    c.DATASET.UNREADABLE = "stop"
    c.USL.REG.HORIZON = "num"
    return c


def features_defaults() -> CfgNode:
    """Settings of ``usl-features.py``."""
    c = add_features(add_usl(add_recompute(run_defaults())))
    # Rows to leave out, which keep their numbers: a .npy of indices, a .csv with a column Index, or
    # nan for those with NaN or infinite values.
    c.FEATURES.EXCLUDE = ""
    return c


def mine_defaults() -> CfgNode:
    """Settings of ``mine-neighbors.py``: FEATURES.PATH goes before the features of MODEL."""
    c = add_neighbors(add_features(add_image_files(embedding_defaults())))
    # Beside the image itself.
    c.NUM_NEIGHBORS = 20
    return c


def random_defaults() -> CfgNode:
    """Settings of ``random-cifar.py``."""
    # MODEL, DATALOADER and RECOMPUTE_* are the original's: a draw depends on none of them.
    c = selection.add_export(encoder_defaults())
    c.RANDOM = CfgNode()
    # One draw for each.
    c.RANDOM.SEEDS = [1, 2, 3, 4, 5]
    # The budget: how many images can be labelled.
    c.RANDOM.NUM_SELECTED_SAMPLES = 40
    return c


def random_imagenet_defaults() -> CfgNode:
    """Settings of ``random-imagenet.py``."""
    c = add_folders(random_defaults())
    c.RANDOM.SEEDS = [0]
    return c


def compare_defaults() -> CfgNode:
    """Settings of ``compare.py``."""
    c = add_usl(add_image_files(embedding_defaults()))
    c.COMPARE = CfgNode()
    # Budgets to compare at; USL.NUM_SELECTED_SAMPLES is not used.
    c.COMPARE.BUDGETS = [40]
    # Picks from elsewhere to compare too, .npy or .csv; {budget} and {seed} stand for each.
    c.COMPARE.LIST = ""
    return c


def open_pool_and_tests(cfg: CfgNode) -> tuple[AnyDataset, AnyDataset]:
    """The images to choose from, and those that test the choice; both need labels."""
    train, test = open_images(cfg, "train"), open_images(cfg, "test")
    if train.labels is None or test.labels is None:
        raise InputError(
            f"the images of DATASET.NAME {cfg.DATASET.NAME} in DATASET.ROOT_DIR have no labels to "
            "compare with; put them into folders, one a class"
        )
    return train, test


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
    unreadable = cfg.get("DATASET", {}).get("UNREADABLE", "stop")
    if unreadable not in ("stop", "skip"):
        raise InputError(f"DATASET.UNREADABLE is {unreadable!r}; choose stop or skip")
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
class Pool:
    """Features to choose from, less the rows that are left out.

    Attributes
    ----------
    features : Features
    rows : ndarray (N,), int64
        Their rows in the file, or in the data set.
    size : int
        Rows of the file, or of the data set.
    made_by : str
        Whose features they are, in words.
    """

    features: Features
    rows: np.ndarray
    size: int
    made_by: str


def read_features(section: CfgNode) -> Pool:
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
        features = unit_rows(features, str(found), rows=rows)
    values = features.numpy()
    return Pool(Features(values, fingerprint(values)), rows, size, found.name)


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


def note_pool(run: Run, pool: Pool) -> None:
    """Record which features are chosen from, and say what is odd about them."""
    run.note(size=pool.size, features=pool.features.fingerprint)
    if len(pool.rows) < pool.size and run.folder is not None:
        run.save("rows.npy", pool.rows, {"features": pool.features.fingerprint})
    selection.say_oddities(pool.features)


def encoder_unless_given(cfg: CfgNode, images: AnyDataset) -> Encoder | None:
    """The encoder of the MODEL settings; None where RUN_DIR may have its features already."""
    there = is_file(Path(cfg.RUN_DIR) / selection.FEATURES) and not cfg.SKIP_SAVE
    return None if there and not cfg.RECOMPUTE_ALL else encoder_of(cfg, images)


def embed_pool(run: Run, cfg: CfgNode, images: AnyDataset, encoder: Encoder | None) -> Pool:
    """Features of the images that can be read.

    Those dropped into RUN_DIR, such as released ones, need neither an encoder nor the images; else
    they are the encoder's, by default that of the settings. With DATASET.UNREADABLE skip, files
    that are no images are left out, and listed in unreadable.csv.

    Raises
    ------
    InputError
        No such encoder or weights, features that do not fit, or an image that cannot be read.
    """
    skip = cfg.DATASET.get("UNREADABLE") == "skip"
    given = {"images": images.fingerprint(), "encoder": cfg.MODEL.ARCH, "given": True}
    if run.given(selection.FEATURES, given):
        (values,) = run.cached([Expected(selection.FEATURES, (len(images), None))], given, list)
        assert values is not None
        scale, made_by = saved_as_it_comes(cfg.MODEL.ARCH), f"{selection.FEATURES}, given"
        run.note(dataset=images.name, images=given["images"])
    else:
        encoder = encoder or encoder_of(cfg, images)
        values, source = selection.encoded(run, cfg, encoder, images, skip_unreadable=skip)
        scale, made_by = encoder.scale, str(encoder)
        log.info("encoder %s", encoder)
        run.note(dataset=images.name, **source)
    rows = np.flatnonzero(~np.isnan(values[:, 0]))
    if len(rows) < len(images):
        values = values[rows]
        save_unreadable(run, images, np.setdiff1d(np.arange(len(images)), rows))
    features = selection.features_of(values, scale=scale, rows=rows)
    return Pool(features, rows, len(images), made_by)


def save_unreadable(run: Run, images: AnyDataset, rows: np.ndarray) -> None:
    """Write ``unreadable.csv``, with the reason for each, and say how many there are."""
    assert isinstance(images, FolderDataset)
    reasons = images.each(rows.tolist(), lambda picture: "", instead=lambda row, error: str(error))
    names = [images.paths[row] for row in rows.tolist()]
    table = pd.DataFrame({"Index": rows, "ImageID": names, "Reason": reasons})
    run.save_text("unreadable.csv", table.to_csv(index=False))
    log.warning(
        "%d of %d images cannot be read and are never picked, such as %s; see unreadable.csv",
        len(rows), len(images), names[0],
    )  # fmt: skip


def choose(
    run: Run,
    cfg: CfgNode,
    pool: Pool,
    *,
    title: str,
    facts: dict[str, Any],
    images: AnyDataset | None = None,
    csvs: bool = False,
) -> None:
    """Choose with USL from features, once for every seed: section 3 of the paper, step by step.

    Parameters
    ----------
    run, cfg
    pool : Pool
    title : str
        Of the report.
    facts : dict
        For the report.
    images : ImageDataset or FolderDataset, optional
        The images, for pictures, class counts and exports.
    csvs : bool
        Also write the CSVs of the labelled and of all other images.
    """
    budget, regularizer = cfg.USL.NUM_SELECTED_SAMPLES, regularizer_of(cfg.USL.REG)
    features, points = pool.features, Points(pool.features.values, run.device)
    note_pool(run, pool)

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
        named = pool.rows[indices]
        selection.save_picks(run, named, budget=budget, seed=seed, source=source)
        if images is not None:
            selection.export_picks(run, cfg, images, named, seed=seed)
            if csvs:
                selection.save_csvs(run, images, named, name=cfg.RUN_NAME or "usl", seed=seed)
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


def choose_at_random(cfg: CfgNode, call: Call, images: AnyDataset, *, csvs: bool = False) -> None:
    """Draw picks, once for every seed, save and show them; ``csvs`` as for :func:`choose`."""
    budget = cfg.RANDOM.NUM_SELECTED_SAMPLES
    check_budget(budget, len(images))
    check_seeds(cfg.RANDOM.SEEDS, "RANDOM.SEEDS")
    check_exports(cfg.EXPORT)
    run = begin(cfg, call)
    results = []
    for seed in cfg.RANDOM.SEEDS:
        picks = random_picks(len(images), budget, seed=seed).numpy()
        source = {"images": images.fingerprint(), "seed": seed}
        selection.save_picks(run, picks, budget=budget, seed=seed, source=source)
        selection.export_picks(run, cfg, images, picks, seed=seed)
        if csvs:
            selection.save_csvs(run, images, picks, name="random", seed=seed)
        results.append(Result(f"seed {seed}", picks))
        print_picks(results[-1], images)
    selection.finish(
        run,
        results,
        title=f"{budget} of {len(images):,} images, at random",
        facts={"Data set": images.name},
        images=images,
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
