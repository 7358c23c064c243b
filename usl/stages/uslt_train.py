"""Training the selector USL-T: the settings and the one body of both scripts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from usl import distributed
from usl.artifacts import fingerprint
from usl.augment.views import ImageViews, Transform
from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.cli import Call, choose_device
from usl.config.parse import CfgNode
from usl.data.datasets import AnyDataset
from usl.distributed import is_main
from usl.encoders.registry import Encoder
from usl.errors import InputError
from usl.models.resnet_cifar import Pretext
from usl.models.uslt import HEADS, UsltNetwork, new_heads
from usl.run import Run
from usl.stages import training
from usl.stages.inputs import (
    add_training_files,
    begin,
    encoder_defaults,
    encoder_of,
    read_neighbors,
    views_of,
)
from usl.stages.training import (
    add_flip,
    add_training,
    check_checkpoint,
    plan_of,
    resume_of,
    tested_checkpoint,
    training_folder,
    training_settings,
)
from usl.training.loop import Plan, Trained, fit
from usl.training.resume import CHECKPOINT
from usl.training.uslt import (
    Reassignment,
    UsltEvaluator,
    Weights,
    reassigning,
    start_heads,
    uslt_step,
)
from usl.training.uslt_losses import GlobalCriterion, GlobalOptions, LocalCriterion


def uslt_pretrain_defaults() -> CfgNode:
    """Settings of ``usl-t-cifar-pretrain.py``."""
    c = add_training(encoder_defaults())
    # The heads see what the method says.
    del c.MODEL["FEATURES"]
    c.SEED = 42
    # Images of a step, over all processes.
    c.DATALOADER.BATCH_SIZE = 1024
    # Do not train; print how the heads of RUN_DIR/checkpoint.pth are doing.
    c.EVAL_ONLY = False
    # Accepted for configs of the original: the record of a run has its versions instead; all images
    # are used; and a training is continued or not by RESUME (so RECOMPUTE_* are ignored too).
    c.BACKUP_PYTHON_FILE = True
    c.DATASET.SUBSET = ""
    # Adam; there is no other.
    c.OPTIMIZER.NAME = "Adam"
    c.OPTIMIZER.LR = 1e-4
    c.OPTIMIZER.WEIGHT_DECAY = 1e-4
    add_flip(c)
    c.USLT_PRETRAIN = CfgNode()
    # Train the heads alone, the backbone in eval mode.
    c.USLT_PRETRAIN.UPDATE_HEAD_ONLY = False
    # topk-train-neighbors.npy, from mine-neighbors.py; NUM_NEIGHBORS of its columns are used.
    c.USLT_PRETRAIN.TOPK_NEIGHBORS_PATH = ""
    c.USLT_PRETRAIN.NUM_NEIGHBORS = 20
    # Outputs of each head: clusters, one for every image that can be labelled.
    c.USLT_PRETRAIN.NUM_SELECTED_SAMPLES = 40
    # Local loss: weight of log p̄ in the logits, and temperature of the sharpening.
    c.USLT_PRETRAIN.ADJUSTMENT_WEIGHT = 5.0
    c.USLT_PRETRAIN.SHARPEN_TEMPERATURE = 0.25
    # Weight of the local loss.
    c.USLT_PRETRAIN.LOCAL_LOSS_SCALE = 5.0
    # Epochs, counted from 0: the last one with the local loss, the first one with the global loss.
    c.USLT_PRETRAIN.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH = float("inf")
    c.USLT_PRETRAIN.GLOBAL_START_EPOCH = 0
    # Global loss: which images count, how clusters are weighted, what the sum is divided by.
    c.USLT_PRETRAIN.CONFIDENCE_THRESHOLD = 0.95
    c.USLT_PRETRAIN.REWEIGHT = True
    c.USLT_PRETRAIN.REWEIGHT_RENORM = False
    c.USLT_PRETRAIN.MEAN_OUTSIDE_MASK = False
    # Decay of the weight average; 0: none.
    c.USLT_PRETRAIN.EMA_DECAY = 0.999
    # ImageNet form only: after so many batches, a cluster with fewer images on average than MIN
    # takes half of one with more than MAX.
    c.USLT_PRETRAIN.REASSIGN_AFTER_STEPS = 300
    c.USLT_PRETRAIN.COUNT_EMA_MIN_TH = 100
    c.USLT_PRETRAIN.COUNT_EMA_MAX_TH = 1000
    return c


def uslt_imagenet_pretrain_defaults() -> CfgNode:
    """Settings of ``usl-t-imagenet-pretrain.py``."""
    return add_training_files(uslt_pretrain_defaults())


def neighbors_of(cfg: CfgNode, images: int) -> torch.Tensor:
    """The neighbours that training draws from, (N, 1 + NUM_NEIGHBORS), int64."""
    uslt = cfg.USLT_PRETRAIN
    if not uslt.TOPK_NEIGHBORS_PATH:
        raise InputError(
            "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH is empty; give what mine-neighbors.py wrote"
        )
    return read_neighbors(
        uslt.TOPK_NEIGHBORS_PATH,
        "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH",
        images=images,
        count=uslt.NUM_NEIGHBORS,
    )


def frozen_encoder(cfg: CfgNode, images: AnyDataset) -> Encoder:
    """The encoder of the MODEL settings, which the heads of the ImageNet form see through.

    Raises
    ------
    InputError
        One that makes no features of its own, or a checkpoint of the project's networks that is not
        a pretext one.
    """
    if cfg.MODEL.ARCH == "pixels":
        raise InputError("MODEL.ARCH is pixels; choose an encoder that is a network")
    encoder = encoder_of(cfg, images)
    if not encoder.scale and not isinstance(encoder.network, Pretext):
        raise InputError(
            f"checkpoint {cfg.MODEL.PRETRAIN_PATH} has no contrastive head; give a pretext "
            "checkpoint, such as SCAN's or one of pretrain.py without CLD"
        )
    return encoder


def check_options(cfg: CfgNode) -> None:
    """Raise InputError where USLT_PRETRAIN or the optimizer is impossible."""
    uslt = cfg.USLT_PRETRAIN
    if cfg.OPTIMIZER.NAME != "Adam":
        raise InputError(f"OPTIMIZER.NAME is {cfg.OPTIMIZER.NAME!r}; USL-T trains with Adam")
    if not 0 <= cfg.OPTIMIZER.WEIGHT_DECAY < math.inf:
        raise InputError(
            f"OPTIMIZER.WEIGHT_DECAY is {cfg.OPTIMIZER.WEIGHT_DECAY}; choose 0 or more"
        )
    if not uslt.SHARPEN_TEMPERATURE > 0:
        raise InputError(
            f"USLT_PRETRAIN.SHARPEN_TEMPERATURE is {uslt.SHARPEN_TEMPERATURE}; choose above 0"
        )
    if not 0 <= uslt.CONFIDENCE_THRESHOLD < 1:
        raise InputError(
            f"USLT_PRETRAIN.CONFIDENCE_THRESHOLD is {uslt.CONFIDENCE_THRESHOLD}; "
            "choose 0 to below 1"
        )
    for name in ("LOCAL_LOSS_SCALE", "ADJUSTMENT_WEIGHT"):
        if not 0 <= uslt[name] < math.inf:
            raise InputError(f"USLT_PRETRAIN.{name} is {uslt[name]}; choose 0 or more")
    if not uslt.GLOBAL_START_EPOCH <= uslt.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH + 1:
        raise InputError(
            "USLT_PRETRAIN.GLOBAL_START_EPOCH comes after TURN_OFF_LOCAL_LOSS_AFTER_EPOCH, so some "
            "epochs have no loss; choose an earlier one"
        )
    if uslt.REASSIGN_AFTER_STEPS < 0:
        raise InputError(
            f"USLT_PRETRAIN.REASSIGN_AFTER_STEPS is {uslt.REASSIGN_AFTER_STEPS}; choose 0 or more"
        )
    low, high = uslt.COUNT_EMA_MIN_TH, uslt.COUNT_EMA_MAX_TH
    if not 0 <= low <= high:
        raise InputError(
            f"USLT_PRETRAIN.COUNT_EMA_MIN_TH is {low} and COUNT_EMA_MAX_TH {high}; choose 0 or "
            "more, and no smaller a MAX than MIN"
        )
    if cfg.EVAL_ONLY:
        tested_checkpoint(cfg, cfg.SEED, Path(cfg.RUN_DIR) / CHECKPOINT)


@dataclass(frozen=True)
class Form:
    """What tells the form for CIFAR from that for ImageNet.

    Attributes
    ----------
    backbone : nn.Module
        Images to features.
    dim : int
        Of the features.
    transform : Transform
        Of the strong views.
    cosine : bool
        Cosine heads, which start from the features of images, and reassignment of empty clusters;
        else linear heads and none.
    source : dict of str to str
        The encoder, for the record.
    """

    backbone: nn.Module
    dim: int
    transform: Transform
    cosine: bool
    source: dict[str, str]


def train(
    cfg: CfgNode, call: Call, form: Form, train_images: AnyDataset, test_images: AnyDataset
) -> None:
    """Train the heads of USL-T on a pretrained backbone; write checkpoint, metrics and report."""
    uslt = cfg.USLT_PRETRAIN
    plan = plan_of(cfg, len(train_images), ema=uslt.EMA_DECAY)
    neighbors = neighbors_of(cfg, len(train_images))
    with distributed.processes(choose_device(cfg.DEVICE)) as device:
        plan.check(len(train_images))
        # 1. Standard views, and strong ones.
        views = views_of(cfg, train_images, device=device)

        # 2. The pretrained backbone, and three heads of one output a label.
        torch.manual_seed(cfg.SEED)
        heads = new_heads(form.dim, uslt.NUM_SELECTED_SAMPLES, cosine=form.cosine)
        network = UsltNetwork(form.backbone, heads, frozen=uslt.UPDATE_HEAD_ONLY)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if form.cosine and _begins(cfg):
            batch = cfg.DATALOADER.BATCH_SIZE
            start_heads(network, views, images=len(train_images), seed=cfg.SEED, batch=batch)
        optimizer = torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad],
            lr=cfg.OPTIMIZER.LR,
            weight_decay=cfg.OPTIMIZER.WEIGHT_DECAY,
        )
        if not cfg.EVAL_ONLY:
            training.check_own_checkpoint(cfg, plan, train_images)
            check_checkpoint(cfg, cfg.SEED, network, optimizer)
        run = begin(cfg, call, save=not cfg.EVAL_ONLY)
        run.note(
            dataset=train_images.name,
            size=len(train_images),
            images=train_images.fingerprint(),
            neighbors=fingerprint(neighbors.numpy()),
            encoder=form.source,
        )

        # 3. Neighbours agree (local loss) on few, confident, balanced clusters (global loss).
        with run.timed("training"):
            trained = _train_heads(
                cfg, plan, network, optimizer, views, form, neighbors, train_images, test_images
            )

        # 4. How the images to choose from are clustered.
        _finish(run, cfg, network, trained, train_images, views)


def _begins(cfg: CfgNode) -> bool:
    """Whether training starts from the beginning, and not from a checkpoint."""
    there = not cfg.SKIP_SAVE and (Path(cfg.RUN_DIR) / CHECKPOINT).exists()
    goes_on = cfg.RESUME != "none" and (there or cfg.RESUME != "auto")
    return not cfg.EVAL_ONLY and not goes_on


def _train_heads(
    cfg: CfgNode,
    plan: Plan,
    network: UsltNetwork,
    optimizer: torch.optim.Optimizer,
    views: ImageViews,
    form: Form,
    neighbors: torch.Tensor,
    train_images: AnyDataset,
    test_images: AnyDataset,
) -> Trained:
    """Train with both losses; ``checkpoint.pth`` and ``metrics.csv`` are written as it goes.

    With EVAL_ONLY nothing is trained: the checkpoint is loaded and looked at.
    """
    uslt, evaluator = cfg.USLT_PRETRAIN, _evaluator(cfg, test_images, views)
    if cfg.EVAL_ONLY:
        path = tested_checkpoint(cfg, cfg.SEED, Path(cfg.RUN_DIR) / CHECKPOINT)
        load_weights(network, weights_in(read_checkpoint(path), which="model"), where=str(path))
        return Trained(network.eval(), pd.DataFrame([{"epoch": 0} | evaluator(network)]))
    clusters, images = uslt.NUM_SELECTED_SAMPLES, len(train_images)
    local = LocalCriterion(
        HEADS, clusters, adjustment=uslt.ADJUSTMENT_WEIGHT, temperature=uslt.SHARPEN_TEMPERATURE
    ).to(views.device)
    options = GlobalOptions(
        threshold=uslt.CONFIDENCE_THRESHOLD,
        reweight=uslt.REWEIGHT,
        renormalise=uslt.REWEIGHT_RENORM,
        mean_outside_mask=uslt.MEAN_OUTSIDE_MASK,
    )
    whole = GlobalCriterion(HEADS, clusters, options, images=images if form.cosine else 0)
    whole = whole.to(views.device)
    weights = Weights(
        local=uslt.LOCAL_LOSS_SCALE,
        local_until=uslt.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH,
        global_from=uslt.GLOBAL_START_EPOCH,
    )
    after_step = None
    if form.cosine:
        reassignment = Reassignment(
            after=uslt.REASSIGN_AFTER_STEPS,
            low=uslt.COUNT_EMA_MIN_TH,
            high=uslt.COUNT_EMA_MAX_TH,
        )
        after_step = reassigning(network, whole, reassignment, seed=cfg.SEED)
    return fit(
        network,
        uslt_step(views, form.transform, neighbors, local, whole, weights, seed=cfg.SEED),
        optimizer,
        plan,
        images=images,
        device=views.device,
        folder=training_folder(cfg),
        settings=training_settings(cfg, train_images),
        resume=resume_of(cfg, cfg.SEED),
        evaluate=evaluator,
        after_step=after_step,
        extras={
            "criterion_local": local,
            "criterion_global": whole,
            "val_predictions": evaluator,
        },
    )


def _evaluator(cfg: CfgNode, images: AnyDataset, views: ImageViews) -> UsltEvaluator:
    return UsltEvaluator(
        images,
        views.preprocess,
        threshold=cfg.USLT_PRETRAIN.CONFIDENCE_THRESHOLD,
        batch_size=cfg.DATALOADER.BATCH_SIZE,
        device=views.device,
    )


def _finish(
    run: Run,
    cfg: CfgNode,
    network: UsltNetwork,
    trained: Trained,
    images: AnyDataset,
    views: ImageViews,
) -> None:
    """Print how the images to choose from are clustered; write the report, and close the run.

    By the trained weights, which selection takes, also where their average is kept.
    """
    clusters = cfg.USLT_PRETRAIN.NUM_SELECTED_SAMPLES
    with run.timed("evaluation"):
        found = _evaluator(cfg, images, views)(network.eval())
    if is_main():
        for head in sorted({name.partition("/")[2] for name in found}):
            numbers = {k.partition("/")[0]: v for k, v in found.items() if k.endswith(f"/{head}")}
            text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"training images, head {head}: {text}")
    training.finish_training(
        run,
        trained.metrics,
        title=f"A selector of {clusters} of {len(images):,} images",
        facts={"Data set": images.name, "Images": len(images), "Clusters": clusters},
    )
