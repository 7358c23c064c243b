"""Pretrained networks from the released layouts of checkpoints, and into them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl.artifacts import replacing
from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.errors import InputError
from usl.models.resnet_cifar import (
    CifarResNet,
    CldEncoder,
    CldNetwork,
    PretextEncoder,
    UsltEncoder,
    small_resnet,
)
from usl.models.resnet_imagenet import MocoEncoder, PretextImageNet
from usl.models.simclrv2 import SimclrEncoder

NETWORKS = ("ResNet18", "SmallResNet")
# What follows the backbone in the layouts that are read.
HEADS = ("linear.", "groupDis.", "contrastive_head.", "cluster_head.")

# A weight that tells a layout, its encoder, and the heads it does without.
Layout = tuple[str, type[nn.Module], tuple[str, ...]]
LAYOUTS: tuple[Layout, ...] = (
    ("contrastive_head.0.weight", PretextEncoder, ()),
    ("cluster_head.0.weight", UsltEncoder, ("cluster_head.",)),
    ("linear.weight", CldEncoder, ("groupDis.",)),
)
IMAGENET_LAYOUTS: tuple[Layout, ...] = (
    ("contrastive_head.0.weight", PretextImageNet, ()),
    ("fc.0.weight", MocoEncoder, ()),
)


class Backbone(nn.Module):
    """What the head of an encoder sees, scaled to length 1, instead of what it makes.

    The layer before a contrastive head keeps more of the images than the head does (Chen et al.,
    ICML 2020, section 4.2).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.out_dim: Any = encoder.dim

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, dim)."""
        return F.normalize(self.encoder.features(x))


def load_encoder(
    path: Path,
    arch: str = "ResNet18",
    *,
    output: str = "head",
    backbone_dim: int | None = None,
    weights: str = "model",
    trust: bool = False,
) -> Any:
    """Load a network with the head that makes features, from any released layout.

    CLD: normalised linear output. SCAN pretext: normalised contrastive head. USL-T: backbone, and
    on ImageNet, where that is a pretext encoder, normalised contrastive head. MoCo v2: normalised
    head ``fc``.

    Parameters
    ----------
    path : Path
        Checkpoint. The sizes of a small ResNet are read from its weights.
    arch : {"ResNet18", "SmallResNet", "resnet50"}
    output : {"head", "backbone"}
        Which features: the head's, as in the paper, or those before it, see :class:`Backbone`.
        USL-T checkpoints of CIFAR have the backbone's only, of any length.
    backbone_dim : int, optional
        Width that the caller expects before the head.
    weights : {"model", "ema"}
        See :func:`usl.checkpoints.weights_in`.
    trust : bool
        See :func:`usl.checkpoints.read_checkpoint`.

    Returns
    -------
    nn.Module
        In eval mode; (n, 3, 32, 32) normalised images, for ``resnet50`` of any size, to (n, D)
        features. Its ``out_dim`` is D.

    Raises
    ------
    InputError
        Unreadable, or of another network.
    """
    if output not in ("head", "backbone"):
        raise InputError(f"unknown `output` {output!r}; choose head or backbone")
    if arch not in (*NETWORKS, "resnet50"):
        raise InputError(f"`architecture` {arch!r} has no checkpoints; choose ResNet18 or another")
    state = _unwrapped(weights_in(read_checkpoint(path, trust=trust), which=weights))
    layouts = IMAGENET_LAYOUTS if arch == "resnet50" else LAYOUTS
    # A checkpoint of no known layout is compared with the last: CLD's, or MoCo's.
    _, layout, heads = next((row for row in layouts if row[0] in state), layouts[-1])
    encoder: Any = layout(**sizes_in(state)) if arch == "SmallResNet" else layout()
    load_weights(encoder, state, dropped=heads, where=str(path))
    if backbone_dim not in (None, encoder.dim):
        raise InputError(f"`backbone_dim` is {backbone_dim}, {arch} has {encoder.dim}")
    return (Backbone(encoder) if output == "backbone" else encoder).eval()


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the pretext encoder inside a USL-T checkpoint of ImageNet; others as is."""
    if "backbone.backbone.conv1.weight" not in weights:
        return weights
    return {
        name.removeprefix("backbone."): value
        for name, value in weights.items()
        if not name.startswith("cluster_head.")
    }


def sizes_in(weights: dict[str, Tensor]) -> dict[str, int]:
    """Arguments of the small ResNet that has these weights, as far as they tell."""
    first = weights.get("conv1.weight", weights.get("backbone.conv1.weight"))
    found = {m[1] for name in weights if (m := re.match(r"(?:backbone\.)?layer1\.(\d+)\.", name))}
    return small_resnet(1 if first is None else len(first), 2 + 8 * max(1, len(found)))


def new_cifar_network(arch: str, width: int, depth: int, *, cld: bool) -> nn.Module:
    """An untrained network with the head, or for CLD the two heads, of pretraining.

    Parameters
    ----------
    arch : {"ResNet18", "SmallResNet"}
    width, depth : int
        Of the small ResNet; see :func:`usl.models.resnet_cifar.small_resnet`.
    cld : bool

    Raises
    ------
    InputError
        Sizes that make no network.
    """
    sizes = small_resnet(width, depth) if arch == "SmallResNet" else {}
    return CldNetwork(**sizes) if cld else PretextEncoder(**sizes)


def save_encoder(path: Path, network: nn.Module, *, cld: bool, half: bool = False) -> None:
    """Write a pretrained network in the layout of CLD's, SimCLRv2's, or SCAN's pretext checkpoints.

    With ``half`` floating-point weights are float16; they load like any others.
    """
    weights = {
        name: value.cpu().half() if half and value.is_floating_point() else value.cpu()
        for name, value in network.state_dict().items()
    }
    content: dict[str, Any] = weights
    if cld:
        content = {"model": {f"module.{k}": v for k, v in weights.items()}}
    elif isinstance(network, SimclrEncoder):
        content = {"resnet": {}, "head": {}}
        for name, value in weights.items():
            part, _, inner = name.partition(".")
            content[part][inner] = value
    with replacing(path) as file:
        torch.save(content, file)


def load_backbone(
    path: Path,
    arch: str,
    *,
    backbone_dim: int | None = None,
    weights: str = "model",
    trust: bool = False,
) -> CifarResNet:
    """Load the network of a checkpoint of any layout (CLD, SCAN pretext, USL-T), without heads.

    Parameters
    ----------
    path, backbone_dim, weights, trust
        As for :func:`load_encoder`.
    arch : {"ResNet18", "SmallResNet"}

    Raises
    ------
    InputError
        An unknown architecture; a checkpoint that is unreadable or of another network.
    """
    if arch not in NETWORKS:
        raise InputError(f"unknown `architecture` {arch!r}; choose one of {', '.join(NETWORKS)}")
    state = _unwrapped(weights_in(read_checkpoint(path, trust=trust), which=weights))
    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    backbone = CifarResNet(**(sizes_in(state) if arch == "SmallResNet" else {}))
    load_weights(backbone, state, dropped=HEADS, where=str(path))
    if backbone_dim not in (None, backbone.dim):
        raise InputError(f"`backbone_dim` is {backbone_dim}, {arch} has {backbone.dim}")
    return backbone
