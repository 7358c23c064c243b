"""Encoders by name: network, preprocessing, dimension, and where the weights came from.

To add one, write a function like those below and enter it in ``ENCODERS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from usl.artifacts import fingerprint
from usl.data.datasets import AnyDataset
from usl.encoders.checkpoints import (
    NETWORKS,
    Backbone,
    load_backbone,
    load_encoder,
    new_cifar_network,
)
from usl.encoders.library import LibraryNetwork, Scaled, load_library
from usl.encoders.pixels import Pixels, mean_image
from usl.encoders.preprocess import (
    SIDE,
    Preprocess,
    check_agreement,
    preprocess_named,
    sizes_for,
)
from usl.encoders.simclrv2 import load_simclrv2, size_of
from usl.encoders.timm import CLIP, clip_network, timm_names, timm_network
from usl.encoders.torchvision import torchvision_names, torchvision_network
from usl.errors import InputError
from usl.models.resnet_cifar import EMBEDDING, Pretext
from usl.models.resnet_imagenet import MocoEncoder
from usl.models.simclrv2 import SimclrEncoder

# Side of what ``pixels`` sees of image files.
PIXELS = 32
SIMCLRV2 = "SimCLRv2"
# Largest side of images that a new SimCLRv2 network takes for small ones.
SMALL = 64


@dataclass(frozen=True)
class Encoder:
    """A frozen network and all that is needed to use it.

    Attributes
    ----------
    network : nn.Module
        In eval mode: what ``preprocess`` makes of images to features, (n, dim).
    preprocess : Preprocess
    dim : int
    scale : bool
        Its features are saved as they come and scaled to length 1 after loading.
    source : dict of str to str
        Its name and fingerprints, for the record.
    """

    network: nn.Module
    preprocess: Preprocess
    dim: int
    scale: bool
    source: dict[str, str]

    def __str__(self) -> str:
        return f"{self.source['architecture']}: {self.dim} dimensions"

    def for_training(self) -> nn.Module:
        """The network as part of another: its features have the length that stages use."""
        return Scaled(self.network) if self.scale else self.network


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
        Of the square cut from an image file, in pixels; 0: what the encoder was made for.
    checkpoint : callable, optional
        Returns the path of the weights, or raises InputError where there are none. Without it those
        that the encoder's library publishes.
    output : {"head", "backbone"}
        Which features; see :func:`usl.encoders.checkpoints.load_encoder`.
    backbone_dim : int, optional
        Width before the head that the caller expects.
    weights : {"model", "ema"}
        Which weights of a checkpoint that has several.
    size : str
        Of a SimCLRv2 network, where the name of its checkpoint does not say it.
    trust : bool
        Load checkpoints that could run code.
    skip_unreadable : bool
        Files that are no images do not count, where an encoder is made from the images.
    """

    images: AnyDataset
    transform: str = ""
    side: int = 0
    checkpoint: Callable[[], Path] | None = None
    output: str = "head"
    backbone_dim: int | None = None
    weights: str = "model"
    size: str = ""
    trust: bool = False
    skip_unreadable: bool = False


def build_encoder(name: str, request: Request) -> Encoder:
    """The encoder of this name, in eval mode.

    Raises
    ------
    InputError
        Unknown name or transform; a checkpoint that is missing or does not fit.
    """
    if request.side < 0:
        raise InputError(f"`side` is {request.side}; choose 0, the encoder's own, or more")
    if request.output not in ("head", "backbone"):
        raise InputError(f"unknown `output` {request.output!r}; choose head or backbone")
    build = ENCODERS.get(name)
    if build is None:
        _library(name)
        build = _from_library
    return build(name, request)


def build_backbone(name: str, request: Request) -> tuple[nn.Module, int, dict[str, str]]:
    """The pretrained network of an encoder, to be trained on: what its head sees, as it comes.

    Returns
    -------
    network : nn.Module
        Images to features (n, dim).
    dim : int
    source : dict of str to str
        As :class:`Encoder` has it.

    Raises
    ------
    InputError
        As :func:`build_encoder`; or an encoder that is no network.
    """
    if name == "pixels":
        raise InputError("`architecture` is pixels; choose an encoder that is a network")
    if name in NETWORKS and request.checkpoint is not None:
        path = request.checkpoint()
        backbone = load_backbone(
            path,
            name,
            backbone_dim=request.backbone_dim,
            weights=request.weights,
            trust=request.trust,
        )
        return backbone, backbone.dim, _source(name, request, path)
    encoder = build_encoder(name, replace(request, output="backbone"))
    network: Any = encoder.network
    if isinstance(network, Backbone):
        network = network.encoder
    if isinstance(network, MocoEncoder):
        parts = [part for name, part in network.named_children() if name != "fc"]
        network = nn.Sequential(*parts, nn.Flatten())
    elif isinstance(network, Pretext):
        network = network.backbone
    elif isinstance(network, SimclrEncoder):
        network = network.resnet
    return network, encoder.dim, encoder.source


