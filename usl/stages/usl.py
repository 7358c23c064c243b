"""USL: its settings, and its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from usl.cli import Call
from usl.config.parse import CfgNode
from usl.config.paths import find_input
from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.engines.local import Local
from usl.errors import InputError
from usl.geometry.kmeans import Clusters
from usl.geometry.points import Points, check_budget
from usl.lists.exports import check_exports
from usl.lists.read import Known, read_known
from usl.lists.write import Selected, selected_csv
from usl.report.selection import Duplicates, Result, print_picks
from usl.run import Run, log
from usl.selectors.registry import Context, chosen_by, selectors_named
from usl.selectors.regularizer import Regularizer
from usl.selectors.usl import check_labelled
from usl.stages import report, selection
from usl.stages.duplicates import check_duplicates, leave_out_duplicates
from usl.stages.inputs import (
    add_engine,
    add_image_files,
    add_recompute,
    begin,
    check_seeds,
    embedding_defaults,
    engine_of,
    run_defaults,
)
from usl.stages.pool import Pool, add_features, embed_pool, encoder_unless_given, note_pool

NONE_KNOWN = Known([], 0)


def add_usl(c: CfgNode) -> CfgNode:
    """Settings of USL."""
    c.USL = CfgNode()
    # The budget: how many images can be labelled.
    c.USL.NUM_SELECTED_SAMPLES = 40
    # Neighbours that make the density, the image itself included; 0: a quarter of a mean cluster,
    # from 10 to 400.
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
    # Who searches neighbours: auto; torch; compiled, on CPUs and faster; keops; faiss. All find the
    # same ones. Only cells, for more than a million images, is approximate: it looks into nearby
    # cells, and what it misses is measured, and said in the report.
    c.KNN.BACKEND = "auto"
    return c


def add_kmeans(c: CfgNode) -> CfgNode:
    """Settings of stages whose budgets may outgrow Lloyd's k-means."""
    # One k-means of all images: lloyd, as published. hierarchical, for more than 100 000 picks: of
    # few clusters, and then of the images of each.
    c.USL.K_MEANS = "lloyd"
    return c


def add_labelled(c: CfgNode) -> CfgNode:
    """Settings of stages that go on from labels."""
    # Images whose labels are known already: .npy of indices, .csv with Index or a file's name, or
    # an export of Label Studio or CVAT. Their clusters are taken, and as many picks as the budget
    # are new.
    c.USL.LABELED_INDICES_PATH = ""
    return c


def add_selector(c: CfgNode) -> CfgNode:
    """Settings of stages that choose for anyone, not as the original does."""
    # The rule: usl, or usl-tightest; or one that USL.REG says nothing to: tightest, random,
    # kmeans-centres, kmeans-plusplus, kmeans-best, densest, typiclust, probcover, maxherding,
    # k-medoids, rdss, activeft, k-centre, d2, hierarchical.
    c.SELECTOR = "usl"
    return c


def usl_defaults() -> CfgNode:
    """Settings of ``usl-cifar.py``."""
    c = add_labelled(selection.add_export(add_usl(embedding_defaults())))
    return add_engine(add_kmeans(c))


def usl_imagenet_defaults() -> CfgNode:
    """Settings of ``usl-imagenet.py``."""
    c = add_image_files(usl_defaults())
    # Files that are no images: stop, or skip: they are listed in unreadable.csv and never picked.
    c.DATASET.UNREADABLE = "stop"
    c.USL.REG.HORIZON = "num"
    return c


def features_defaults() -> CfgNode:
    """Settings of ``usl-features.py``."""
    c = selection.add_export(add_features(add_usl(add_recompute(run_defaults()))))
    add_engine(add_kmeans(add_selector(add_labelled(c))))
    # Rows to leave out, which keep their numbers: a .npy of indices, a .csv with a column Index, or
    # nan for those with NaN or infinite values.
    c.FEATURES.EXCLUDE = ""
    # A column of a .csv or .parquet that names the rows, for selected.csv.
    c.FEATURES.ID_COLUMN = ""
    # Pictures for the report: a column of a .csv or .parquet, or a text file of one path a line;
    # all below the folder of FEATURES.PATH.
    c.FEATURES.IMAGES = ""
    return c


