"""Which images are labelled: the settings that name a list, and where it is looked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from usl.config.parse import CfgNode
from usl.config.paths import STAGE_FOLDERS, find_input
from usl.data.datasets import AnyDataset
from usl.distributed import is_main
from usl.errors import InputError
from usl.lists.read import Labelled, draw_labelled, read_labelled
from usl.run import log
from usl.stages.inputs import check_seeds
from usl.stages.paths import SLICE

SELECTION = "selective_labeling"
# Of files that lists can be in; what else comes after a dot belongs to the name.
ENDINGS = (".npy", ".csv", ".json", ".xml", ".zip")
# The script that leaves its picks in a folder of this name, after that of the data set.
MAKERS = {"usl": "usl-cifar.py", "usl-t": "usl-t-cifar.py", "random": "random-cifar.py"}


def add_labels(c: CfgNode) -> None:
    """Settings of stages that train on labelled images."""
    # Which images are labelled: .npy of indices; .csv with Index, or with Index,Label, whose labels
    # replace the data set's; a published list, released/NAME.csv; or slice1, slice2, … to draw as
    # many from each class. {seed} stands for each of SEEDS.
    c.LABELED_INDICES_PATH = ""
    # How many a slice has.
    c.NUM_LABELED = 40
    # One training for each.
    c.SEEDS = [0]


def read_labels(cfg: CfgNode, section: str, images: AnyDataset, *, seed: int) -> Labelled:
    """The labelled images that the LABELED_INDICES_PATH of a section names.

    A file for :func:`usl.lists.read.read_labelled`, or ``slice<number>`` for a draw of NUM_LABELED
    images. A file that is not where the name says is looked for where the original's evaluations
    have theirs: ROOT_DIR/indexes/NAME, or indices/<data set>/NAME.npy.

    Parameters
    ----------
    cfg : CfgNode
    section : str
        FINETUNE, FIXMATCH.
    images : ImageDataset or FolderDataset
        The training images.
    seed : int

    Raises
    ------
    InputError
        No file; the error says which script makes it and which published list could do. Or see
        :func:`usl.lists.read.read_labelled`.
    """
    key = f"{section}.LABELED_INDICES_PATH"
    name, budget = cfg[section].LABELED_INDICES_PATH, cfg[section].NUM_LABELED
    if not name:
        raise InputError(
            f"{key} is empty; give a .npy or .csv of labelled images, released/NAME.csv or slice1"
        )
    name = name.replace("{seed}", str(seed))
    if SLICE.fullmatch(name):
        number = int(name.removeprefix("slice"))
        check_seeds([number], key)
        return draw_labelled(images, budget, seed=number)
    what = f"list of labelled images ({key})"
    given = Path(name)
    indexes = Path(cfg.DATASET.ROOT_DIR) / "indexes"
    # A relative path was made absolute from the current folder.
    inner = given.relative_to(Path.cwd()) if given.is_relative_to(Path.cwd()) else given.name
    others = list(dict.fromkeys([indexes / inner, indexes / given.name]))
    if given.suffix.lower() not in ENDINGS:
        others = [given.parent / "indices" / images.name / f"{given.name}.npy"]
    path = find_input(name, what, advice=_other_lists(given), others=others)
    labelled = replace(read_labelled(path, images), name=_shown(path))
    return compare_counts(labelled, path, len(images.classes))


def _other_lists(missing: Path) -> str:
    """How to make a list that is not there, and which published one is like it."""
    root = next((f.parent for f in missing.parents if f.name in STAGE_FOLDERS), None)
    if root is None:
        return ""
    released = root / SELECTION / "released"
    names = sorted(path.stem for path in released.glob("*.csv"))
    if missing.parent == released:
        return f"or choose one of those there: {', '.join(names)}"
    run, advice = missing.parent.name, []
    script = MAKERS.get(run.partition("_")[2])
    if script and missing.parent.parent.parent.name == SELECTION:
        command = f"{SELECTION}/{script} --cfg configs/{run}.yaml"
        advice.append(f"or run {command}, which makes it")
    seed = missing.stem.rpartition("_")[2]
    for name in (f"{run}_seed{seed}", run):
        if name in names:
            advice.append(f"or use the published list, released/{name}.csv")
            break
    return ", ".join(advice)


def _shown(path: Path) -> str:
    """A path, from the repository's root where it lies in a stage's folder."""
    root = next((f.parent for f in path.parents if f.name in STAGE_FOLDERS), None)
    return path.relative_to(root).as_posix() if root else str(path)


def compare_counts(labelled: Labelled, path: Path, classes: int) -> Labelled:
    """Remark where a published list has other class counts than were published with it.

    Its indices then belong to other images, or to the same in another order.
    """
    published = path.with_name("class_counts.json")
    if path.parent.name != "released" or not published.exists():
        return labelled
    expected = json.loads(published.read_text(encoding="utf-8")).get(path.stem)
    if expected in (None, labelled.counts(classes)):
        return labelled
    remark = "its class counts are not those published with it: other images, or another order"
    return replace(labelled, remarks=(*labelled.remarks, remark))


def say_remarks(labelled: Labelled) -> None:
    """Log what a person should know about a list."""
    for remark in labelled.remarks:
        if is_main():
            log.warning("%s: %s", labelled.name, remark)
