"""The steps of an evaluation: which images are labelled, and what training on them was worth."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from usl.config import SLICE, STAGE_FOLDERS, CfgNode, find_input
from usl.data.datasets import AnyDataset, ImageDataset
from usl.data.labelled import Labelled, draw_labelled, read_labelled
from usl.data.strong import ScanChain
from usl.data.transforms import NORMALIZATION, check_transform
from usl.data.views import Chain
from usl.distributed import is_first
from usl.errors import InputError
from usl.models.classifier import Classifier
from usl.models.encoders import NETWORKS, load_backbone
from usl.models.resnet_cifar import CifarResNet, small_resnet
from usl.models.wideresnet import WideResNet
from usl.report.page import Table
from usl.report.training import write_training_report
from usl.run import Run, log
from usl.steps.inputs import moco_chain, open_images, pretrained_path
from usl.steps.selection import check_seeds, selector_of
from usl.steps.training import check_resume, check_sgd, plan_of, training_folder, training_settings
from usl.training.loop import Plan, Trained
from usl.training.supervised import Tester

SELECTION = "selective_labeling"
# The script that leaves its picks in a folder of this name, after that of the data set.
MAKERS = {"usl": "usl-cifar.py", "usl-t": "usl-t-cifar.py", "random": "random-cifar.py"}


def train_and_test(cfg: CfgNode) -> tuple[ImageDataset, ImageDataset]:
    """The training and test images of the DATASET settings.

    Raises
    ------
    InputError
        They do not stay in memory, which the views of 32×32 images need.
    """
    opened = []
    for split in ("train", "test"):
        images = open_images(cfg, split)
        if not isinstance(images, ImageDataset):
            raise InputError(
                f"DATASET.NAME is {cfg.DATASET.NAME!r}, whose images are files; choose cifar10, "
                "cifar100, fashion-mnist or digits"
            )
        opened.append(images)
    return opened[0], opened[1]


def read_labels(name: str, key: str, images: AnyDataset, *, seed: int, budget: int) -> Labelled:
    """The labelled images that a setting names.

    Parameters
    ----------
    name : str
        A file for :func:`usl.data.labelled.read_labelled`, or ``slice<number>`` for a draw of
        ``budget`` images. ``{seed}`` stands for the seed.
    key : str
        The setting, for errors.
    images : ImageDataset or FolderDataset
        The training images.
    seed, budget : int

    Raises
    ------
    InputError
        No file; the error says which script makes it and which published list could do. Or see
        :func:`usl.data.labelled.read_labelled`.
    """
    if not name:
        raise InputError(
            f"{key} is empty; give a .npy or .csv of labelled images, released/NAME.csv or slice1"
        )
    name = name.replace("{seed}", str(seed))
    if SLICE.fullmatch(name):
        return draw_labelled(images, budget, seed=int(name.removeprefix("slice")))
    what = f"list of labelled images ({key})"
    path = find_input(name, what, advice=_other_lists(Path(name)))
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


def _selector_of(name: str, dataset: str) -> str:
    return "stratified" if SLICE.fullmatch(name) else selector_of(name, dataset)


def compare_counts(labelled: Labelled, path: Path, classes: int) -> Labelled:
    """Remark where a published list has other class counts than were published with it.

    Its indices then belong to other images, or to the same in another order.
    """
    published = path.with_name("class_counts.json")
    if not published.exists():
        return labelled
    expected = json.loads(published.read_text(encoding="utf-8")).get(path.stem)
    if expected in (None, labelled.counts(classes)):
        return labelled
    remark = "its class counts are not those published with it: other images, or another order"
    return replace(labelled, remarks=(*labelled.remarks, remark))


def say_remarks(labelled: Labelled) -> None:
    """Log what a person should know about a list."""
    for remark in labelled.remarks:
        if is_first():
            log.warning("%s: %s", labelled.name, remark)


def training_chain(transform: str, augment: CfgNode) -> Chain:
    """How training images are augmented.

    SCAN's strong view for the normalisations FixMatch-* and SCAN-*, as in the original, else the
    MoCo v2 chain.
    """
    check_transform(transform)
    if transform.startswith(("FixMatch-", "SCAN-")):
        return ScanChain(flip=augment.FLIP, fill=NORMALIZATION[transform][0])
    return moco_chain(augment, 32)


@dataclass(frozen=True)
class Trial:
    """One training on labelled images.

    Attributes
    ----------
    seed : int
    labelled : Labelled
    plan : Plan
    images : int
        Views that an epoch has, before its incomplete last batch is dropped.
    """

    seed: int
    labelled: Labelled
    plan: Plan
    images: int

    def folder(self, run: Run) -> Path | None:
        """RUN_DIR/seed<seed>, for the checkpoint and the metrics; None with SKIP_SAVE."""
        parent = training_folder(run.cfg)
        if parent is None:
            return None
        folder = parent / f"seed{self.seed}"
        if run.folder is not None:
            folder.mkdir(exist_ok=True)
        return folder

    def settings(self, cfg: CfgNode, images: ImageDataset) -> dict[str, Any]:
        """What must be the same for an interrupted training to go on."""
        settings = training_settings(cfg, images)
        section = settings["FIXMATCH"] if "FIXMATCH" in settings else settings["FINETUNE"]
        for key in ("LABELED_INDICES_PATH", "NUM_LABELED", "SEEDS"):
            section.pop(key)
        return settings | {"labelled": self.labelled.fingerprint()}


def finetune_trials(cfg: CfgNode, images: ImageDataset) -> list[Trial]:
    """The trainings that the FINETUNE settings describe, one for each seed; all are checked."""
    check_seeds(cfg.FINETUNE.SEEDS, "FINETUNE.SEEDS")
    check_sgd(cfg.OPTIMIZER)
    if cfg.FINETUNE.REPEAT_DATA < 1:
        raise InputError(f"FINETUNE.REPEAT_DATA is {cfg.FINETUNE.REPEAT_DATA}; choose at least 1")
    trials = []
    for seed in cfg.FINETUNE.SEEDS:
        labelled = read_labels(
            cfg.FINETUNE.LABELED_INDICES_PATH,
            "FINETUNE.LABELED_INDICES_PATH",
            images,
            seed=seed,
            budget=cfg.FINETUNE.NUM_LABELED,
        )
        # Fewer views than a batch would make an epoch without a step.
        enough = -(-cfg.DATALOADER.BATCH_SIZE // len(labelled))
        repeats = max(cfg.FINETUNE.REPEAT_DATA, enough)
        plan = replace(plan_of(cfg, repeats * len(labelled)), seed=seed)
        trials.append(Trial(seed, labelled, plan, repeats * len(labelled)))
    return trials


def fixmatch_trials(cfg: CfgNode, images: ImageDataset) -> list[Trial]:
    """The trainings that the FIXMATCH settings describe, one for each seed; all are checked."""
    fixmatch = cfg.FIXMATCH
    check_seeds(fixmatch.SEEDS, "FIXMATCH.SEEDS")
    check_sgd(cfg.OPTIMIZER)
    check_resume(cfg.RESUME)
    if fixmatch.EVAL_STEPS < 1 or cfg.STEPS < 1:
        raise InputError(
            f"STEPS is {cfg.STEPS} and FIXMATCH.EVAL_STEPS {fixmatch.EVAL_STEPS}; choose at least 1"
        )
    if fixmatch.EARLY_STOP < 0:
        raise InputError(
            f"FIXMATCH.EARLY_STOP is {fixmatch.EARLY_STOP}; choose 0, for none, or more"
        )
    batch = cfg.DATALOADER.BATCH_SIZE * fixmatch.MU
    trials = []
    for seed in fixmatch.SEEDS:
        labelled = read_labels(
            fixmatch.LABELED_INDICES_PATH,
            "FIXMATCH.LABELED_INDICES_PATH",
            images,
            seed=seed,
            budget=fixmatch.NUM_LABELED,
        )
        plan = Plan(
            epochs=0,
            steps=cfg.STEPS,
            stop=fixmatch.EARLY_STOP,
            batch_size=batch,
            lr=cfg.OPTIMIZER.LR,
            schedule=cfg.SCHEDULE,
            precision=cfg.PRECISION,
            ema=cfg.EMA_DECAY,
            save_every=cfg.CHECKPOINT_STEPS,
            seed=seed,
        )
        # An epoch is what lies between two tests.
        trials.append(Trial(seed, labelled, plan, fixmatch.EVAL_STEPS * batch))
    return trials


@dataclass(frozen=True)
class Outcome:
    """What a training on labelled images was worth.

    Attributes
    ----------
    seed : int
    labelled : Labelled
    metrics : DataFrame
        One row an epoch; the last has the ``accuracy``, in percent.
    by_class : ndarray (classes,)
        Accuracy in percent; NaN for a class without test images.
    seconds : float
        Of training, without the tests.
    last : int
        How many of the last tests are averaged too; 0: none.
    """

    seed: int
    labelled: Labelled
    metrics: pd.DataFrame
    by_class: np.ndarray
    seconds: float
    last: int = 0

    @property
    def accuracy(self) -> float:
        """At the end, in percent."""
        return float(self.metrics["accuracy"].iloc[-1])

    @property
    def recent(self) -> float:
        """Mean of the ``last`` tests, or of all if there were fewer, in percent."""
        return float(self.metrics["accuracy"].dropna().tail(self.last).mean())


def training_seconds(metrics: pd.DataFrame, batch_size: int) -> float:
    """Seconds of training without tests, from its rates: also of a run that was resumed."""
    steps = metrics["step"].diff().fillna(metrics["step"])
    return float((steps * batch_size / metrics["images_per_second"]).sum())


def outcome_of(trial: Trial, trained: Trained, tester: Tester, *, last: int = 0) -> Outcome:
    """What a training has come to; with ``last``, also the mean of so many last tests."""
    by_class = tester.by_class(trained.network)
    seconds = training_seconds(trained.metrics, trial.plan.batch_size)
    return Outcome(trial.seed, trial.labelled, trained.metrics, by_class, seconds, last)


def fixmatch_network(model: CfgNode, classes: int) -> Callable[[], nn.Module]:
    """What builds the network of the MODEL settings anew for each seed; checkpoints are read once.

    Raises
    ------
    InputError
        An unknown architecture, sizes that make no network, or a checkpoint that does not fit.
    """
    if model.ARCH == "WideResNet":
        if model.PRETRAIN_PATH:
            raise InputError(
                "MODEL.PRETRAIN_PATH is set, and no WideResNet is pretrained; choose ResNet18 or "
                "SmallResNet"
            )
        WideResNet(model.DEPTH, model.WIDTH, classes)
        return lambda: WideResNet(model.DEPTH, model.WIDTH, classes)
    if model.ARCH not in NETWORKS:
        known = ", ".join(("WideResNet", *NETWORKS))
        raise InputError(f"unknown MODEL.ARCH {model.ARCH!r}; choose one of {known}")
    if model.PRETRAIN_PATH:
        trust = model.TRUST_CHECKPOINT
        pretrained = load_backbone(pretrained_path(model), model.ARCH, trust=trust)
        return lambda: Classifier(copy.deepcopy(pretrained), classes)
    sizes = small_resnet(model.WIDTH, model.DEPTH) if model.ARCH == "SmallResNet" else {}
    return lambda: Classifier(CifarResNet(**sizes), classes)


def save_outcomes(run: Run, dataset: str, outcomes: Sequence[Outcome]) -> None:
    """Write ``results.csv``, one row a training, and say what the last one was worth."""
    rows = [
        {
            "dataset": dataset,
            "selector": _selector_of(one.labelled.name, dataset),
            "budget": len(one.labelled),
            "list": one.labelled.name,
            "seed": one.seed,
            "accuracy": round(one.accuracy, 4),
            "time": round(one.seconds, 2),
        }
        | ({f"last{one.last}": round(one.recent, 4)} if one.last else {})
        for one in outcomes
    ]
    run.save_text("results.csv", pd.DataFrame(rows).to_csv(index=False))
    if is_first():
        one = outcomes[-1]
        recent = f" (mean of the last tests {one.recent:.2f})" if one.last else ""
        print(
            f"seed {one.seed}, {len(one.labelled)} labels of {one.labelled.name}: "
            f"accuracy {one.accuracy:.2f}{recent} in {one.seconds:.1f} s",
            flush=True,
        )


def mean_spread(values: Sequence[float]) -> str:
    """Mean, and with more than one value ± their standard deviation."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def finish_evaluation(
    run: Run,
    outcomes: Sequence[Outcome],
    *,
    classes: Sequence[str],
    title: str,
    facts: dict[str, Any],
) -> None:
    """Write ``report.html``, close the run, and print the accuracy, of each class and of all last.

    With several seeds: means over them, ± the standard deviation.
    """
    total = mean_spread([one.accuracy for one in outcomes])
    each = [mean_spread([one.by_class[c] for one in outcomes]) for c in range(len(classes))]
    if run.folder is not None:
        # What FixMatch calls an epoch is what lies between two of its tests.
        axis, other = ("step", "epoch") if outcomes[0].last else ("epoch", "step")
        curves = [one.metrics.drop(columns=other).set_index(axis) for one in outcomes]
        if len(outcomes) > 1:
            curves = [
                curve.add_suffix(f"/seed {one.seed}")
                for curve, one in zip(curves, outcomes, strict=True)
            ]
        path = run.folder / "report.html"
        write_training_report(
            path,
            pd.concat(curves, axis=1).reset_index(),
            title=title,
            facts=facts | {"Test accuracy": f"{total} %", "Device": str(run.device)},
            command=run.command,
            timings=run.timings,
            table=_table(outcomes, classes, each),
        )
        print(f"report: {path}", flush=True)
    run.finish()
    if is_first():
        width = max(map(len, classes))
        for name, accuracy in zip(classes, each, strict=True):
            print(f"{name:{width}}  {accuracy}")
        seeds = f" over {len(outcomes)} seeds" if len(outcomes) > 1 else ""
        if last := outcomes[0].last:
            recent = mean_spread([one.recent for one in outcomes])
            print(f"mean of at most {last} last tests: {recent}{seeds}")
        print(f"accuracy: {total}{seeds}", flush=True)


def _table(outcomes: Sequence[Outcome], classes: Sequence[str], each: Sequence[str]) -> Table:
    """Accuracies, a column a seed."""
    alike = {"all": [one.accuracy for one in outcomes]}
    if last := outcomes[0].last:
        alike[f"all, mean of at most {last} last tests"] = [one.recent for one in outcomes]
    rows = [[name, *(f"{v:.2f}" for v in values)] for name, values in alike.items()]
    for c, name in enumerate(classes):
        rows.append([name, *(f"{one.by_class[c]:.2f}" for one in outcomes)])
    head = ["accuracy in %", *(f"seed {one.seed}" for one in outcomes)]
    if len(outcomes) > 1:
        head.append("mean ± spread")
        for row, text in zip(rows, [*map(mean_spread, alike.values()), *each], strict=True):
            row.append(text)
    return Table(head, rows)
