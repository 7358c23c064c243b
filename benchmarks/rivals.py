"""Random views as they are usually made, image by image with PIL: what the tests compare with."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.augment.moco import MocoTransform
from usl.augment.rng import Key
from usl.augment.views import Transform, Views

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from oracles import moco_pil, randaugment_pil


def pil_view(transform: Transform, images: np.ndarray, params: Any) -> Tensor:
    """One view of images (n, H, W, C), uint8, as floats (n, C, H, W)."""
    if isinstance(transform, MocoTransform):
        return moco_pil.apply(images, params, transform.size)
    return randaugment_pil.apply(images, params)


class PilViews(Views):
    """Views of a data set's images, made by PIL on the CPU."""

    def __call__(self, transform: Transform, rows: Tensor, key: Key) -> Tensor:
        """One random view of images ``rows`` (n,), int64, by the random numbers of ``key``."""
        levels = (self._levels(rows) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        params = transform.sample(key.to("cpu"), levels.shape[1:3])
        with torch.no_grad():
            return self._normalized(pil_view(transform, levels, params).to(self.device))
