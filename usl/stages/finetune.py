"""Fine-tuning on labelled images: what its stages share, and the method of the one for CIFAR."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from usl.augment.randaugment import ScanTransform
from usl.augment.views import ImageViews, Transform
from usl.config.parse import CfgNode
from usl.data.datasets import AnyDataset
from usl.distributed import processes_planned
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError
from usl.models.classifier import Classifier
from usl.stages.evaluation import Method, Prepare, Trial, add_evaluation
from usl.stages.inputs import (
    add_training_files,
    check_seeds,
    encoder_defaults,
    preprocess_of,
)
from usl.stages.labels import add_labels, read_labels
from usl.stages.training import (
    add_moco,
    add_training,
    check_resume,
    check_sgd,
    moco_transform,
    plan_of,
    sgd,
)
from usl.training.loop import Step
from usl.training.supervised import LabelledViews, supervised_step


def labelled_defaults() -> CfgNode:
    """Settings of both stages that fine-tune a pretrained network on labelled images.

    RECOMPUTE_ALL and RECOMPUTE_NUM_DEP are accepted for configs of the original and ignored.
    """
    c = add_evaluation(add_moco(add_training(add_training_files(encoder_defaults()))))
    # FINETUNE.SEEDS instead; and what is trained sees what is before any head.
    del c["SEED"], c.MODEL["FEATURES"]
    c.DATALOADER.WORKERS = 8
    # Decay of the weight average, which is then tested beside the weights themselves; 0: none.
    c.EMA_DECAY = 0.0
    c.OPTIMIZER.LR = 0.01
    c.OPTIMIZER.MOMENTUM = 0.9
    c.FINETUNE = CfgNode()
    add_labels(c.FINETUNE)
    # No gradients in the pretrained network; the running statistics of batch norm still move.
    c.FINETUNE.FREEZE_BACKBONE = True
    # How often an epoch visits each labelled image.
    c.FINETUNE.REPEAT_DATA = 100
    return c


def finetune_defaults() -> CfgNode:
    """Settings of ``semisup-simclrv2-cld/fine_tune.py``, the evaluation of CIFAR picks."""
    c = labelled_defaults()
    # The output of the linear layer is scaled to length 1 before it is taken for logits, as where
    # the published results of CLD networks come from; False: plain logits, for SimCLR weights.
    c.MODEL.USE_CLD = True
    c.EPOCHS = 5
    # SGD; there is no other.
    c.OPTIMIZER.NAME = "SGD"
    c.OPTIMIZER.NESTEROV = True
    c.OPTIMIZER.WEIGHT_DECAY = 1e-4
    return c


def trials_of(cfg: CfgNode, images: AnyDataset, *, fill: bool = True) -> list[Trial]:
    """The trainings that the FINETUNE settings describe, one for each seed; all are checked.

    An epoch that would be shorter than a batch repeats the images until it fills one; without
    ``fill`` its views are the batch, as far as the processes can share them.
    """
    check_seeds(cfg.FINETUNE.SEEDS, "FINETUNE.SEEDS")
    check_resume(cfg, cfg.FINETUNE.SEEDS)
    if cfg.FINETUNE.REPEAT_DATA < 1:
        raise InputError(f"FINETUNE.REPEAT_DATA is {cfg.FINETUNE.REPEAT_DATA}; choose at least 1")
    if cfg.ACCUMULATE < 1:
        raise InputError(f"ACCUMULATE is {cfg.ACCUMULATE}; choose at least 1")
    trials = []
    for seed in cfg.FINETUNE.SEEDS:
        labelled = read_labels(cfg, "FINETUNE", images, seed=seed)
        repeats, batch = cfg.FINETUNE.REPEAT_DATA, cfg.DATALOADER.BATCH_SIZE
        if fill:
            # Fewer views than a batch would make an epoch without a step.
            repeats = max(repeats, -(-batch // len(labelled)))
        views = repeats * len(labelled)
        if batch > views:
            batch = views - views % (cfg.ACCUMULATE * processes_planned())
        plan = plan_of(cfg, views, batch=batch, ema=cfg.EMA_DECAY)
        trials.append(Trial(seed, labelled, replace(plan, seed=seed), views))
    return trials


def steps_of(
    transform: Transform,
) -> Callable[[ImageViews, Trial], tuple[Callable[[nn.Module], Step], Prepare]]:
    """What makes and prepares the steps of a trial, for :class:`Method`."""

    def step(views: ImageViews, trial: Trial) -> tuple[Callable[[nn.Module], Step], Prepare]:
        labelled = LabelledViews(views, transform, trial.labelled, seed=trial.seed)
        return supervised_step(labelled), labelled.prepare

    return step


def transform_of(cfg: CfgNode, preprocess: Preprocess) -> Transform:
    """How training images are augmented.

    SCAN's strong view for the normalisations FixMatch-* and SCAN-*, as in the original, else MoCo
    v2's view.
    """
    # Its settings are checked also where they play no part.
    views = moco_transform(cfg.AUGMENT, preprocess.side)
    if cfg.DATASET.TRANSFORM_NAME.startswith(("FixMatch-", "SCAN-")):
        cutout = preprocess.side // 2
        return ScanTransform(flip=cfg.AUGMENT.FLIP, cutout=cutout, fill=preprocess.mean)
    return views


def method_of(cfg: CfgNode, images: AnyDataset, pretrained: nn.Module, dim: int) -> Method:
    """Fine-tuning as the settings describe it: a fresh linear layer on a pretrained network.

    ``dim``: the width of what the network makes.
    """
    check_sgd(cfg.OPTIMIZER)

    def network() -> nn.Module:
        classes = len(images.classes)
        built = Classifier(copy.deepcopy(pretrained), dim, classes, cld=cfg.MODEL.USE_CLD)
        if cfg.FINETUNE.FREEZE_BACKBONE:
            built.freeze_backbone()
        return built

    return Method(
        network=network,
        step=steps_of(transform_of(cfg, preprocess_of(cfg, images))),
        optimizer=lambda network: sgd(network, cfg.OPTIMIZER),
        test_batch=cfg.DATALOADER.BATCH_SIZE,
    )
