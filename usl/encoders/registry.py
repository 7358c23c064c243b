"""Encoders by name: network, preprocessing, dimension, and where the weights came from.

To add one, write a function like those below and enter it in ``ENCODERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from usl.artifacts import fingerprint
from usl.data.datasets import AnyDataset
from usl.encoders.checkpoints import load_encoder
from usl.encoders.pixels import Pixels, mean_image
from usl.encoders.preprocess import Preprocess, preprocess_named, sizes_for
from usl.errors import InputError


@dataclass(frozen=True)
class Encoder:
    """A frozen network and all that is needed to use it.

    Attributes
    ----------
    network : nn.Module
        In eval mode: what ``preprocess`` makes of images to features, (n, dim).
    preprocess : Preprocess
    dim : int
    unit : bool
        Whether its features have length 1.
    source : dict of str to str
        Its name and fingerprints, for the record.
    """

    network: nn.Module
    preprocess: Preprocess
    dim: int
    unit: bool
    source: dict[str, str]

    def __str__(self) -> str:
        length = " of length 1" if self.unit else ""
        return f"{self.source['architecture']}: {self.dim} dimensions{length}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an encoder is built from; each uses what it needs.

    Attributes
    ----------
    images : ImageDataset or FolderDataset
        The training images of the data set to embed.
    transform : str
        Name of the normalisation that a released network was trained with.
    side : int
        Of the square cut from an image file, in pixels.
    checkpoint : callable, optional
        Returns the path of the weights, or raises InputError where there are none.
    output : {"head", "backbone"}
        Which features; see :func:`usl.encoders.checkpoints.load_encoder`.
    backbone_dim : int, optional
        Width before the head that the caller expects.
    weights : {"model", "ema"}
        Which weights of a checkpoint that has several.
    trust : bool
        Load checkpoints that could run code.
    """

    images: AnyDataset
    transform: str = ""
    side: int = 224
    checkpoint: Callable[[], Path] | None = None
    output: str = "head"
    backbone_dim: int | None = None
    weights: str = "model"
    trust: bool = False


def build_encoder(name: str, request: Request) -> Encoder:
    """The encoder of this name, in eval mode.

    Raises
    ------
    InputError
        Unknown name or transform; a checkpoint that is missing or does not fit.
    """
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise InputError(f"unknown `architecture` {name!r}; choose one of {known}")
    return ENCODERS[name](name, request)


def _pixels(name: str, request: Request) -> Encoder:
    preprocess = Preprocess(*sizes_for(request.images, request.side), native=True)
    network = Pixels(mean_image(request.images, preprocess)).eval()
    source = {"architecture": name, "mean_of": request.images.fingerprint()}
    return Encoder(network, preprocess, network.out_dim, True, source)


def _from_checkpoint(name: str, request: Request) -> Encoder:
    preprocess = preprocess_named(request.transform, request.images, side=request.side)
    if request.checkpoint is None:
        raise InputError(f"encoder {name} needs a `checkpoint`; give one")
    path = request.checkpoint()
    network = load_encoder(
        path,
        name,
        output=request.output,
        backbone_dim=request.backbone_dim,
        weights=request.weights,
        trust=request.trust,
    )
    source = {
        "architecture": name,
        "output": request.output,
        "checkpoint": path.name,
        "weights": request.weights,
        "sha256": fingerprint(path),
    }
    return Encoder(network, preprocess, network.out_dim, network.unit, source)


# By name: ``f(name, request)``, which builds the encoder.
ENCODERS: dict[str, Callable[[str, Request], Encoder]] = {
    "ResNet18": _from_checkpoint,
    "SmallResNet": _from_checkpoint,
    "resnet50": _from_checkpoint,
    "pixels": _pixels,
}
