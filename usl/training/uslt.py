"""Training the selector: USL-T's step, the reassignment of empty clusters, and the evaluator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from usl import distributed
from usl.augment.rng import Key, one_of, permutation
from usl.augment.views import ImageViews, Transform
from usl.data.datasets import AnyDataset
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError
from usl.inference import extract
from usl.metrics import cluster_summary
from usl.models.uslt import UsltNetwork
from usl.training.loop import Step
from usl.training.uslt_losses import GlobalCriterion, LocalCriterion

log = logging.getLogger("usl")

STRONG, NEIGHBOR, WHICH_NEIGHBOR = 0, 1, 2
# Standard deviation of what keeps the two halves of a divided cluster apart.
EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class Weights:
    """When each loss counts, and how much the local one does.

    Attributes
    ----------
    local : float
        Factor of the local loss.
    local_until : float
        The last epoch with the local loss, counted from 0.
    global_from : int
        The global loss is on from this epoch on.
    """

    local: float = 5.0
    local_until: float = math.inf
    global_from: int = 0


def uslt_step(
    views: ImageViews,
    transform: Transform,
    neighbors: Tensor,
    local: LocalCriterion,
    whole: GlobalCriterion,
    weights: Weights,
    *,
    seed: int,
) -> Callable[[nn.Module], Step]:
    """The step of USL-T, for :func:`usl.training.loop.fit` (paper, section 4).

    Three forward passes, of the standard view, a strong view, and a strong view of a neighbour;
    gradients flow through the second. Under ``torchrun`` the losses see the logits of all
    processes, so the world size does not change the method.

    Parameters
    ----------
    views : ImageViews
    transform : Transform
        Of the strong views.
    neighbors : Tensor (N, K), int64
        One of these is drawn for every image in every epoch; column 0 is the image itself.
    local, whole : criterions
        Their averages move with every step.
    weights : Weights
    seed : int
    """

    def make(network: nn.Module) -> Step:
        def logits(x: Tensor) -> Tensor:
            return distributed.gather(network(x).float())

        def step(images: Tensor, epoch: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
            partners = one_of(neighbors, Key(images, seed, epoch, WHICH_NEIGHBOR))
            with torch.no_grad():
                standard = logits(views.standard(images))
            strong = logits(views(transform, images, Key(images, seed, epoch, STRONG)))
            with torch.no_grad():
                neighbor = logits(views(transform, partners, Key(images, seed, epoch, NEIGHBOR)))
            with torch.autocast(strong.device.type, enabled=False):
                # A loss that is off is 0, and still a function of the weights.
                loss_global = loss_local = strong.sum() * 0.0
                if epoch >= weights.global_from:
                    loss_global = whole(standard, strong)
                if epoch <= weights.local_until:
                    loss_local = local(strong, neighbor)
                loss = loss_global + weights.local * loss_local
            return loss, {"loss_global": loss_global, "loss_local": loss_local}

        return step

    return make


@dataclass(frozen=True, kw_only=True)
class Reassignment:
    """When the smallest cluster of a head takes half of the largest.

    Attributes
    ----------
    after : int
        Batches that the global loss has seen before the first.
    low, high : float
        Average images of the smallest cluster below, and of the largest above.
    """

    after: int
    low: float
    high: float


@torch.no_grad()
def reassign(
    weights: Sequence[Tensor],
    count_ema: Tensor,
    *,
    low: float,
    high: float,
    generator: torch.Generator,
) -> int:
    """Give the smallest cluster of each head half of the largest, if they are that unlike.

    Parameters
    ----------
    weights : sequence of H Tensors (C, D)
        Of the heads; changed in place.
    count_ema : Tensor (H, C)
        Average images of each cluster; changed in place.
    low, high : float
        Only where the smallest average count is below and the largest above.
    generator : torch.Generator
        On the CPU, the same in every process.

    Returns
    -------
    int
        How many heads were changed.
    """
    changed = 0
    for weight, ema in zip(weights, count_ema, strict=True):
        smallest, largest = int(ema.argmin()), int(ema.argmax())
        noise = EPSILON * torch.randn(weight.shape[1], generator=generator).to(weight)
        if ema[smallest] >= low or ema[largest] <= high:
            continue
        weight[smallest] = weight[largest] + noise
        weight[largest] -= noise
        ema[[smallest, largest]] = ema[largest] / 2
        changed += 1
    return changed


def reassigning(
    network: UsltNetwork, whole: GlobalCriterion, reassignment: Reassignment, *, seed: int
) -> Callable[[int], None]:
    """What to do after each step, for :func:`usl.training.loop.fit`, so that no cluster is empty.

    The halves of a cluster lie 1e-7 apart at first, so that rounding decides between them: from
    then on, devices and numbers of processes no longer end with the same weights.
    """

    def after_step(number: int) -> None:
        if int(whole.num_counts) <= reassignment.after:
            return
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        changed = reassign(
            network.head_weights(),
            whole.count_ema,
            low=reassignment.low,
            high=reassignment.high,
            generator=generator,
        )
        if changed and distributed.is_main():
            log.info("step %d: %d heads gave half of a large cluster to a small", number, changed)

    return after_step


@torch.no_grad()
def start_heads(
    network: UsltNetwork, views: ImageViews, *, images: int, seed: int, batch: int
) -> None:
    """Let cosine heads start from the features of the first images that training will see.

    Raises
    ------
    InputError
        Fewer images than outputs of all heads together.
    """
    weights = network.head_weights()
    needed = sum(len(weight) for weight in weights)
    if needed > images:
        raise InputError(
            f"{len(weights)} heads of {len(weights[0])} clusters start from {needed} images, and "
            f"there are {images}; lower `clusters`"
        )
    network.eval()
    first = permutation(images, seed=seed, epoch=0)[:needed].to(views.device)
    parts = [first[start : start + batch] for start in range(0, needed, batch)]
    network.start_from(torch.cat([network.backbone(views.standard(part)) for part in parts]))


class _Predictions(nn.Module):
    """Most likely cluster and its probability, (n, H, 2), adding up all probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.total = network, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, H, 2), float32."""
        probabilities = self.network(x).float().softmax(dim=2)
        self.total = self.total + probabilities.sum(dim=0, dtype=torch.float64).cpu()
        top = probabilities.max(dim=2)
        return torch.stack([top.indices.float(), top.values], dim=2)


class UsltEvaluator:
    """Diagnostics of every head on a data set, for :func:`usl.training.loop.fit`.

    Labels are read only to be compared with; without them what needs none is left. The last
    predictions are kept, as ``val_predictions`` of a checkpoint.

    Parameters
    ----------
    data : ImageDataset or FolderDataset
    preprocess : Preprocess
    threshold : float
        Confidence above which an image counts in training.
    batch_size : int
    device : torch.device
    """

    def __init__(
        self,
        data: AnyDataset,
        preprocess: Preprocess,
        *,
        threshold: float,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.data, self.preprocess, self.threshold = data, preprocess, threshold
        self.batch_size, self.device = batch_size, device
        self.predictions: list[dict[str, Tensor]] = []

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """``nonempty/0``, …: the numbers of :func:`usl.metrics.cluster_summary`, head by head."""
        predict = _Predictions(network)
        found = extract(
            predict,
            self.data,
            preprocess=self.preprocess,
            batch_size=self.batch_size,
            device=self.device,
            quiet=True,
        )
        clusters, confidence = found[..., 0].astype(np.int64), found[..., 1]
        summaries = [
            cluster_summary(
                clusters[:, head],
                confidence[:, head],
                (total / len(self.data)).numpy(),
                threshold=self.threshold,
                labels=self.data.labels,
            )
            for head, total in enumerate(predict.total)
        ]
        self.predictions = [
            {"predictions": torch.from_numpy(c), "confidence": torch.from_numpy(p)}
            for c, p in zip(clusters.T.copy(), confidence.T.copy(), strict=True)
        ]
        for head, summary in enumerate(summaries):
            self._warn(head, summary, predict.total.shape[1])
        return {f"{k}/{head}": s[k] for k in summaries[0] for head, s in enumerate(summaries)}

    def _warn(self, head: int, summary: dict[str, float], clusters: int) -> None:
        if not distributed.is_main():
            return
        # No more clusters than images can have one.
        if summary["nonempty"] < min(clusters, len(self.data)) / 2:
            log.warning(
                "head %d: only %d of %d clusters are not empty; raise the adjustment weight or the "
                "scale of the local loss, or lower the learning rate",
                head, summary["nonempty"], clusters,
            )  # fmt: skip
        elif summary["largest"] > len(self.data) / 2:
            log.warning(
                "head %d: one of %d clusters has %d of %d images; raise the adjustment weight, or "
                "reweight the clusters",
                head, clusters, summary["largest"], len(self.data),
            )  # fmt: skip

    def state_dict(self) -> list[dict[str, Tensor]]:
        """The last predictions: for each head clusters (M,) and their probabilities (M,)."""
        return self.predictions

    def load_state_dict(self, state: Any) -> None:
        """Take up the predictions of an earlier run."""
        self.predictions = state
