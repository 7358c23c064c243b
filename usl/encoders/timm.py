"""Encoders of timm by name, and the image towers of CLIP through timm."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from usl.encoders.hub import from_hub, from_url
from usl.encoders.library import LibraryNetwork
from usl.encoders.preprocess import CROPS, INTERPOLATION, Preprocess
from usl.errors import InputError

# The names that the original gives OpenAI's networks; the plain names of timm have another
# activation. OpenAI crops nothing.
CLIP = {
    "CLIP-ViT-B/16": "vit_base_patch16_clip_quickgelu_224.openai",
    "CLIP-ViT-B/32": "vit_base_patch32_clip_quickgelu_224.openai",
    "CLIP-ViT-L/14": "vit_large_patch14_clip_quickgelu_224.openai",
}
# What repositories call their weights, the best first.
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


def timm_names() -> list[str]:
    """The networks that timm has weights for, with tags such as ``resnet50.a1_in1k``."""
    import timm

    names: list[str] = timm.list_models(pretrained=True)
    return names


def timm_network(name: str, *, side: int = 0) -> LibraryNetwork:
    """A network of timm without its classifier: pooled features.

    Parameters
    ----------
    name : str
        timm's, with a tag or without.
    side : int
        Of the square it is shown; 0: its own.

    Raises
    ------
    InputError
        Unknown, not for square images of three channels, or not for this side.
    """
    return _network(name, f"timm/{name}", side=side, options={"num_classes": 0})


def clip_network(name: str, *, side: int = 0, projected: bool = True) -> LibraryNetwork:
    """The image tower of CLIP: its projection, 512 dimensions (L/14: 768), or what comes before.

    Parameters
    ----------
    name : str
        A key of ``CLIP``.
    side : int
        Of the square it is shown; 0: 224.
    projected : bool
    """
    options = {} if projected else {"num_classes": 0}
    return _network(CLIP[name], name, side=side, options=options, crop_pct=1.0)


def _network(
    name: str, title: str, *, side: int, options: dict[str, Any], crop_pct: float | None = None
) -> LibraryNetwork:
    import timm
    from timm import data

    try:
        found = timm.models.get_pretrained_cfg(name)
        if side and found is not None and found.fixed_input_size:
            # Position embeddings of this size; the converter resamples those of a checkpoint.
            options = options | {"img_size": side}
        network: Any = timm.create_model(name, **options)
    except Exception as error:  # timm and its networks raise errors of any kind
        raise InputError(f"timm cannot build {name}: {error}; choose another") from None
    known = network.pretrained_cfg
    config: dict[str, Any] = data.resolve_model_data_config(network)  # type: ignore
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise InputError(
            f"timm's {name} sees {width} × {height} pixels of {channels} channels; choose one that "
            "sees squares of 3"
        )
    side = side or height
    crop, interpolation = config["crop_mode"], config["interpolation"]
    if crop not in CROPS or interpolation not in INTERPOLATION:
        raise InputError(f"timm's {name} wants crop {crop} and {interpolation}; choose another")
    preprocess = Preprocess(
        side,
        math.floor(side / (crop_pct or config["crop_pct"])),
        crop,
        interpolation,
        tuple(map(float, config["mean"])),
        tuple(map(float, config["std"])),
    )
    heads = known.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    dim = network.num_classes or getattr(network, "head_hidden_size", 0) or network.num_features

    def converted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        _check_patches(network, weights)
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        return weights if convert is None else dict(convert(weights, network))

    return LibraryNetwork(
        network, preprocess, dim, tuple(f"{head}." for head in heads),
        lambda: _published(title, known), converted,
    )  # fmt: skip


def _check_patches(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raise ValueError where patches have another size: converters would resample them too."""
    own = network.state_dict().get("patch_embed.proj.weight")
    patches = [
        value
        for name, value in weights.items()
        if name.endswith(("patch_embed.proj.weight", "visual.conv1.weight"))
    ]
    for value in patches:
        if own is not None and value.ndim == own.ndim and value.shape[-2:] != own.shape[-2:]:
            raise ValueError(f"patches of {value.shape[-1]} pixels, not {own.shape[-1]}")


def _published(name: str, known: dict[str, Any]) -> Path:
    """The weights that timm has for a network."""
    repository, file = known.get("hf_hub_id"), known.get("hf_hub_filename")
    if repository:
        return from_hub(name, repository, (file,) if file else FILES)
    if known.get("url"):
        return from_url(name, known["url"])
    raise InputError(
        f"timm has no weights for {name}; give a file as `checkpoint`, or add a tag "
        "of timm's to the name"
    )
