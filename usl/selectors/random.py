"""Random picks, as the published lists were drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from usl.geometry.points import check_budget


def random_picks(images: int, budget: int, *, seed: int) -> Tensor:
    """Draw distinct images with NumPy's legacy generator, which the published lists come from.

    Parameters
    ----------
    images : int
        N.
    budget : int
        B, from 1 to N.
    seed : int

    Returns
    -------
    Tensor (B,), int64
    """
    check_budget(budget, images)
    chosen = np.random.RandomState(seed).choice(np.arange(images), size=budget, replace=False)
    return torch.from_numpy(chosen)
