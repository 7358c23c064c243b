"""The comparison of selectors: the settings of ``compare.py``, and what can be said before it runs.

What is done for each selection is in :mod:`usl.stages.cells`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from usl.config.parse import CfgNode
from usl.config.paths import find_config, find_input
from usl.data.datasets import AnyDataset
from usl.encoders.registry import Encoder
from usl.errors import InputError
from usl.lists.read import read_labelled
from usl.lists.write import selector_of
from usl.selectors.registry import selectors_named
from usl.stages.inputs import (
    add_image_files,
    check_seeds,
    embedding_defaults,
    encoder_of,
    open_images,
)
from usl.stages.usl import add_usl, check_settings

# What trains on picks: the setting that names its YAML, and the script.
TRAININGS = {
    "FINETUNE": ("fine-tuning", "semisup-simclrv2-cld/fine_tune.py"),
    "FIXMATCH": ("FixMatch", "semisup-fixmatch-cifar/train.py"),
}


def compare_defaults() -> CfgNode:
    """Settings of ``compare.py``."""
    c = add_usl(add_image_files(embedding_defaults()))
    c.COMPARE = CfgNode()
    # What to choose from: for each data set and encoder a YAML with the settings of this script,
    # looked for as that of --cfg. Empty: one, that of these settings. COMPARE, but for LISTS and
    # the YAML files of TRAIN, USL.SEEDS, DEVICE and RECOMPUTE_… are not theirs to say.
    c.COMPARE.POOLS = []
    # Budgets to compare at; USL.NUM_SELECTED_SAMPLES is not used.
    c.COMPARE.BUDGETS = [40]
    # What to compare: random, stratified, kmeans-centres, kmeans-plusplus (with k-means++'s start),
    # kmeans-best (of 8 starts), densest (of each cluster), typiclust, probcover, maxherding,
    # k-medoids, rdss, activeft, k-centre, d2, hierarchical (k-means), usl, tightest (of eight
    # k-means with spread starts), usl-tightest (on its clusters).
    c.COMPARE.SELECTORS = ["random", "stratified", "kmeans-centres", "densest", "usl"]
    # Picks from elsewhere to compare too, each .npy or .csv; {budget} and {seed} stand for each.
    c.COMPARE.LISTS = []
    c.COMPARE.TRAIN = CfgNode()
    # What also trains on picks: a YAML of semisup-simclrv2-cld/fine_tune.py, and one of
    # semisup-fixmatch-cifar/train.py. Empty: nothing.
    c.COMPARE.TRAIN.FINETUNE = ""
    c.COMPARE.TRAIN.FIXMATCH = ""
    # On which of the selections that are compared, and those of LIST. No budgets: none.
    c.COMPARE.TRAIN.SELECTORS = ["random", "usl"]
    c.COMPARE.TRAIN.BUDGETS = [40]
    c.COMPARE.TRAIN.SEEDS = [1, 2, 3]
    return c


@dataclass(frozen=True)
class Bench:
    """A data set and an encoder, on which selectors are compared.

    Attributes
    ----------
    name : str
        For tables.
    cfg : CfgNode
        Its settings.
    train, test : ImageDataset or FolderDataset
        The images to choose from, and those that test the choice; both with labels.
    encoder : Encoder
    listed : dict
        Picks from elsewhere, by budget and seed, then by what they are called.
    trainings : dict of str to (str, Path, Path)
        What else trains on picks: its section of settings, script and YAML.
    """

    name: str
    cfg: CfgNode
    train: AnyDataset
    test: AnyDataset
    encoder: Encoder
    listed: dict[tuple[int, int], dict[str, torch.Tensor]]
    trainings: dict[str, tuple[str, Path, Path]]


def open_benches(cfg: CfgNode, stage: Path, read: Callable[[str], CfgNode]) -> list[Bench]:
    """What is compared on: the benches of COMPARE.POOLS, or the one of these settings.

    Parameters
    ----------
    cfg : CfgNode
    stage : Path
        Folder of the script.
    read : callable
        Returns the settings of a YAML.

    Raises
    ------
    InputError
        A pool that cannot be opened, or any selection of it that cannot be made: nothing has run.
    """
    _check(cfg)
    if not cfg.COMPARE.POOLS:
        return [_open(cfg, stage)]
    names = [Path(path).stem for path in cfg.COMPARE.POOLS]
    if len(set(names)) < len(names):
        raise InputError(f"COMPARE.POOLS has two files of one name: {', '.join(names)}; rename one")
    benches = []
    for name, path in zip(names, cfg.COMPARE.POOLS, strict=True):
        try:
            benches.append(_open(_settings_of(read(path), cfg, name), stage, name))
        except InputError as error:
            raise InputError(f"COMPARE.POOLS {path}: {error}") from None
    return benches


def ranked(cfg: CfgNode) -> list[str]:
    """Titles of the selectors that are ranked: those that choose without labels."""
    return [s.title for s in selectors_named(cfg.COMPARE.SELECTORS) if not s.uses_labels]


def _check(cfg: CfgNode) -> None:
    """Raise InputError unless selectors and seeds are in order."""
    if not ranked(cfg):
        raise InputError("COMPARE.SELECTORS has none that chooses without labels; add one")
    check_seeds(cfg.USL.SEEDS, "USL.SEEDS")


def _check_trained_on(cfg: CfgNode) -> None:
    """Raise InputError unless what networks are trained on is among what is compared."""
    compared = {
        "SELECTORS": cfg.COMPARE.SELECTORS, "BUDGETS": cfg.COMPARE.BUDGETS, "SEEDS": cfg.USL.SEEDS,
    }  # fmt: skip
    for key, known in compared.items():
        for value in cfg.COMPARE.TRAIN[key] if cfg.COMPARE.TRAIN.BUDGETS else ():
            if value not in known:
                raise InputError(
                    f"COMPARE.TRAIN.{key} has {value}, which is not compared; choose some of "
                    f"{', '.join(map(str, known))}"
                )


def _settings_of(pool: CfgNode, cfg: CfgNode, name: str) -> CfgNode:
    """The settings of a pool, with what the comparison has to say."""
    pool = pool.clone()
    pool.defrost()
    for key in ("DEVICE", "SKIP_SAVE", "SAVE_DIR_EXIST_OK", "RECOMPUTE_ALL", "RECOMPUTE_NUM_DEP"):
        pool[key] = cfg[key]
    for key in ("BUDGETS", "SELECTORS"):
        pool.COMPARE[key] = cfg.COMPARE[key]
    for key in ("BUDGETS", "SELECTORS", "SEEDS"):
        pool.COMPARE.TRAIN[key] = cfg.COMPARE.TRAIN[key]
    pool.USL.SEEDS = cfg.USL.SEEDS
    pool.RUN_DIR = str(Path(cfg.RUN_DIR) / name)
    pool.freeze()
    return pool


def _open(cfg: CfgNode, stage: Path, name: str = "") -> Bench:
    train, test = open_images(cfg, "train"), open_images(cfg, "test")
    if train.labels is None or test.labels is None:
        raise InputError(
            f"the images of DATASET.NAME {cfg.DATASET.NAME} in DATASET.ROOT_DIR have no labels to "
            "compare with; put them into folders, one a class"
        )
    check_settings(cfg, cfg.COMPARE.BUDGETS, len(train))
    trainings = {}
    for key, (title, script) in TRAININGS.items():
        if cfg.COMPARE.TRAIN[key]:
            path = stage.parent / script
            config = find_config(cfg.COMPARE.TRAIN[key], path.parent)
            trainings[title] = key, path, config
            _check_trained_on(cfg)
    return Bench(
        name or train.name,
        cfg,
        train,
        test,
        encoder_of(cfg, train),
        _listed(cfg.COMPARE.LISTS, train, cfg.COMPARE.BUDGETS, cfg.USL.SEEDS),
        trainings,
    )


def _listed(
    patterns: Sequence[str], images: AnyDataset, budgets: Sequence[int], seeds: Sequence[int]
) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Picks that were made elsewhere, by budget and seed, then by the name of their selector.

    ``patterns`` are lists for :func:`usl.lists.read.read_labelled`, in whose names {budget} and
    {seed} stand for each.

    Raises
    ------
    InputError
        No such list, or one of another length.
    """
    found: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for budget, seed in product(budgets, seeds):
        found[budget, seed] = {}
        for pattern in patterns:
            path = pattern.replace("{budget}", str(budget)).replace("{seed}", str(seed))
            listed = read_labelled(find_input(path, "list of picks (COMPARE.LISTS)"), images)
            if len(listed) != budget:
                raise InputError(f"{path} has {len(listed)} picks, and the budget is {budget}")
            name = f"listed {selector_of(pattern, images.name)}"
            if name in found[budget, seed]:
                raise InputError(f"COMPARE.LISTS has two of {name!r}; rename one")
            found[budget, seed][name] = listed.indices
    return found
