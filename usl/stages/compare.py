"""The comparison of selectors: the settings of ``compare.py``, and what can be said before it runs.

What is done for each selection is in :mod:`usl.stages.cells`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from usl.config.parse import CfgNode, leaves
from usl.config.paths import find_config, find_input, get
from usl.data.datasets import AnyDataset
from usl.encoders.registry import Encoder
from usl.errors import InputError
from usl.lists.read import read_labelled
from usl.lists.write import selector_of
from usl.selectors.registry import SELECTORS, selectors_named
from usl.stages.inputs import (
    add_image_files,
    check_seeds,
    embedding_defaults,
    encoder_of,
    open_images,
)
from usl.stages.training import training_settings
from usl.stages.usl import add_usl, check_settings

# What trains on picks: its section of settings, what it is called, and the script.
TRAININGS = {
    "FINETUNE": ("fine-tuning", "semisup-simclrv2-cld/fine_tune.py"),
    "FIXMATCH": ("FixMatch", "semisup-fixmatch-cifar/train.py"),
}


def compare_defaults() -> CfgNode:
    """Settings of ``compare.py``."""
    c = add_usl(add_image_files(embedding_defaults()))
    c.COMPARE = CfgNode()
    # What to choose from: for each data set and encoder a YAML with the settings of this script,
    # looked for as that of --cfg. Empty: one, that of these settings. COMPARE.BUDGETS, SELECTORS,
    # who is trained on, USL.SEEDS, DEVICE, SKIP_SAVE and RECOMPUTE_… are said here, for all of
    # them; everything else in their YAML.
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
    # On which of the selections that are compared, and those of LISTS. No budgets: none.
    c.COMPARE.TRAIN.SELECTORS = ["random", "usl"]
    c.COMPARE.TRAIN.BUDGETS = [40]
    c.COMPARE.TRAIN.SEEDS = [1, 2, 3]
    return c


@dataclass(frozen=True)
class Training:
    """What trains on picks.

    Attributes
    ----------
    section : str
        Of its settings, which has the list.
    script, config : Path
    settings : str
        All that changes the weights, but for lists and seeds; inputs by their content.
    """

    section: str
    script: Path
    config: Path
    settings: str


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
    trainings : dict of str to Training
    """

    name: str
    cfg: CfgNode
    train: AnyDataset
    test: AnyDataset
    encoder: Encoder
    listed: dict[tuple[int, int], dict[str, torch.Tensor]]
    trainings: dict[str, Training]


# Given a script and a YAML for it, or none, its settings.
Read = Callable[[str, str], CfgNode]
# What a comparison on several pools says for all of them.
TRAINED_ON = ("COMPARE.TRAIN.SELECTORS", "COMPARE.TRAIN.BUDGETS", "COMPARE.TRAIN.SEEDS")
SHARED = (
    "COMPARE.BUDGETS", "COMPARE.SELECTORS", "USL.SEEDS", *TRAINED_ON, "DEVICE", "SKIP_SAVE",
    "SAVE_DIR_EXIST_OK", "RECOMPUTE_ALL", "RECOMPUTE_NUM_DEP",
)  # fmt: skip
# And of itself alone.
OWN = ("COMPARE.POOLS", "BASE", "RUN_NAME", "SAVE_DIR", "RUN_DIR", "OPTS_IN_RUN_NAME")


def open_benches(cfg: CfgNode, script: str, read: Read) -> list[Bench]:
    """What is compared on: the benches of COMPARE.POOLS, or the one of these settings.

    Parameters
    ----------
    cfg : CfgNode
    script : str
        ``__file__`` of the script.
    read : callable
        :func:`usl.stages.table.settings_of`.

    Raises
    ------
    InputError
        A pool that cannot be opened, or any selection or training that cannot be made: nothing has
        run.
    """
    _check(cfg)
    if not cfg.COMPARE.POOLS:
        return [_open(cfg, script, read)]
    plain = read(script, "")
    for key in leaves(cfg):
        if key not in (*SHARED, *OWN) and get(cfg, key) != get(plain, key):
            raise InputError(f"{key} is for each of COMPARE.POOLS to say, in its YAML; remove it")
    names = [Path(path).stem for path in cfg.COMPARE.POOLS]
    if len(set(names)) < len(names):
        raise InputError(f"COMPARE.POOLS has two files of one name: {', '.join(names)}; rename one")
    benches = []
    for name, path in zip(names, cfg.COMPARE.POOLS, strict=True):
        try:
            pool = _settings_of(read(script, path), cfg, name)
            benches.append(_open(pool, script, read, name))
        except InputError as error:
            raise InputError(f"COMPARE.POOLS {path}: {error}") from None
    return benches


def ranked(cfg: CfgNode) -> list[str]:
    """Titles of the selectors that are ranked: those that choose without labels."""
    return [s.title for s in selectors_named(cfg.COMPARE.SELECTORS) if not s.uses_labels]


