"""Pretraining an encoder: the settings of ``pretrain.py``."""

from __future__ import annotations

import torch
from torch import nn

from usl.config.parse import CfgNode
from usl.encoders.registry import new_network
from usl.stages.inputs import add_images, add_training_files, read_neighbors, run_defaults
from usl.stages.training import add_moco, add_training
from usl.training.pretraining import Contrast


def pretrain_defaults() -> CfgNode:
    """Settings of ``pretrain.py``."""
    c = add_moco(add_training(add_training_files(add_images(run_defaults()))))
    # Images of a step, over all processes, each seen twice.
    c.DATALOADER.BATCH_SIZE = 512
    # ResNet18, SmallResNet or SimCLRv2; for image files also timm/NAME or torchvision/NAME,
    # untrained.
    c.MODEL.ARCH = "ResNet18"
    # Channels of the first stage, and layers (10, 18, 26, …), of SmallResNet.
    c.MODEL.WIDTH = 16
    c.MODEL.DEPTH = 10
    # Of SimCLRv2: r50_1x_sk0, r26_0.25x_sk0, … (depth, width, selective kernels or not).
    c.MODEL.SIZE = ""
    c.SCHEDULE = "cosine"
    c.WARMUP_EPOCHS = 5
    c.EVALUATE_EVERY = 5
    # Decay of the weight average that is evaluated and kept; 0: the weights themselves.
    c.EMA_DECAY = 0.0
    # Write encoder.pth in half precision: half the size, to pass on.
    c.HALF_ENCODER = False
    # SGD.
    c.OPTIMIZER.LR = 0.12
    c.OPTIMIZER.MOMENTUM = 0.9
    c.OPTIMIZER.NESTEROV = True
    c.OPTIMIZER.WEIGHT_DECAY = 5e-4
    c.SIMCLR = CfgNode()
    # Of NT-Xent.
    c.SIMCLR.TEMPERATURE = 0.2
    # From mine-neighbors.py: the second view is then of the image itself or of one of its
    # NUM_NEIGHBORS nearest.
    c.SIMCLR.TOPK_NEIGHBORS_PATH = ""
    c.SIMCLR.NUM_NEIGHBORS = 5
    # Cross-level discrimination beside NT-Xent: a second head, grouped by k-means in the batch.
    c.CLD = False
    c.GROUP = CfgNode()
    # Groups that k-means makes of a batch.
    c.GROUP.COUNT = 32
    # Of the cross-level loss.
    c.GROUP.TEMPERATURE = 0.2
    # Weight of the cross-level loss.
    c.GROUP.WEIGHT = 0.25
    return c


def network_of(cfg: CfgNode, side: int) -> nn.Module:
    """The untrained network of the MODEL settings, with its head, or for CLD its two.

    ``side``: of the square that it is shown; 0: its own.
    """
    model = cfg.MODEL
    return new_network(
        model.ARCH, model.WIDTH, model.DEPTH, cld=cfg.CLD, side=side, size=model.SIZE
    )


def contrast_of(cfg: CfgNode) -> Contrast:
    """The losses that the settings describe."""
    return Contrast(
        temperature=cfg.SIMCLR.TEMPERATURE,
        cld=cfg.CLD,
        groups=cfg.GROUP.COUNT,
        group_temperature=cfg.GROUP.TEMPERATURE,
        group_weight=cfg.GROUP.WEIGHT,
    )


def neighbors_of(simclr: CfgNode, images: int) -> torch.Tensor | None:
    """The neighbours that second views are of, (N, 1 + NUM_NEIGHBORS), if there are any."""
    if not simclr.TOPK_NEIGHBORS_PATH:
        return None
    return read_neighbors(
        simclr.TOPK_NEIGHBORS_PATH,
        "SIMCLR.TOPK_NEIGHBORS_PATH",
        images=images,
        count=simclr.NUM_NEIGHBORS,
    )