def pretrained_simclrv2(request: Request) -> tuple[SimclrEncoder, dict[str, str]]:
    """A pretrained SimCLRv2 network with its head, in eval mode, and its source.

    Raises
    ------
    InputError
        No checkpoint, or one that does not fit what is asked for.
    """
    if request.checkpoint is None:
        raise InputError(
            f"encoder {SIMCLRV2} needs a `checkpoint`; give one, such as r50_1x_sk0.pth"
        )
    if request.weights != "model":
        raise InputError(f"{SIMCLRV2}'s checkpoints have no weight average; set `weights` model")
    path = request.checkpoint()
    encoder = load_simclrv2(path, size=request.size, trust=request.trust)
    if request.backbone_dim not in (None, encoder.dim):
        raise InputError(f"`backbone_dim` is {request.backbone_dim}, {path} has {encoder.dim}")
    return encoder, _source(SIMCLRV2, request, path)


def saved_as_it_comes(name: str) -> bool:
    """Whether features of the encoder of this name are scaled to length 1 after loading.

    Raises
    ------
    InputError
        Unknown name.
    """
    if name not in ENCODERS:
        _library(name)
    return name in SCALED or name not in ENCODERS


def preprocess_for(name: str, request: Request) -> Preprocess:
    """The preprocessing of the network of this name, without its weights.

    Names other than those of libraries are not looked at: all of the project's networks, also those
    that are no encoders, are shown images as ``request`` says.

    Raises
    ------
    InputError
        Unknown name of a library, or unknown transform.
    """
    if name in CLIP or name.startswith(LIBRARIES):
        parts = _outline(name, request.side)
        _check_transform(name, request, parts.preprocess)
        return parts.preprocess
    if name == SIMCLRV2:
        return _simclrv2_preprocess(request)
    return preprocess_named(request.transform, request.images, side=request.side)


def new_network(
    name: str, width: int, depth: int, *, cld: bool, side: int = 0, size: str = ""
) -> nn.Module:
    """An untrained network with the head, or for CLD the two heads, of pretraining.

    Parameters
    ----------
    name : str
        ResNet18 or SmallResNet; or SimCLRv2, or a network of timm or torchvision, which CLD does
        not take.
    width, depth : int
        Of the small ResNet; see :func:`usl.models.resnet_cifar.small_resnet`.
    cld : bool
    side : int
        Of the square that the network is shown; 0: its own.
    size : str
        Of a SimCLRv2 network. For images of at most 64 pixels it has the stem of small images.

    Raises
    ------
    InputError
        An unknown architecture, or sizes that make no network.
    """
    if name in NETWORKS:
        return new_cifar_network(name, width, depth, cld=cld)
    if name == SIMCLRV2 and not cld:
        return SimclrEncoder(size_of(size), small_images=0 < side <= SMALL)
    if name in ENCODERS or cld:
        raise InputError(
            f"`architecture` {name!r} is not trained here{' with CLD' if cld else ''}; choose "
            f"{' or '.join(NETWORKS)}"
        )
    parts = _library(name)(side=side)
    return Pretext(parts.network, parts.dim)


def encoder_names() -> list[str]:
    """Every name that :func:`build_encoder` takes."""
    return [
        *ENCODERS,
        *(f"timm/{name}" for name in timm_names()),
        *(f"torchvision/{name}" for name in torchvision_names()),
    ]


def describe(name: str) -> tuple[str, str]:
    """Dimensions of an encoder's features and side of what it sees, in words, without weights."""
    if name in OWN:
        return OWN[name]
    parts = _outline(name)
    return str(parts.dim), str(parts.preprocess.side)


def _outline(name: str, side: int = 0) -> LibraryNetwork:
    """A network of a library without memory for its weights, where it can be built so."""
    try:
        with torch.device("meta"):
            return _library_network(name, side)
    except (InputError, NotImplementedError, RuntimeError):
        # Some compute while they are built; a name that is wrong is so again.
        return _library_network(name, side)


def _library_network(name: str, side: int = 0) -> LibraryNetwork:
    return clip_network(name, side=side) if name in CLIP else _library(name)(side=side)