def check_settings(cfg: CfgNode, budgets: Sequence[int], images: int) -> None:
    """Raise InputError where the settings ask the impossible of ``images`` images."""
    if not budgets:
        raise InputError("COMPARE.BUDGETS is empty; give at least one budget")
    for budget in budgets:
        check_budget(budget, images)
    check_seeds(cfg.USL.SEEDS, "USL.SEEDS")
    check_selector(cfg)
    k = selection.neighbors_for(cfg.USL.KNN_K, images, max(budgets))
    selection.check_density(k, cfg.KNN.BACKEND, images)
    if cfg.USL.K_MEANS_NITERS < 1:
        raise InputError(f"USL.K_MEANS_NITERS is {cfg.USL.K_MEANS_NITERS}; choose at least 1")
    if cfg.USL.get("K_MEANS", "lloyd") not in ("lloyd", "hierarchical"):
        raise InputError(f"USL.K_MEANS is {cfg.USL.K_MEANS!r}; choose lloyd or hierarchical")
    unreadable = cfg.get("DATASET", {}).get("UNREADABLE", "stop")
    if unreadable not in ("stop", "skip"):
        raise InputError(f"DATASET.UNREADABLE is {unreadable!r}; choose stop or skip")
    if "DATALOADER" in cfg and cfg.DATALOADER.BATCH_SIZE < 1:
        raise InputError(f"DATALOADER.BATCH_SIZE is {cfg.DATALOADER.BATCH_SIZE}; choose at least 1")
    check_exports(cfg.get("EXPORT", []), cfg.get("EXPORT_CLASSES", []))
    check_duplicates(cfg.USL)
    if cfg.get("EXPORT") and "IMAGES" in cfg.get("FEATURES", {}) and not cfg.FEATURES.IMAGES:
        raise InputError("EXPORT needs the files of the rows; give FEATURES.IMAGES")
    regularizer_of(cfg.USL.REG)


def check_selector(cfg: CfgNode) -> None:
    """Raise InputError unless SELECTOR, where there is one, can choose here."""
    name = cfg.get("SELECTOR", "usl")
    (selector,) = selectors_named([name])
    if selector.uses_labels:
        raise InputError(
            f"SELECTOR {name} needs the labels of all images, which are to be saved; choose another"
        )
    if name == "usl":
        return
    if cfg.USL.LABELED_INDICES_PATH:
        raise InputError(
            f"SELECTOR {name} does not go on from USL.LABELED_INDICES_PATH; only usl does"
        )
    if cfg.USL.K_MEANS != "lloyd":
        raise InputError(f"SELECTOR {name} has no USL.K_MEANS {cfg.USL.K_MEANS}; only usl has")
    if cfg.MEMORY_GB:
        raise InputError(f"SELECTOR {name} does not keep to MEMORY_GB; only usl does")


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


def _within(regularizer: Regularizer, budget: int) -> str:
    """Which picks a regulariser sums over, in words."""
    if regularizer.horizon == "num":
        return f"the {min(budget, regularizer.horizon_num)} nearest picks"
    return f"picks nearer than {regularizer.horizon_dist:g} (squared)"


def read_labelled_rows(
    cfg: CfgNode, size: int, ids: Sequence[str] | None, images: AnyDataset | None
) -> Known:
    """The rows of a data set that USL.LABELED_INDICES_PATH names, and the round that made it.

    ``ids`` (size,) are what its rows are called, unless its images are.
    """
    path = cfg.USL.LABELED_INDICES_PATH
    if not path:
        return NONE_KNOWN
    found = find_input(path, "list of labelled images (USL.LABELED_INDICES_PATH)")
    names = images.paths if isinstance(images, FolderDataset) else ids
    return read_known(found, names, size, ids=ids)


def labelled_in(pool: Pool, known: Known) -> torch.Tensor:
    """Rows of the pool whose labels are known, (L,), int64; for what is left out its stand-in."""
    named = known.rows if pool.stand_in is None else pool.stand_in[known.rows]
    return torch.from_numpy(np.flatnonzero(np.isin(pool.rows, named)))


def choose_images(
    cfg: CfgNode, call: Call, images: AnyDataset, *, title: str, csvs: bool = False
) -> None:
    """Embed images and choose from them; ``title`` names them in the report, ``csvs`` as below."""
    budget = cfg.USL.NUM_SELECTED_SAMPLES
    check_settings(cfg, [budget], len(images))
    check_exports(cfg.EXPORT, cfg.EXPORT_CLASSES, images)
    known = read_labelled_rows(cfg, len(images), None, images)
    check_labelled(known.rows, budget, len(images))
    encoder, engine = encoder_unless_given(cfg, images), engine_of(cfg)
    run = begin(cfg, call)

    # Features of every image, in the order of the data set.
    pool, duplicates = embed_pool(run, cfg, images, encoder, engine=engine), None
    if "MERGE_NEAR_DUPLICATES" in cfg.USL and isinstance(images, FolderDataset):
        pool, duplicates = leave_out_duplicates(run, cfg, pool, images, engine=engine)

    # Density, clusters, and from each cluster a dense image far from the other picks.
    choose(
        run,
        cfg,
        pool,
        engine=engine,
        images=images,
        csvs=csvs,
        known=known,
        duplicates=duplicates,
        title=f"{budget} of {len(images):,} images worth labelling",
        facts={"Data set": title, "Encoder": pool.made_by},
    )


