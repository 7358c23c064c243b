"""The comparison of selectors: the settings and steps of ``compare.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pandas as pd
import torch

from usl.config.parse import CfgNode
from usl.config.paths import find_input
from usl.data.datasets import AnyDataset
from usl.errors import InputError
from usl.geometry.kmeans import Clusters
from usl.geometry.points import Points
from usl.inference import Features
from usl.lists.read import read_labelled
from usl.lists.write import selector_of
from usl.run import Run
from usl.stages import selection
from usl.stages.inputs import add_image_files, embedding_defaults, open_images
from usl.stages.usl import add_usl


def compare_defaults() -> CfgNode:
    """Settings of ``compare.py``."""
    c = add_usl(add_image_files(embedding_defaults()))
    c.COMPARE = CfgNode()
    # Budgets to compare at; USL.NUM_SELECTED_SAMPLES is not used.
    c.COMPARE.BUDGETS = [40]
    # What to compare: random, stratified, kmeans-centres, kmeans-plusplus (with k-means++'s start),
    # kmeans-best (of 8 starts), densest (of each cluster), typiclust, probcover, maxherding, rdss,
    # activeft, k-centre, d2, usl. The picks of the last one are kept and shown.
    c.COMPARE.SELECTORS = ["random", "stratified", "kmeans-centres", "densest", "usl"]
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
