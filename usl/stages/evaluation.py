"""What labelled images are worth: one training for each seed, tested, compared and reported.

Fine-tuning on CIFAR or ImageNet and FixMatch differ by their :class:`Method`; the loop over trials
is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from usl import distributed
from usl.augment.views import ImageViews
from usl.checkpoints import load_weights, read_checkpoint, resumable
from usl.cli import Call, choose_device
from usl.config.parse import CfgNode
from usl.data.datasets import AnyDataset
from usl.distributed import is_main
from usl.errors import InputError
from usl.lists.read import Labelled
from usl.lists.write import csv_for_people, selector_of
from usl.report.page import Table
from usl.report.training import write_training_report
from usl.run import Run
from usl.stages.inputs import begin, open_images, preprocess_of, views_of
from usl.stages.labels import say_remarks
from usl.stages.paths import SLICE
from usl.stages.training import (
    check_checkpoint,
    resume_of,
    tested_checkpoint,
    training_folder,
    training_settings,
)
from usl.training.layouts import Layout, exporting
from usl.training.loop import Plan, Step, Trained, check_own, fit
from usl.training.resume import CHECKPOINT
from usl.training.supervised import AccuracyEvaluator


def add_evaluation(c: CfgNode) -> CfgNode:
    """Settings of stages that say what labelled images are worth."""
    # Train nothing and write nothing: test the checkpoint of RESUME, or else RUN_DIR's.
    c.EVAL_ONLY = False
    return c


def open_splits(cfg: CfgNode) -> tuple[AnyDataset, AnyDataset]:
    """The training and test images of the DATASET settings.

    Training images need no labels, where a person's answers are in a list: their classes are then
    those of the test images.

    Raises
    ------
    InputError
        The test images have no labels, so that nothing can be tested.
    """
    train, test = open_images(cfg, "train"), open_images(cfg, "test")
    if test.labels is None:
        raise InputError(
            f"the test images of {test.name} have no labels, so accuracy cannot be tested; put "
            "them in one folder a class, below val"
        )
    return (train if train.classes else replace(train, classes=test.classes)), test


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


# Classes whose accuracies are printed and in the report; of more they are in the file alone.
SHOWN = 100
PER_CLASS = "per_class.csv"
Prepare = Callable[[Tensor, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to train on labelled images.

    Attributes
    ----------
    network : callable
        Builds the network of a trial, new or pretrained; called right after ``torch.manual_seed``.
    step : callable
        Given the views of the training images and the trial, returns what makes its step and what
        prepares the next one; see :func:`usl.training.loop.fit`.
    optimizer : callable
        Given the network.
    test_batch : int
        Images that are tested at once.
    section : str
        Of the settings that name the labelled images.
    last : int
        How many of the last tests are averaged too; 0: none.
    top5 : bool
        Also test whether the right class is among the five most probable.
    whole : bool
        Random views are crops of the image as it is, not as it is resized for tests.
    check : callable
        Raises InputError where so many processes cannot train; called when they are there.
    layout : callable, optional
        Given the trial, returns the layout that its checkpoints are also written in.
    name : str
        Of those checkpoints.
    """

    network: Callable[[], nn.Module]
    step: Callable[[ImageViews, Trial], tuple[Callable[[nn.Module], Step], Prepare]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    test_batch: int
    section: str = "FINETUNE"
    last: int = 0
    top5: bool = False
    whole: bool = False
    check: Callable[[], None] = lambda: None
    layout: Callable[[Trial], Layout] | None = None
    name: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a training on labelled images was worth.

    Attributes
    ----------
    seed : int
    labelled : Labelled
    metrics : DataFrame
        One row an epoch; the last has the ``accuracy``, in percent, and, where the evaluated
        network is an average, ``accuracy/raw`` of the trained one.
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
    def top5(self) -> float | None:
        """At the end, in percent: the right class is among the five most probable, if asked."""
        top5 = self.metrics.get("top5")
        return None if top5 is None else float(top5.iloc[-1])

    @property
    def accuracy(self) -> float:
        """At the end, in percent."""
        return float(self.metrics["accuracy"].iloc[-1])

    @property
    def raw(self) -> float | None:
        """Of the trained network at the end, in percent, where the evaluated one is an average."""
        raw = self.metrics.get("accuracy/raw")
        return None if raw is None else float(raw.iloc[-1])

    @property
    def recent(self) -> float:
        """Mean of the ``last`` tests, or of all if there were fewer, in percent."""
        return float(self.metrics["accuracy"].dropna().tail(self.last).mean())


def evaluate(
    cfg: CfgNode,
    call: Call,
    method: Method,
    trials: Sequence[Trial],
    splits: tuple[AnyDataset, AnyDataset],
    *,
    title: str,
    facts: dict[str, Any],
    inputs: dict[str, Any] | None = None,
) -> None:
    """Train and test every trial; write the results, the checkpoints and the report.

    Parameters
    ----------
    cfg, call
    method : Method
    trials : sequence of Trial
    splits : (train, test)
    title : str
        Of the report.
    facts : dict
        For the report.
    inputs : dict, optional
        For the record: what the training starts from.
    """
    train, test = splits
    device, backend = choose_device(cfg.DEVICE), cfg.get("DIST", {}).get("BACKEND", "")
    with distributed.processes(device, backend=backend) as device:
        method.check()
        for trial in trials:
            trial.plan.check(trial.images)
            if cfg.EVAL_ONLY:
                _tested_checkpoint(cfg, trial)
                continue
            check_own(
                trial.plan,
                images=trial.images,
                folder=_folder_of(trial, cfg),
                settings=_settings_of(trial, cfg, train, method.section),
                resume=resume_of(cfg, trial.seed),
            )
            if isinstance(resume_of(cfg, trial.seed), Path):
                network = method.network()
                check_checkpoint(cfg, trial.seed, network, method.optimizer(network))
        preprocess = preprocess_of(cfg, train)
        views = views_of(cfg, train, device=device, whole=method.whole)
        run = begin(cfg, call, save=not cfg.EVAL_ONLY)
        lists = {trial.seed: trial.labelled.fingerprint() for trial in trials}
        run.note(dataset=train.name, images=train.fingerprint(), labelled=lists, **(inputs or {}))
        outcomes = []
        for trial in trials:
            say_remarks(trial.labelled)
            torch.manual_seed(trial.seed)
            network = method.network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            evaluator = AccuracyEvaluator(
                test,
                preprocess,
                batch_size=method.test_batch,
                device=device,
                top5=method.top5,
            )
            with run.timed(f"training and tests, seed {trial.seed}"):
                if cfg.EVAL_ONLY:
                    trained = _tested(cfg, trial, network, evaluator)
                else:
                    settings = _settings_of(trial, cfg, train, method.section)
                    trained = _trained(cfg, run, method, trial, network, views, evaluator, settings)
            outcomes.append(outcome_of(trial, trained, evaluator, last=method.last))
            save_outcomes(run, train.name, outcomes)
        finish(run, outcomes, classes=train.classes, title=title, facts=facts)


def _trained(
    cfg: CfgNode,
    run: Run,
    method: Method,
    trial: Trial,
    network: nn.Module,
    views: ImageViews,
    evaluator: AccuracyEvaluator,
    settings: dict[str, Any],
) -> Trained:
    """Train the network of a trial."""
    folder = _folder_of(trial, cfg)
    if folder is not None and run.folder is not None:
        folder.mkdir(exist_ok=True)
    make_step, prepare = method.step(views, trial)
    resume = resume_of(cfg, trial.seed)
    export = None
    if method.layout is not None and folder is not None:
        export = exporting(folder, method.layout(trial), name=method.name)
    return fit(
        network,
        make_step,
        method.optimizer(network),
        trial.plan,
        images=trial.images,
        device=views.device,
        folder=folder,
        settings=settings,
        resume=resume,
        prepare=prepare,
        evaluate=evaluator,
        export=export,
    )


def _tested(
    cfg: CfgNode, trial: Trial, network: nn.Module, evaluator: AccuracyEvaluator
) -> Trained:
    """Test the checkpoint of a trial."""
    path = _tested_checkpoint(cfg, trial)
    weights, average = resumable(read_checkpoint(path), path)
    load_weights(network, average or weights, where=str(path))
    row = {"epoch": 0, "step": 0, "images_per_second": np.nan} | evaluator(network.eval())
    return Trained(network, pd.DataFrame([row]))


def _tested_checkpoint(cfg: CfgNode, trial: Trial) -> Path:
    """The checkpoint of a trial that EVAL_ONLY tests; InputError where there is none."""
    return tested_checkpoint(cfg, trial.seed, Path(cfg.RUN_DIR) / f"seed{trial.seed}" / CHECKPOINT)


def _folder_of(trial: Trial, cfg: CfgNode) -> Path | None:
    """RUN_DIR/seed<seed>, for the checkpoint and the metrics; None with SKIP_SAVE."""
    parent = training_folder(cfg)
    return None if parent is None else parent / f"seed{trial.seed}"


def _settings_of(trial: Trial, cfg: CfgNode, images: AnyDataset, section: str) -> dict[str, Any]:
    """What must be the same for an interrupted training to go on."""
    settings = training_settings(cfg, images)
    for key in ("LABELED_INDICES_PATH", "NUM_LABELED", "SEEDS"):
        settings[section].pop(key)
    return settings | {"labelled": trial.labelled.fingerprint()}


def training_seconds(metrics: pd.DataFrame, batch_size: int, *, began: int = 0) -> float:
    """Seconds of training without tests, from its rates: also of a run that was resumed.

    ``began``: the step before the first row's.
    """
    steps = metrics["step"].diff().fillna(metrics["step"] - began)
    return float((steps * batch_size / metrics["images_per_second"]).sum())


def outcome_of(
    trial: Trial, trained: Trained, evaluator: AccuracyEvaluator, *, last: int = 0
) -> Outcome:
    """What a training has come to; with ``last``, also the mean of so many last tests."""
    by_class = evaluator.by_class(trained.network)
    seconds = training_seconds(trained.metrics, trial.plan.batch_size, began=trained.began)
    return Outcome(trial.seed, trial.labelled, trained.metrics, by_class, seconds, last)


def save_outcomes(run: Run, dataset: str, outcomes: Sequence[Outcome]) -> None:
    """Write ``results.csv``, one row a training, and say what the last one was worth."""
    rows = []
    for one in outcomes:
        row = {
            "dataset": dataset,
            "selector": _selector_of(one.labelled.name, dataset),
            "budget": len(one.labelled),
            "list": one.labelled.name,
            "seed": one.seed,
            "accuracy": round(one.accuracy, 4),
            "time": round(one.seconds, 2),
        }
        if one.top5 is not None:
            row["top5"] = round(one.top5, 4)
        if one.last:
            row[f"last{one.last}"] = round(one.recent, 4)
        if one.raw is not None:
            row["accuracy_raw"] = round(one.raw, 4)
        rows.append(row)
    run.save_text("results.csv", csv_for_people(pd.DataFrame(rows)))
    if is_main():
        one = outcomes[-1]
        recent = f" (mean of the last tests {one.recent:.2f})" if one.last else ""
        raw = "" if one.raw is None else f", {one.raw:.2f} without averaging its weights"
        print(
            f"seed {one.seed}, {one.labelled} of {one.labelled.name}: "
            f"accuracy {one.accuracy:.2f}{recent}{raw} in {one.seconds:.1f} s",
            flush=True,
        )


def _selector_of(name: str, dataset: str) -> str:
    return "stratified" if SLICE.fullmatch(name) else selector_of(name, dataset)


def mean_std(values: Sequence[float]) -> str:
    """Mean, and with more than one value ± their standard deviation."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def finish(
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
    total = mean_std([one.accuracy for one in outcomes])
    each = [mean_std([one.by_class[c] for one in outcomes]) for c in range(len(classes))]
    by_class = {f"seed {one.seed}": one.by_class.round(4) for one in outcomes}
    run.save_text(PER_CLASS, csv_for_people(pd.DataFrame({"class": classes} | by_class)))
    if run.folder is not None:
        # What FixMatch calls an epoch is what lies between two of its tests.
        axis, other = ("step", "epoch") if outcomes[0].last else ("epoch", "step")
        curves = [one.metrics.drop(columns=other).set_index(axis) for one in outcomes]
        if len(outcomes) > 1:
            curves = [
                curve.set_axis([_part(str(name), f"seed {one.seed}") for name in curve], axis=1)
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
    if is_main():
        width = max(map(len, classes))
        for name, accuracy in zip(classes, each, strict=True):
            if len(classes) <= SHOWN:
                print(f"{name:{width}}  {accuracy}")
        seeds = f" over {len(outcomes)} seeds" if len(outcomes) > 1 else ""
        if last := outcomes[0].last:
            recent = mean_std([one.recent for one in outcomes])
            print(f"mean of at most {last} last tests: {recent}{seeds}")
        raw = [one.raw for one in outcomes if one.raw is not None]
        if raw:
            print(f"accuracy of the raw network: {mean_std(raw)}{seeds}")
        top5 = [one.top5 for one in outcomes if one.top5 is not None]
        if top5:
            print(f"right among the five most probable: {mean_std(top5)}{seeds}")
        print(f"accuracy: {total}{seeds}", flush=True)


def _part(name: str, part: str) -> str:
    """A column whose curve shares a picture with the others of its name."""
    title, _, rest = name.partition("/")
    return f"{title}/{rest + ', ' if rest else ''}{part}"


def _table(outcomes: Sequence[Outcome], classes: Sequence[str], each: Sequence[str]) -> Table:
    """Accuracies, a column a seed."""
    alike = {"all": [one.accuracy for one in outcomes]}
    if last := outcomes[0].last:
        alike[f"all, mean of at most {last} last tests"] = [one.recent for one in outcomes]
    raw = [one.raw for one in outcomes if one.raw is not None]
    if raw:
        alike["all, without averaging the weights"] = raw
    top5 = [one.top5 for one in outcomes if one.top5 is not None]
    if top5:
        alike["all, right among the five most probable"] = top5
    rows = [[name, *(f"{v:.2f}" for v in values)] for name, values in alike.items()]
    if len(classes) > SHOWN:
        classes, each = (), ()
    for c, name in enumerate(classes):
        rows.append([name, *(f"{one.by_class[c]:.2f}" for one in outcomes)])
    head = ["", *(f"seed {one.seed}" for one in outcomes)]
    if len(outcomes) > 1:
        head.append("mean ± std")
        for row, text in zip(rows, [*map(mean_std, alike.values()), *each], strict=True):
            row.append(text)
    return Table("Accuracy on the test images, in percent", head, rows)
