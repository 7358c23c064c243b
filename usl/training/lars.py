"""LARS, the optimizer of SimCLRv2's fine-tuning (You et al., arXiv 1708.03888)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from usl.errors import InputError

# Largest relative change of a weight in one step of learning rate 1 without momentum.
TRUST = 0.001


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose steps are as long as the weights allow.

    ``d = g + weight_decay · w``; where a parameter has more than one dimension, ``d`` is scaled by
    ``0.001 · ‖w‖ / ‖d‖`` (by 1 if either is 0); ``μ = momentum · μ + d``; ``w = w − lr · μ``.
    So biases and batch norm decay like all others, and are not scaled.

    Parameters
    ----------
    parameters : iterable of Parameter
    lr, momentum, weight_decay : float

    Raises
    ------
    InputError
        A momentum or weight decay below 0.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= momentum < math.inf:
            raise InputError(f"`momentum` is {momentum}; choose 0 or more")
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"`weight_decay` is {weight_decay}; choose 0 or more")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                d = w.grad.add(w, alpha=group["weight_decay"])
                if w.ndim > 1:
                    norm, length = torch.linalg.vector_norm(w), torch.linalg.vector_norm(d)
                    scale = TRUST * norm / length
                    d *= torch.where((norm > 0) & (length > 0), scale, 1.0)
                if not self.state[w]:
                    # As checkpoints of the original's fine-tuning call it.
                    self.state[w]["mu"] = torch.zeros_like(w)
                mu = self.state[w]["mu"]
                w.sub_(mu.mul_(group["momentum"]).add_(d), alpha=group["lr"])
