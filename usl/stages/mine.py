"""Neighbours for training: the settings of ``mine-neighbors.py``."""

from __future__ import annotations

from usl.config.parse import CfgNode
from usl.stages.inputs import add_image_files, embedding_defaults
from usl.stages.pool import add_features
from usl.stages.usl import add_neighbors


def mine_defaults() -> CfgNode:
    """Settings of ``mine-neighbors.py``: FEATURES.PATH goes before the features of MODEL."""
    c = add_neighbors(add_features(add_image_files(embedding_defaults())))
    # Beside the image itself.
    c.NUM_NEIGHBORS = 20
    return c
