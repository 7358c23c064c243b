"""FixMatch on labelled images and all others: the settings and the method of ``train.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from usl.augment.randaugment import RandAugmentTransform, WeakTransform
from usl.augment.views import ImageViews
from usl.config.flags import Flag
from usl.config.parse import CfgNode
from usl.data.datasets import AnyDataset
from usl.distributed import processes_planned
from usl.encoders.checkpoints import NETWORKS
from usl.errors import InputError
from usl.models.classifier import Classifier
from usl.models.resnet_cifar import CifarResNet, small_resnet
from usl.models.wideresnet import WideResNet
from usl.stages.evaluation import Method, Prepare, Trial, add_evaluation
from usl.stages.inputs import (
    add_images,
    add_training_files,
    backbone_of,
    check_seeds,
    preprocess_of,
    run_defaults,
)
from usl.stages.labels import add_labels, read_labels
from usl.stages.training import (
    add_flip,
    add_training,
    check_resume,
    check_sgd,
    precision_of,
    sgd,
)
from usl.training.fixmatch import FixMatch, FixMatchViews, fixmatch_step
from usl.training.layouts import fixmatch_layout
from usl.training.loop import Plan, Step


def fixmatch_defaults() -> CfgNode:
    """Settings of ``train.py``, FixMatch on CIFAR picks."""
    c = add_evaluation(add_training(add_training_files(add_images(run_defaults()))))
    # FIXMATCH.SEEDS and FIXMATCH.EARLY_STOP instead; a part of a batch would be a batch of its own;
    # and there is no epoch but what lies between two tests.
    for key in ("SEED", "MAX_STEPS", "ACCUMULATE", "EPOCHS", "EVALUATE_EVERY", "WARMUP_EPOCHS"):
        del c[key]
    # Labelled images of a step.
    c.DATALOADER.BATCH_SIZE = 64
    # WideResNet, of DEPTH 28 and WIDTH 2 or others; ResNet18, or SmallResNet of DEPTH and WIDTH; or
    # with PRETRAIN_PATH any encoder, which has sizes of its own.
    c.MODEL.ARCH = "WideResNet"
    c.MODEL.DEPTH = 28
    c.MODEL.WIDTH = 2
    c.MODEL.PRETRAIN_PATH = ""
    # Of a SimCLRv2 network, where the name of its checkpoint does not say it: r50_1x_sk0, …
    c.MODEL.SIZE = ""
    # Of a checkpoint that has both: model, the trained weights; ema, their average.
    c.MODEL.WEIGHTS = "model"
    # Load a checkpoint that holds more than tensors. It can then run any code: only your own files.
    c.MODEL.TRUST_CHECKPOINT = False
    c.STEPS = 2**20
    c.SCHEDULE = "fixmatch"
    # Steps of a linear warm-up.
    c.WARMUP_STEPS = 0
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


# Those of FixMatch-pytorch and of the original, which grew from it.
FLAGS = (
    Flag(
        names=("--dataset",),
        key="DATASET.NAME",
        choices={"cifar10": "cifar10", "cifar100": "cifar100"},
        text="with the recipe of its YAML",
    ),
    Flag(names=("--num-labeled",), key="FIXMATCH.NUM_LABELED", kind=int, text="of slice<seed>"),
    Flag(
        names=("--get-labeled-inds-method",),
        key="FIXMATCH.LABELED_INDICES_PATH",
        text="NAME of indices/<dataset>/NAME.npy, or slice<seed>; else slice<seed> of --seed",
    ),
    Flag(names=("--expand-labels",), value=True, text="few labels are always repeated"),
    Flag(names=("--arch",), key="MODEL.ARCH", choices={"wideresnet": "WideResNet"}),
    Flag(names=("--total-steps",), key="STEPS", kind=int),
    Flag(names=("--eval-step",), key="FIXMATCH.EVAL_STEPS", kind=int),
    Flag(names=("--early-stop",), key="FIXMATCH.EARLY_STOP", kind=int),
    Flag(names=("--start-epoch",), key="START_EPOCH", kind=int),
    Flag(
        names=("--batch-size",),
        key="DATALOADER.BATCH_SIZE",
        kind=int,
        to=lambda size: size * processes_planned(),
        text="labelled images of each process",
    ),
    Flag(names=("--lr", "--learning-rate"), key="OPTIMIZER.LR", kind=float),
    Flag(
        names=("--warmup",),
        key="WARMUP_STEPS",
        kind=float,
        to=lambda steps: int(steps) if steps.is_integer() else steps,
        text="steps",
    ),
    Flag(names=("--wdecay",), key="OPTIMIZER.WEIGHT_DECAY", kind=float),
    Flag(names=("--nesterov",), key="OPTIMIZER.NESTEROV", value=True),
    Flag(names=("--use-ema",), value=True, text="there is an average unless its decay is 0"),
    Flag(names=("--ema-decay",), key="EMA_DECAY", kind=float),
    Flag(names=("--mu",), key="FIXMATCH.MU", kind=int),
    Flag(names=("--lambda-u",), key="FIXMATCH.LAMBDA_U", kind=float),
    Flag(names=("--T",), key="FIXMATCH.TEMPERATURE", kind=float),
    Flag(names=("--threshold",), key="FIXMATCH.THRESHOLD", kind=float),
    Flag(names=("--seed",), key="FIXMATCH.SEEDS", kind=int, to=lambda seed: [seed]),
    Flag(names=("--out",), key="RUN_DIR"),
    Flag(names=("--resume",), key="RESUME", to=lambda path: path or "auto"),
    Flag(names=("--num-workers",), key="DATALOADER.WORKERS", kind=int),
    Flag(names=("--gpu-id",), key="DEVICE", kind=int, to=lambda number: f"cuda:{number}"),
    Flag(names=("--amp",), key="PRECISION", value="auto"),
    Flag(names=("--opt_level",), text="autocast has one level"),
    Flag(names=("--local_rank", "--local-rank"), kind=int, text="torchrun says it"),
    Flag(names=("--no-progress",), value=True, text="no bar is shown but in a terminal"),
)


def cfg_of(flags: dict[str, Any]) -> str:
    """The recipe of a data set: labels drawn alike from every class, unless a flag says which."""
    return f"configs/{flags.get('DATASET.NAME', 'cifar10')}_stratified_fixmatch.yaml"


def trials_of(cfg: CfgNode, images: AnyDataset) -> list[Trial]:
    """The trainings that the FIXMATCH settings describe, one for each seed; all are checked."""
    fixmatch = cfg.FIXMATCH
    check_seeds(fixmatch.SEEDS, "FIXMATCH.SEEDS")
    check_sgd(cfg.OPTIMIZER)
    check_resume(cfg, fixmatch.SEEDS)
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
        labelled = read_labels(cfg, "FIXMATCH", images, seed=seed)
        plan = Plan(
            epochs=0,
            steps=cfg.STEPS,
            stop=fixmatch.EARLY_STOP,
            batch_size=batch,
            lr=cfg.OPTIMIZER.LR,
            schedule=cfg.SCHEDULE,
            warmup=cfg.WARMUP_STEPS,
            precision=precision_of(cfg),
            ema=cfg.EMA_DECAY,
            start=cfg.START_EPOCH,
            save_every=cfg.CHECKPOINT_STEPS,
            check_every=cfg.PRINT_FREQ,
            seed=seed,
        )
        # An epoch is what lies between two tests.
        trials.append(Trial(seed, labelled, plan, fixmatch.EVAL_STEPS * batch))
    return trials


def network_of(cfg: CfgNode, images: AnyDataset) -> Callable[[], nn.Module]:
    """What builds the network of the MODEL settings anew for each seed; checkpoints are read once.

    Raises
    ------
    InputError
        An unknown architecture, sizes that make no network, or a checkpoint that does not fit.
    """
    model, classes = cfg.MODEL, len(images.classes)
    if model.ARCH == "WideResNet":
        if model.PRETRAIN_PATH:
            raise InputError(
                "MODEL.PRETRAIN_PATH is set, and no WideResNet is pretrained; choose ResNet18, "
                "SmallResNet or another encoder"
            )
        WideResNet(model.DEPTH, model.WIDTH, classes)
        return lambda: WideResNet(model.DEPTH, model.WIDTH, classes)
    if model.PRETRAIN_PATH:
        pretrained, dim, _ = backbone_of(cfg, images)
        return lambda: Classifier(copy.deepcopy(pretrained), dim, classes)
    if model.ARCH not in NETWORKS:
        known = ", ".join(("WideResNet", *NETWORKS))
        raise InputError(
            f"unknown MODEL.ARCH {model.ARCH!r} without MODEL.PRETRAIN_PATH; choose one of {known}"
        )
    sizes = small_resnet(model.WIDTH, model.DEPTH) if model.ARCH == "SmallResNet" else {}

    def build() -> nn.Module:
        network = CifarResNet(**sizes)
        return Classifier(network, network.dim, classes)

    return build


def method_of(cfg: CfgNode, images: AnyDataset) -> Method:
    """FixMatch as the settings describe it.

    Shifts and cut-outs of image files are in proportion to the paper's for 32 pixels.
    """
    fixmatch = cfg.FIXMATCH
    options = FixMatch(
        labelled=cfg.DATALOADER.BATCH_SIZE,
        mu=fixmatch.MU,
        threshold=fixmatch.THRESHOLD,
        temperature=fixmatch.TEMPERATURE,
        weight=fixmatch.LAMBDA_U,
    )
    side = preprocess_of(cfg, images).side
    weak = WeakTransform(flip=cfg.AUGMENT.FLIP, padding=side // 8)
    strong = RandAugmentTransform(flip=cfg.AUGMENT.FLIP, padding=side // 8, cutout=side // 2)

    def step(views: ImageViews, trial: Trial) -> tuple[Callable[[nn.Module], Step], Prepare]:
        batches = FixMatchViews(
            views,
            weak,
            strong,
            trial.labelled,
            options,
            seed=trial.seed,
            steps=fixmatch.EVAL_STEPS,
        )
        return fixmatch_step(batches, compiled=fixmatch.COMPILE), batches.prepare

    return Method(
        network=network_of(cfg, images),
        step=step,
        optimizer=lambda network: sgd(network, cfg.OPTIMIZER, decay_all=False),
        test_batch=512,
        section="FIXMATCH",
        last=20,
        check=options.check_processes,
        layout=lambda trial: fixmatch_layout(cfg.OPTIMIZER.LR),
    )
