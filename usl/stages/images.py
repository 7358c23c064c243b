"""Anyone's own images: the settings and steps of ``usl-images.py``."""

from __future__ import annotations

import os
from pathlib import Path

from usl.config.parse import CfgNode
from usl.data.folder import FolderDataset
from usl.errors import InputError
from usl.lists.copies import check_form
from usl.stages.duplicates import add_duplicates
from usl.stages.inputs import open_images
from usl.stages.usl import add_selector, usl_imagenet_defaults


def images_defaults() -> CfgNode:
    """Settings of ``usl-images.py``."""
    c = usl_imagenet_defaults()
    for key in ("IMAGE_LIST", "SUBSET"):
        del c.DATASET[key]
    # images, which takes all there are; or folder, for ROOT_DIR/train with one folder a class.
    c.DATASET.NAME = "images"
    # A folder, with all folders below; a .zip, .tar or .parquet of image files, or a folder of
    # these; a .txt of one path a line; a .csv or .parquet with a column path; a URL of an object
    # store, such as s3://bucket/folder.
    c.DATASET.ROOT_DIR = ""
    # Files that are no images: skip lists them in unreadable.csv and never picks them; or stop.
    c.DATASET.UNREADABLE = "skip"
    # As of usl/encoders/registry.py; pixels needs no weights.
    c.MODEL.ARCH = "timm/vit_small_patch14_dinov2.lvd142m"
    c.USL.KNN_K = 0
    # As published for CLIP's features: of the published values those that do not outweigh the
    # density, whatever the budget; docs/results.md has the figures.
    c.USL.REG.NITERS = 2
    c.USL.REG.W = 0.05
    c.USL.REG.MOMENTUM = 0.0
    c.USL.REG.ALPHA = 1.0
    c.USL.REG.HORIZON_NUM = 32
    c.USL.REG.EXCLUDE_SAME_CLUSTER = True
    add_selector(add_duplicates(c))
    c.USL.SEEDS = [1]
    # Copies of the picks, under their names, in RUN_DIR: folder, zip, or empty for none.
    c.PICKS_TO = ""
    return c


def open_own(cfg: CfgNode) -> FolderDataset:
    """The images of DATASET.ROOT_DIR.

    Raises
    ------
    InputError
        No place given, none there, a data set that is not of files, an unknown PICKS_TO, or a
        RUN_DIR among the images.
    """
    check_form(cfg.PICKS_TO)
    if not cfg.DATASET.ROOT_DIR:
        raise InputError("DATASET.ROOT_DIR is empty; give the place of your images")
    root, run = (Path(place).resolve() for place in (cfg.DATASET.ROOT_DIR, cfg.RUN_DIR))
    if os.path.isdir(root) and run.is_relative_to(root) and not cfg.SKIP_SAVE:
        raise InputError(
            f"RUN_DIR {run} is in DATASET.ROOT_DIR {root}, and its copies would be images of this; "
            "choose another place"
        )
    images = open_images(cfg, "train")
    if not isinstance(images, FolderDataset):
        raise InputError(f"DATASET.NAME is {cfg.DATASET.NAME!r}; choose images or folder")
    return images
