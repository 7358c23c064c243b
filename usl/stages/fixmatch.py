"""FixMatch on labelled images and all others: the settings and the method of ``train.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from usl.augment.randaugment import RandAugmentTransform, WeakTransform
from usl.config.parse import CfgNode
from usl.data.datasets import ImageDataset
from usl.encoders.checkpoints import NETWORKS
from usl.errors import InputError
from usl.models.classifier import Classifier
from usl.models.resnet_cifar import CifarResNet, small_resnet
from usl.models.wideresnet import WideResNet
from usl.stages.evaluation import Method, Trial
from usl.stages.inputs import add_images, backbone_of, check_seeds, run_defaults
from usl.stages.labels import add_labels, read_labels
from usl.stages.training import add_flip, add_training, check_resume, check_sgd, sgd
from usl.training.fixmatch import FixMatch, exporting, fixmatch_step
from usl.training.loop import Plan


def fixmatch_defaults() -> CfgNode:
    """Settings of ``train.py``, FixMatch on CIFAR picks."""
    c = add_training(add_images(run_defaults()))
    # FIXMATCH.SEEDS instead; a part of a batch would be a batch of its own; and there is no epoch
    # but what lies between two tests.
    for key in ("SEED", "ACCUMULATE", "EPOCHS", "EVALUATE_EVERY", "WARMUP_EPOCHS"):
        del c[key]
    # Labelled images of a step.
    c.DATALOADER.BATCH_SIZE = 64
    # WideResNet, of DEPTH 28 and WIDTH 2 or others; ResNet18, or SmallResNet of DEPTH and WIDTH,
    # which can start from a self-supervised checkpoint of any layout.
    c.MODEL.ARCH = "WideResNet"
    c.MODEL.DEPTH = 28
    c.MODEL.WIDTH = 2
    c.MODEL.PRETRAIN_PATH = ""
    # Of a checkpoint that has both: model, the trained weights; ema, their average.
    c.MODEL.WEIGHTS = "model"
    # Load a checkpoint that holds more than tensors. It can then run any code: only your own files.
    c.MODEL.TRUST_CHECKPOINT = False
    c.STEPS = 2**20
    c.SCHEDULE = "fixmatch"
    # Decay of the weight average, which is then tested beside the weights themselves; 0: none.
    c.EMA_DECAY = 0.999
    # SGD; no decay for biases and batch norm.
    c.OPTIMIZER.LR = 0.03
    c.OPTIMIZER.MOMENTUM = 0.9
    c.OPTIMIZER.NESTEROV = True
    c.OPTIMIZER.WEIGHT_DECAY = 5e-4
    add_flip(c)
    c.FIXMATCH = CfgNode()
    add_labels(c.FIXMATCH)
    # Unlabelled images for each labelled one.
    c.FIXMATCH.MU = 7
    # Those whose largest probability is at least this count.
    c.FIXMATCH.THRESHOLD = 0.95
    # Logits are divided by this before they make those probabilities.
    c.FIXMATCH.TEMPERATURE = 1.0
    # Weight of the unlabelled loss; 0 trains on the labels alone.
    c.FIXMATCH.LAMBDA_U = 1.0
    # Steps between tests, each with a checkpoint.
    c.FIXMATCH.EVAL_STEPS = 1024
    # Stop after so many steps, with the schedule of STEPS; 0: after STEPS.
    c.FIXMATCH.EARLY_STOP = 0
    # torch.compile: a minute at the start, faster steps after it.
    c.FIXMATCH.COMPILE = False
    return c


def trials_of(cfg: CfgNode, images: ImageDataset) -> list[Trial]:
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
    if fixmatch.LAMBDA_U and batch > len(images):
        raise InputError(
            f"a step takes {batch} unlabelled images, DATALOADER.BATCH_SIZE times FIXMATCH.MU, and "
            f"there are {len(images)}; lower one of them"
        )
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


def network_of(model: CfgNode, classes: int) -> Callable[[], nn.Module]:
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
        pretrained, _ = backbone_of(model)
        return lambda: Classifier(copy.deepcopy(pretrained), classes)
    sizes = small_resnet(model.WIDTH, model.DEPTH) if model.ARCH == "SmallResNet" else {}
    return lambda: Classifier(CifarResNet(**sizes), classes)


def method_of(cfg: CfgNode, images: ImageDataset) -> Method:
    """FixMatch as the settings describe it."""
    fixmatch = cfg.FIXMATCH
    options = FixMatch(
        labelled=cfg.DATALOADER.BATCH_SIZE,
        mu=fixmatch.MU,
        threshold=fixmatch.THRESHOLD,
        temperature=fixmatch.TEMPERATURE,
        weight=fixmatch.LAMBDA_U,
    )
    weak = WeakTransform(flip=cfg.AUGMENT.FLIP)
    strong = RandAugmentTransform(flip=cfg.AUGMENT.FLIP)
    return Method(
        network=network_of(cfg.MODEL, len(images.classes)),
        step=lambda views, trial: fixmatch_step(
            views,
            weak,
            strong,
            trial.labelled,
            options,
            seed=trial.seed,
            steps=fixmatch.EVAL_STEPS,
            compiled=fixmatch.COMPILE,
        ),
        optimizer=lambda network: sgd(network, cfg.OPTIMIZER, decay_all=False),
        test_batch=512,
        last=20,
        check=options.check_processes,
        export=lambda folder: exporting(folder, lr=cfg.OPTIMIZER.LR),
    )
