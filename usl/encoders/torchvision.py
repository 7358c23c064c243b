"""Encoders of torchvision by name."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from usl.encoders.hub import from_url
from usl.encoders.library import LibraryNetwork
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError

# Networks that normalise once more where they have the published weights.
TRANSFORMING = ("googlenet", "inception_v3")
# Their classifiers for training, which are not built.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def torchvision_names() -> list[str]:
    """The classifiers of torchvision; some have several weights, ``resnet50.IMAGENET1K_V1``."""
    from torchvision import models

    return sorted(models.list_models(module=models))


def torchvision_network(name: str, *, side: int = 0) -> LibraryNetwork:
    """A network of torchvision without the last layer of its classifier.

    Parameters
    ----------
    name : str
        torchvision's, perhaps with a dot and the name of its weights; else the best ones.
    side : int
        Of the square it is shown; 0: its own.

    Raises
    ------
    InputError
        Unknown, or without a linear last layer.
    """
    from torchvision import models

    arch, _, tag = name.partition(".")
    choices: Any = models.get_model_weights(arch)
    if tag and tag not in choices.__members__:
        known = ", ".join(choices.__members__)
        raise InputError(f"torchvision/{arch} has no weights {tag}; choose one of {known}")
    weights = choices[tag] if tag else choices.DEFAULT
    options = {"transform_input": True, "aux_logits": False} if arch in TRANSFORMING else {}
    with warnings.catch_warnings():
        # Of initial weights, which are replaced.
        warnings.simplefilter("ignore")
        network = models.get_model(arch, **options)
    classes = len(weights.meta["categories"])
    linear = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not linear:
        raise InputError(f"torchvision/{arch} has no linear last layer; choose another")
    path, last = linear[-1]
    network.set_submodule(path, nn.Identity())
    shown = weights.transforms()
    own = shown.crop_size[0]
    resize = shown.resize_size[0]
    if side not in (0, own):
        if hasattr(network, "image_size"):
            raise InputError(f"`side` is {side}, and {name} sees {own} × {own} pixels; set 0")
        own, resize = side, round(side * resize / own)
    preprocess = Preprocess(
        own, resize, "center", shown.interpolation.value, tuple(shown.mean), tuple(shown.std)
    )
    return LibraryNetwork(
        network,
        preprocess,
        last.in_features,
        (f"{path}.", *AUXILIARY),
        lambda: from_url(f"torchvision/{name}", weights.url),
    )
