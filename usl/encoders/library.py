"""What the encoders of timm and torchvision share: a network, what it is shown, its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.encoders.checkpoints import Backbone
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError
from usl.models.resnet_cifar import Pretext

CONTRASTIVE = "contrastive_head.0.weight"


@dataclass(frozen=True)
class LibraryNetwork:
    """A network of a library, without weights yet.

    Attributes
    ----------
    network : nn.Module
        (n, 3, side, side), normalised, to features (n, dim); without a classifier.
    preprocess : Preprocess
    dim : int
    head : tuple of str
        Beginnings of the names of the classifier's weights, which checkpoints have too.
    published : callable
        The path of the weights that the library publishes, or InputError.
    converted : callable
        Weights of other layouts under the network's own names.
    """

    network: nn.Module
    preprocess: Preprocess
    dim: int
    head: tuple[str, ...]
    published: Callable[[], Path]
    converted: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights


class Scaled(nn.Module):
    """An encoder whose features are scaled to length 1, for networks in training."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, side, side) to (n, dim) of length 1."""
        return F.normalize(self.encoder(x))


def load_library(
    parts: LibraryNetwork, path: Path, *, output: str, weights: str, trust: bool
) -> tuple[nn.Module, int, bool]:
    """Put the weights of a file into a network.

    The file may be the library's, with or without its classifier; one that pretraining here wrote,
    with a contrastive head; or a USL-T checkpoint of either.

    Parameters
    ----------
    parts : LibraryNetwork
        Its network is changed.
    path : Path
    output : {"head", "backbone"}
        Of a contrastive head, or before it; networks without one have one output.
    weights, trust
        As for :func:`usl.encoders.checkpoints.load_encoder`.

    Returns
    -------
    network : nn.Module
        In eval mode.
    dim : int
    scaled : bool
        Whether its features have length 1 already.

    Raises
    ------
    InputError
        Unreadable, or of another network.
    """
    state = _inside(weights_in(read_checkpoint(path, trust=trust), which=weights))
    if CONTRASTIVE in state:
        network: Any = Pretext(parts.network, parts.dim)
        load_weights(network, state, where=str(path))
        network = Backbone(network) if output == "backbone" else network
        return network.eval(), network.out_dim, True
    try:
        state = parts.converted(state)
    except Exception as error:  # converters meet whatever a file holds
        raise InputError(
            f"checkpoint {path} is of another network ({type(error).__name__}: {error}); give one "
            "of this network"
        ) from None
    own = parts.network.state_dict()
    dropped = [head for head in parts.head if not any(name.startswith(head) for name in own)]
    load_weights(parts.network, state, dropped=dropped, where=str(path))
    return parts.network.eval(), parts.dim, False


def _inside(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the encoder inside a USL-T checkpoint; others as they are."""
    if not any(name.startswith("cluster_head.") for name in weights):
        return weights
    inner = {
        name.removeprefix("backbone."): value
        for name, value in weights.items()
        if name.startswith("backbone.")
    }
    if all(name.startswith("encoder.") for name in inner):
        inner = {name.removeprefix("encoder."): value for name, value in inner.items()}
    return inner