def _check(cfg: CfgNode) -> None:
    """Raise InputError unless selectors, budgets and seeds are in order."""
    if not ranked(cfg):
        raise InputError("COMPARE.SELECTORS has none that chooses without labels; add one")
    check_seeds(cfg.USL.SEEDS, "USL.SEEDS")
    check_seeds(cfg.COMPARE.TRAIN.SEEDS, "COMPARE.TRAIN.SEEDS")
    for key in ("COMPARE.BUDGETS", "COMPARE.TRAIN.BUDGETS", "COMPARE.TRAIN.SELECTORS"):
        if len(set(values := get(cfg, key))) < len(values):
            raise InputError(f"{key} is {values}; give each once")
    for name in cfg.COMPARE.TRAIN.SELECTORS:
        if name not in SELECTORS:
            raise InputError(
                f"unknown COMPARE.TRAIN.SELECTORS {name!r}; choose some of {', '.join(SELECTORS)}"
            )


def _settings_of(pool: CfgNode, cfg: CfgNode, name: str) -> CfgNode:
    """The settings of a pool, with what the comparison has to say."""
    if pool.COMPARE.POOLS:
        raise InputError("COMPARE.POOLS belongs in the file that names the pools; remove it")
    pool = pool.clone()
    pool.defrost()
    for key in SHARED:
        *sections, last = key.split(".")
        section = pool
        for part in sections:
            section = section[part]
        section[last] = get(cfg, key)
    pool.RUN_DIR = str(Path(cfg.RUN_DIR) / name)
    pool.freeze()
    return pool


def _open(cfg: CfgNode, script: str, read: Read, name: str = "") -> Bench:
    train, test = open_images(cfg, "train"), open_images(cfg, "test")
    if train.labels is None or test.labels is None:
        raise InputError(
            f"the images of DATASET.NAME {cfg.DATASET.NAME} in DATASET.ROOT_DIR have no labels to "
            "compare with; put them into folders, one a class"
        )
    check_settings(cfg, cfg.COMPARE.BUDGETS, len(train))
    trainings = {}
    for section, (title, other) in TRAININGS.items():
        if cfg.COMPARE.TRAIN[section] and cfg.COMPARE.TRAIN.BUDGETS:
            trainings[title] = _training(
                cfg, section, Path(script).resolve().parents[1] / other, read, train
            )
    return Bench(
        name or train.name,
        cfg,
        train,
        test,
        encoder_of(cfg, train),
        _listed(cfg.COMPARE.LISTS, train, cfg.COMPARE.BUDGETS, cfg.USL.SEEDS),
        trainings,
    )


def _training(cfg: CfgNode, section: str, script: Path, read: Read, train: AnyDataset) -> Training:
    """A training that the settings name; it and what it is on must fit what is compared."""
    config = find_config(cfg.COMPARE.TRAIN[section], script.parent)
    settings = read(str(script), str(config))
    if settings.DATASET.NAME != cfg.DATASET.NAME:
        raise InputError(
            f"COMPARE.TRAIN.{section} {config} is for {settings.DATASET.NAME}, and the picks are "
            f"of {cfg.DATASET.NAME}; name another"
        )
    for key in ("DATASET.IMAGE_LIST", "DATASET.SUBSET"):
        if (get(settings, key) or "") != (get(cfg, key) or ""):
            raise InputError(
                f"COMPARE.TRAIN.{section} {config} has another {key} than the picks; give both the "
                "same"
            )
    for key in ("SKIP_SAVE", "EVAL_ONLY"):
        if settings.get(key):
            raise InputError(f"COMPARE.TRAIN.{section} {config} has {key} True; leave it False")
    if cfg.SKIP_SAVE:
        raise InputError("COMPARE.TRAIN needs the lists in RUN_DIR; leave SKIP_SAVE False")
    compared = (cfg.COMPARE.SELECTORS, cfg.COMPARE.BUDGETS, cfg.USL.SEEDS)
    for key, known in zip(TRAINED_ON, compared, strict=True):
        for value in get(cfg, key):
            if value not in known:
                raise InputError(
                    f"{key} has {value}, which is not compared; choose some of "
                    f"{', '.join(map(str, known))}"
                )
    lasting = training_settings(settings, train)
    # These are what is compared.
    for key in ("LABELED_INDICES_PATH", "SEEDS"):
        lasting[section].pop(key)
    return Training(section, script, config, json.dumps(lasting))


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
            # Names of files and titles have no use for what stands for others.
            plain = re.sub(r"[_-]?\{(budget|seed)\}", "", selector_of(pattern, images.name))
            name = f"listed {plain}"
            if name in found[budget, seed]:
                raise InputError(f"COMPARE.LISTS has two of {name!r}; rename one")
            found[budget, seed][name] = listed.indices
    return found