def choose(
    run: Run,
    cfg: CfgNode,
    pool: Pool,
    *,
    engine: Local,
    title: str,
    facts: dict[str, Any],
    images: AnyDataset | None = None,
    csvs: bool = False,
    known: Known = NONE_KNOWN,
    duplicates: Duplicates | None = None,
) -> None:
    """Choose with USL from features, once for every seed: section 3 of the paper, step by step.

    Parameters
    ----------
    run, cfg
    pool : Pool
    engine : Local or another engine
        Where neighbours, clusters and picks are computed.
    title : str
        Of the report.
    facts : dict
        For the report.
    images : ImageDataset or FolderDataset, optional
        The images, for pictures, class counts and exports.
    csvs : bool
        Also write the CSVs of the labelled and of all other images.
    known : Known
        From :func:`read_labelled_rows`.
    duplicates : Duplicates, optional
        For the report.
    """
    budget, regularizer = cfg.USL.NUM_SELECTED_SAMPLES, regularizer_of(cfg.USL.REG)
    rule = cfg.get("SELECTOR", "usl")
    labelled = labelled_in(pool, known)
    if known.rows:
        log.info("images that are labelled already: %d; round %d", len(labelled), known.round + 1)
    check_labelled(labelled, budget, len(pool.features))
    features = pool.features
    points = Points(features.values, run.device, engine=engine)
    note_pool(run, pool)

    # 1. How dense is the feature space around each image?
    k = selection.neighbors_for(cfg.USL.KNN_K, len(features), budget)
    # Fewer than there are files, where some cannot be read.
    check_budget(budget, len(features))
    selection.check_density(k, cfg.KNN.BACKEND, len(features))
    log.info(
        "density from the %d nearest of %d images; regulariser of weight %g over %s",
        k, len(features), regularizer.weight, _within(regularizer, budget),
    )  # fmt: skip
    steps = "neighbours, clusters and picks" if rule == "usl" else "neighbours"
    log.info("%s on %s", steps, engine)
    run.note(engine=str(engine))
    density = selection.neighbors(run, features, points, k=k, backend=cfg.KNN.BACKEND)
    results: list[Result] = []
    selected, coverage = [], None
    for seed in cfg.USL.SEEDS:
        # 2. One cluster for every label we can afford.
        def cluster(budget: int, seed: int) -> Clusters:
            return selection.clusters(
                run, features, points, budget=budget, seed=seed, iterations=cfg.USL.K_MEANS_NITERS,
                hierarchical=cfg.USL.K_MEANS == "hierarchical",
                dataset="" if images is None else images.name, labelled=len(labelled),
            )  # fmt: skip

        # 3. From each, a dense image far from the other picks; or what another rule chooses.
        if rule == "usl":
            grouped = cluster(budget, seed)
            chosen, source = selection.picks(
                run, features, points, density, grouped,
                budget=budget, seed=seed, regularizer=regularizer, labelled=labelled,
            )  # fmt: skip
        else:
            (selector,) = selectors_named([rule])
            iterations = cfg.USL.K_MEANS_NITERS
            context = Context(points, density.density, cluster, regularizer, iterations)
            with run.timed("picks"):
                grouped, chosen = chosen_by(selector, context, budget, seed=seed)
            source = {
                "features": features.fingerprint, "selector": rule, "seed": seed,
                "regularizer": vars(regularizer), "iterations": iterations,
            }  # fmt: skip
        indices = chosen.indices.numpy()
        named = pool.rows[indices]
        selection.save_picks(run, named, budget=budget, seed=seed, source=source)
        if images is not None and "EXPORT" in cfg:
            selection.export_picks(run, cfg, images, named, seed=seed, unreadable=pool.unreadable)
        if images is not None and csvs:
            selection.save_csvs(
                run, images, named,
                name=cfg.RUN_NAME or "usl", seed=seed, unreadable=pool.unreadable,
            )  # fmt: skip
        if isinstance(images, FolderDataset):
            selection.copy(run, cfg, images, named, seed=seed)
        sizes = grouped.sizes[chosen.clusters].numpy()
        near = density.density[indices].numpy()
        selected.append(Selected(seed, named, chosen.clusters.numpy(), sizes, near))
        around = {}
        if not results and run.folder is not None:
            around = report.surroundings(points, density, grouped, chosen, pool.rows)
            coverage = report.coverage(points, density, chosen)
        results.append(
            Result(
                f"seed {seed}", named, sizes,
                on_map=indices, clusters=chosen.clusters.numpy(), **around,
            )
        )  # fmt: skip
        print_picks(results[-1], images)

    # 4. Show them.
    run.save_text("selected.csv", selected_csv(selected, pool.ids, round=known.round + 1))
    report.finish(
        run,
        results,
        title=title,
        facts=facts
        | {"Selector": selectors_named([cfg.get("SELECTOR", "usl")])[0].title}
        | {"Neighbours": selection.neighbors_fact(k, cfg.KNN.BACKEND, density)},
        images=images,
        points=points,
        color=density.density,
        coverage=coverage,
        duplicates=duplicates,
    )
