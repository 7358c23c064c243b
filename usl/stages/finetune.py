"""Fine-tuning on labelled images: the settings and the method of ``fine_tune.py``."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from usl.augment.randaugment import ScanTransform
from usl.augment.views import Transform
from usl.config.parse import CfgNode
from usl.data.datasets import ImageDataset
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError
from usl.models.classifier import Classifier
from usl.models.resnet_cifar import CifarResNet
from usl.stages.evaluation import Method, Trial
from usl.stages.inputs import check_seeds, encoder_defaults, preprocess_of
from usl.stages.labels import add_labels, read_labels
from usl.stages.training import add_moco, add_training, check_sgd, moco_transform, plan_of, sgd
from usl.training.supervised import supervised_step


def finetune_defaults() -> CfgNode:
    """Settings of ``fine_tune.py``, the evaluation of CIFAR picks.

    RECOMPUTE_ALL and RECOMPUTE_NUM_DEP are accepted for configs of the original and ignored.
    """
    c = add_moco(add_training(encoder_defaults()))
    # FINETUNE.SEEDS instead; and the linear layer sees what is before any head.
    del c["SEED"], c.MODEL["FEATURES"]
    c.DATALOADER.WORKERS = 8
    # The output of the linear layer is scaled to length 1 before it is taken for logits, as where
    # the published results of CLD networks come from; False: plain logits, for SimCLR weights.
    c.MODEL.USE_CLD = True
    c.EPOCHS = 5
    # Decay of the weight average, which is then tested beside the weights themselves; 0: none.
    c.EMA_DECAY = 0.0
    # SGD; there is no other.
    c.OPTIMIZER.NAME = "SGD"
    c.OPTIMIZER.LR = 0.01
    c.OPTIMIZER.MOMENTUM = 0.9
    c.OPTIMIZER.NESTEROV = True
    c.OPTIMIZER.WEIGHT_DECAY = 1e-4
    c.FINETUNE = CfgNode()
    add_labels(c.FINETUNE)
    # Train the linear layer only; the running statistics of batch norm still move.
    c.FINETUNE.FREEZE_BACKBONE = True
    # How often an epoch visits each labelled image; more often where that fills no batch.
    c.FINETUNE.REPEAT_DATA = 100
    return c


def trials_of(cfg: CfgNode, images: ImageDataset) -> list[Trial]:
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
        plan = replace(plan_of(cfg, repeats * len(labelled), ema=cfg.EMA_DECAY), seed=seed)
        trials.append(Trial(seed, labelled, plan, repeats * len(labelled)))
    return trials


def transform_of(cfg: CfgNode, preprocess: Preprocess) -> Transform:
    """How training images are augmented.

    SCAN's strong view for the normalisations FixMatch-* and SCAN-*, as in the original, else MoCo
    v2's view.
    """
    if cfg.DATASET.TRANSFORM_NAME.startswith(("FixMatch-", "SCAN-")):
        return ScanTransform(flip=cfg.AUGMENT.FLIP, fill=preprocess.mean)
    return moco_transform(cfg.AUGMENT, preprocess.side)


def method_of(cfg: CfgNode, images: ImageDataset, pretrained: CifarResNet) -> Method:
    """Fine-tuning as the settings describe it: a fresh linear layer on a pretrained network."""
    transform = transform_of(cfg, preprocess_of(cfg, images))

    def network() -> nn.Module:
        classes = len(images.classes)
        built = Classifier(copy.deepcopy(pretrained), classes, cld=cfg.MODEL.USE_CLD)
        if cfg.FINETUNE.FREEZE_BACKBONE:
            built.freeze_backbone()
        return built

    return Method(
        network=network,
        step=lambda views, trial: supervised_step(
            views, transform, trial.labelled, seed=trial.seed
        ),
        optimizer=lambda network: sgd(network, cfg.OPTIMIZER),
        test_batch=cfg.DATALOADER.BATCH_SIZE,
    )