def _library(name: str) -> Callable[..., LibraryNetwork]:
    """What builds a network of timm or torchvision; an error, with near names, for another name."""
    library, _, inner = name.partition("/")
    if library == "timm":
        import timm

        # Without a tag also networks that timm has no weights for.
        if inner in timm_names() or ("." not in inner and timm.is_model(inner)):
            return lambda *, side: timm_network(inner, side=side)
    if library == "torchvision" and inner.partition(".")[0] in torchvision_names():
        return lambda *, side: torchvision_network(inner, side=side)
    # By the last part of the name, since people leave out the library.
    names = encoder_names()
    names = [known for known in names if known.startswith(f"{library}/")] or names
    known = {known.rpartition("/")[2].lower(): known for known in names}
    text = name.rpartition("/")[2].lower()
    close = difflib.get_close_matches(text, known, n=3) or [key for key in known if text in key][:3]
    near = [known[match] for match in close]
    meant = f"did you mean {', '.join(near)}? " if near else ""
    raise InputError(
        f"unknown `architecture` {name!r}; {meant}choose one of {', '.join(ENCODERS)}, "
        "timm/NAME or torchvision/NAME; python -m usl.encoders lists them"
    )


def _check_transform(name: str, request: Request, preprocess: Preprocess) -> None:
    # The original's files name ImageNet's transform beside CLIP, which has its own.
    if not (name in CLIP and request.transform in ("imagenet", "imagenet100")):
        check_agreement(request.transform, preprocess, name)


def _pixels(name: str, request: Request) -> Encoder:
    # Of image files more pixels would be a hundred thousand dimensions, and no better.
    side = min(request.side or PIXELS, PIXELS)
    preprocess = Preprocess(*sizes_for(request.images, side), native=True)
    mean = mean_image(request.images, preprocess, skip_unreadable=request.skip_unreadable)
    network = Pixels(mean).eval()
    source = {"architecture": name, "mean_of": request.images.fingerprint()}
    return Encoder(network, preprocess, network.out_dim, False, source)


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
    return Encoder(network, preprocess, network.out_dim, False, _source(name, request, path))


def _simclrv2(name: str, request: Request) -> Encoder:
    preprocess = _simclrv2_preprocess(request)
    encoder, source = pretrained_simclrv2(request)
    network: Any = Backbone(encoder) if request.output == "backbone" else encoder
    return Encoder(network.eval(), preprocess, network.out_dim, False, source)


def _simclrv2_preprocess(request: Request) -> Preprocess:
    """Pixels from 0 to 1 as they are, resized with bicubic interpolation (the paper's)."""
    preprocess = Preprocess(*sizes_for(request.images, request.side), interpolation="bicubic")
    check_agreement(request.transform, preprocess, SIMCLRV2)
    return preprocess


def _from_library(name: str, request: Request) -> Encoder:
    return _loaded(name, request, _library(name)(side=request.side))


def _clip(name: str, request: Request) -> Encoder:
    projected = request.output == "head"
    return _loaded(name, request, clip_network(name, side=request.side, projected=projected))


def _loaded(name: str, request: Request, parts: LibraryNetwork) -> Encoder:
    """A network of a library with its weights."""
    _check_transform(name, request, parts.preprocess)
    path = parts.published() if request.checkpoint is None else request.checkpoint()
    network, dim, scaled = load_library(
        parts, path, output=request.output, weights=request.weights, trust=request.trust
    )
    if request.backbone_dim not in (None, parts.dim):
        raise InputError(f"`backbone_dim` is {request.backbone_dim}, {name} has {parts.dim}")
    return Encoder(network, parts.preprocess, dim, not scaled, _source(name, request, path))


def _source(name: str, request: Request, path: Path) -> dict[str, str]:
    return {
        "architecture": name,
        "output": request.output,
        "checkpoint": path.name,
        "weights": request.weights,
        "sha256": fingerprint(path),
    }


# How the names of encoders from libraries begin.
LIBRARIES = ("timm/", "torchvision/")
# Those of ``ENCODERS`` whose features are saved as they come and scaled to length 1 after loading.
SCALED = set(CLIP)
# What the project's own encoders make and see, for lists of encoders.
OWN = {
    "ResNet18": (str(EMBEDDING), "32"),
    "SmallResNet": (str(EMBEDDING), "32"),
    "resnet50": (str(EMBEDDING), str(SIDE)),
    SIMCLRV2: (str(EMBEDDING), f"{SIDE}, or its images'"),
    "pixels": ("all pixels", f"its own, of files at most {PIXELS}"),
}
# By name: ``f(name, request)``, which builds the encoder. Beside these the names of timm and
# torchvision, timm/NAME and torchvision/NAME.
ENCODERS: dict[str, Callable[[str, Request], Encoder]] = {
    "ResNet18": _from_checkpoint,
    "SmallResNet": _from_checkpoint,
    "resnet50": _from_checkpoint,
    SIMCLRV2: _simclrv2,
    "pixels": _pixels,
    **dict.fromkeys(CLIP, _clip),
}
