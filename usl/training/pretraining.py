"""Self-supervised pretraining: two random views of each image, SimCLR or CLD; its evaluator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from usl import distributed
from usl.augment.rng import Key, one_of
from usl.augment.views import ImageViews, Transform
from usl.data.datasets import AnyDataset
from usl.encoders.checkpoints import Backbone
from usl.errors import InputError
from usl.inference import extract
from usl.metrics import alignment, effective_rank, uniformity, weighted_knn
from usl.training.contrastive import cross_level, groups, nt_xent
from usl.training.loop import Step

log = logging.getLogger("usl")

# Views have the numbers 0 to 3; which neighbour is drawn with this one.
NEIGHBOR = 4
# Images that the evaluator looks at without labels.
SAMPLE = 2000
# Below this effective rank the features have collapsed: they lie on little more than a line.
COLLAPSED = 2.0


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Temperatures and weights of the losses.

    Attributes
    ----------
    temperature : float
        Of NT-Xent.
    cld : bool
        Whether the network has group features, (n, 2, D).
    groups : int
        k-means groups in a batch.
    group_temperature, group_weight : float
        Of the cross-level loss.
    """

    temperature: float = 0.2
    cld: bool = False
    groups: int = 32
    group_temperature: float = 0.2
    group_weight: float = 0.25

    def check(self, batch: int) -> None:
        """Raise InputError where the losses are impossible with so many images in a batch."""
        if not self.temperature > 0 or not self.group_temperature > 0:
            raise InputError(
                f"`temperature` is {self.temperature} and `group_temperature` "
                f"{self.group_temperature}; choose positive numbers"
            )
        if not 0 <= self.group_weight < math.inf:
            raise InputError(f"`group_weight` is {self.group_weight}; choose 0 or more")
        if self.cld and not 2 <= self.groups <= batch:
            raise InputError(f"`groups` is {self.groups}; choose 2 to {batch}, the batch")


def contrastive_step(
    views: ImageViews,
    transform: Transform,
    contrast: Contrast,
    *,
    seed: int,
    neighbors: Tensor | None = None,
) -> Callable[[nn.Module], Step]:
    """The step of SimCLR, and with ``contrast.cld`` of CLD, for :func:`usl.training.loop.fit`.

    With ``neighbors`` (N, K), int64, the second view is of one of the image's neighbours, as in
    NNCLR (Dwibedi et al., ICCV 2021), though they are found beforehand and stay. Under ``torchrun``
    every image is compared with those of all processes.
    """

    def make(network: nn.Module) -> Step:
        def step(images: Tensor, epoch: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
            partners = images
            if neighbors is not None:
                partners = one_of(neighbors, Key(images, seed, epoch, NEIGHBOR))
            both = torch.cat(
                [
                    views(transform, images, Key(images, seed, epoch, 0)),
                    views(transform, partners, Key(images, seed, epoch, 1)),
                ]
            )
            z, other = (distributed.gather(half.float()) for half in network(both).chunk(2))
            with torch.autocast(z.device.type, enabled=False):
                return losses(z, other, seed + number)

        return step

    def losses(z: Tensor, other: Tensor, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not contrast.cld:
            return nt_xent(z, other, temperature=contrast.temperature), {}
        instance = nt_xent(z[:, 0], other[:, 0], temperature=contrast.temperature)
        z, other = z[:, 1], other[:, 1]
        grouped = groups(torch.stack([z, other]), contrast.groups, seed)
        cross = cross_level(z, other, grouped, temperature=contrast.group_temperature)
        loss = instance + contrast.group_weight * cross
        return loss, {"nt_xent": instance, "cross_level": cross}

    return make


class Embedding(nn.Module):
    """The instance features of a network in training, whatever else it returns: (n, D)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, H, W) to (n, D)."""
        out: Tensor = self.network(x)
        return out[:, 0] if out.ndim == 3 else out


class PretrainingEvaluator:
    """What to look at while an encoder trains, for :func:`usl.training.loop.fit`.

    Always: alignment, uniformity and effective rank of the features of some training images; a
    warning if they have collapsed. With labels: weighted 20-NN accuracy on ``test``, by the
    features of the head and by those that it sees.

    Parameters
    ----------
    train, test : ImageDataset or FolderDataset
        ``test`` may be None.
    views : ImageViews
        Of the training images.
    transform : Transform
    seed : int
        Of the random views.
    batch_size : int
    """

    def __init__(
        self,
        train: AnyDataset,
        test: AnyDataset | None,
        views: ImageViews,
        transform: Transform,
        *,
        seed: int,
        batch_size: int,
    ) -> None:
        self.train, self.test, self.views, self.transform = train, test, views, transform
        self.seed, self.batch_size = seed, batch_size

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Look at a network in eval mode."""
        some = torch.arange(min(SAMPLE, len(self.train)))
        # Epoch 0 is training's own; views of these numbers are drawn for nothing else.
        z, other = (self._embeddings(Embedding(network), some, view) for view in (2, 3))
        found = {
            "alignment": alignment(z, other),
            "uniformity": uniformity(z),
            "effective_rank": effective_rank(z),
        }
        if found["effective_rank"] < COLLAPSED:
            log.warning(
                "the features have collapsed (effective rank %.2f): lower the learning rate, or "
                "raise the temperature or the batch size",
                found["effective_rank"],
            )
        train, test = self.train, self.test
        if test is not None and train.labels is not None and test.labels is not None:
            labels, answers = (
                torch.from_numpy(x).to(self.views.device) for x in (train.labels, test.labels)
            )
            for name, encoder in (("head", Embedding(network)), ("backbone", Backbone(network))):
                found[f"knn_accuracy/{name}"] = weighted_knn(
                    self._features(encoder, train), labels, self._features(encoder, test), answers
                )
        return found

    def _embeddings(self, network: nn.Module, rows: Tensor, view: int) -> Tensor:
        """Embeddings of one random view of images."""
        parts = []
        for part in torch.split(rows, self.batch_size):
            parts.append(network(self.views(self.transform, part, Key(part, self.seed, 0, view))))
        return torch.cat(parts)

    def _features(self, encoder: nn.Module, dataset: AnyDataset) -> Tensor:
        features = extract(
            encoder,
            dataset,
            preprocess=self.views.preprocess,
            batch_size=self.batch_size,
            device=self.views.device,
            quiet=True,
        )
        return torch.from_numpy(features).to(self.views.device)
