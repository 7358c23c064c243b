"""The losses of USL-T: global, of confident clusters, and local, of neighbours (paper, section 4).

Everything here sees the logits of all heads, (n, H, C), of the whole batch: under ``torchrun`` the
rows of all processes, so that no count, average or mask depends on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROB_MOMENTUM = 0.5
COUNT_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """How the global loss chooses and weighs images.

    Attributes
    ----------
    threshold : float
        Images whose largest probability is above it count.
    reweight : bool
        A cluster with c of m counted images has the weight m / c.
    renormalise : bool
        Instead m / (c · clusters present).
    mean_outside_mask : bool
        Divide the sum by the size of the batch, not by the weights of the counted images.
    """

    threshold: float = 0.95
    reweight: bool = True
    renormalise: bool = False
    mean_outside_mask: bool = False


def global_loss(standard: Tensor, strong: Tensor, options: GlobalOptions) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the strong view against the cluster of the standard one, of one head.

    Parameters
    ----------
    standard, strong : Tensor (n, C)
        Logits; no gradient flows to ``standard``.
    options : GlobalOptions

    Returns
    -------
    loss : Tensor, scalar
        0 when no image is confident.
    counts : Tensor (C,), int64
        Confident images of each cluster.
    """
    confidence, target = standard.detach().softmax(dim=1).max(dim=1)
    mask = confidence > options.threshold
    counts = torch.bincount(target[mask], minlength=standard.shape[1])
    counted = counts.sum()
    weights = torch.ones_like(standard[0])
    if options.renormalise:
        weights = counted / (counts * (counts > 0).sum()).clamp_min(1)
    elif options.reweight:
        weights = counted / counts.clamp_min(1)
    weights = torch.where(counts > 0, weights, 1.0)[target] * mask
    losses = F.cross_entropy(strong, target, reduction="none") * weights
    if options.mean_outside_mask:
        return losses.mean(), counts
    return losses.sum() / torch.where(counted > 0, weights.sum(), 1.0), counts


def local_loss(
    strong: Tensor, neighbor: Tensor, prob: Tensor, *, adjustment: float, temperature: float
) -> Tensor:
    """KL divergence from the neighbour's adjusted and sharpened prediction, of one head.

    Parameters
    ----------
    strong, neighbor : Tensor (n, C)
        Logits; no gradient flows to ``neighbor``.
    prob : Tensor (C,)
        Average prediction so far: clusters predicted often are made less likely.
    adjustment : float
        Weight of its logarithm.
    temperature : float
        Of the sharpening: probabilities to the power 1 / temperature, normalised again.

    Returns
    -------
    Tensor, scalar
        Mean over the batch.
    """
    # A probability that has vanished in float32 must not make the target NaN.
    adjusted = neighbor.detach() - adjustment * prob.clamp_min(torch.finfo(prob.dtype).tiny).log()
    target = (adjusted / temperature).softmax(dim=1)
    return F.kl_div(strong.log_softmax(dim=1), target, reduction="batchmean")


class LocalCriterion(nn.Module):
    """The local loss of all heads and the moving average of their predictions, ``prob_ema``."""

    def __init__(self, heads: int, clusters: int, *, adjustment: float, temperature: float) -> None:
        super().__init__()
        self.adjustment, self.temperature = adjustment, temperature
        self.prob_ema: Tensor
        self.register_buffer("prob_ema", torch.full((heads, clusters), 1.0 / clusters))

    def forward(self, strong: Tensor, neighbor: Tensor) -> Tensor:
        """Logits (n, H, C) of two views to the sum over heads; then the average moves."""
        loss = torch.stack(
            [
                local_loss(
                    strong[:, head],
                    neighbor[:, head],
                    prob,
                    adjustment=self.adjustment,
                    temperature=self.temperature,
                )
                for head, prob in enumerate(self.prob_ema)
            ]
        ).sum()
        with torch.no_grad():
            now = neighbor.softmax(dim=2).mean(dim=0)
            mixed = PROB_MOMENTUM * self.prob_ema + (1 - PROB_MOMENTUM) * now
            self.prob_ema.copy_(mixed / mixed.sum(dim=1, keepdim=True))
        return loss


class GlobalCriterion(nn.Module):
    """The global loss of all heads and, if asked, how many images each cluster has.

    Buffers: ``num_counts`` (1,), how many batches it has seen; with ``images``, the size of the
    data set, also ``count_ema`` (H, C), a moving average of the images of each cluster.
    """

    def __init__(
        self, heads: int, clusters: int, options: GlobalOptions, *, images: int = 0
    ) -> None:
        super().__init__()
        self.images, self.options = images, options
        self.num_counts: Tensor
        self.register_buffer("num_counts", torch.zeros(1, dtype=torch.int64))
        if images:
            self.count_ema: Tensor
            self.register_buffer("count_ema", torch.full((heads, clusters), 1.0 / clusters))

    def forward(self, standard: Tensor, strong: Tensor) -> Tensor:
        """Logits (n, H, C) of two views to the sum over heads; then the averages move."""
        losses = []
        for head in range(strong.shape[1]):
            loss, counts = global_loss(standard[:, head], strong[:, head], self.options)
            losses.append(loss)
            if self.images:
                counted, ema = counts.sum(), self.count_ema[head]
                now = counts / counted.clamp_min(1) * self.images
                mixed = COUNT_MOMENTUM * ema + (1 - COUNT_MOMENTUM) * now
                ema.copy_(torch.where(counted > 0, mixed, ema))
        self.num_counts += 1
        return torch.stack(losses).sum()
