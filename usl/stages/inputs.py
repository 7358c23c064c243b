"""What stages start from: images, views, encoders, features and neighbours in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from usl.artifacts import fingerprint, load_array
from usl.config import CfgNode, find_input
from usl.data.augment import MocoChain
from usl.data.datasets import AnyDataset, open_dataset
from usl.data.folder import FolderDataset
from usl.data.folder_views import FolderViews
from usl.data.transforms import check_transform
from usl.data.views import ImageViews, Views
from usl.errors import InputError
from usl.models.encoders import ARCHITECTURES, load_backbone, load_encoder, pixels_encoder
from usl.models.resnet_cifar import CifarResNet
from usl.selection.points import as_features


@dataclass(frozen=True)
class Encoder:
    """An encoder and what it was made from, for the record.

    Attributes
    ----------
    network : nn.Module
        In eval mode.
    made_from : dict
        Architecture and fingerprints.
    transform : str
        Normalisation of its images.
    """

    network: nn.Module
    made_from: dict[str, str]
    transform: str


def build_encoder(model: CfgNode, transform: str, train: AnyDataset) -> Encoder:
    """The encoder that the MODEL settings name.

    Raises
    ------
    InputError
        Unknown architecture or transform; a checkpoint that is missing or does not fit.
    """
    if model.ARCH not in ARCHITECTURES:
        raise InputError(
            f"unknown MODEL.ARCH {model.ARCH!r}; choose one of {', '.join(ARCHITECTURES)}"
        )
    if model.ARCH == "pixels":
        made_from = {"architecture": "pixels", "mean_of": train.fingerprint()}
        return Encoder(pixels_encoder(train), made_from, transform)
    check_transform(transform)
    path = pretrained_path(model)
    network = load_encoder(
        path,
        model.ARCH,
        output=model.FEATURES,
        backbone_dim=model.BACKBONE_DIM,
        trust=model.TRUST_CHECKPOINT,
    )
    made_from = {
        "architecture": model.ARCH,
        "output": model.FEATURES,
        "checkpoint": path.name,
        "sha256": fingerprint(path),
    }
    return Encoder(network, made_from, transform)


def pretrained_path(model: CfgNode) -> Path:
    """The checkpoint of MODEL.PRETRAIN_PATH, wherever it is looked for."""
    if not model.PRETRAIN_PATH:
        raise InputError(f"MODEL.PRETRAIN_PATH is empty; {model.ARCH} needs a checkpoint")
    return find_input(model.PRETRAIN_PATH, "checkpoint (MODEL.PRETRAIN_PATH)")


def load_backbone_of(model: CfgNode) -> tuple[CifarResNet, dict[str, str]]:
    """The pretrained network of the MODEL settings, without its heads, and what it is."""
    path = pretrained_path(model)
    backbone = load_backbone(
        path, model.ARCH, backbone_dim=model.BACKBONE_DIM, trust=model.TRUST_CHECKPOINT
    )
    return backbone, {"architecture": model.ARCH, "sha256": fingerprint(path)}


def open_images(cfg: CfgNode, split: str) -> AnyDataset:
    """The images of a split of the DATASET settings."""
    return open_dataset(
        cfg.DATASET.NAME,
        cfg.DATASET.ROOT_DIR,
        split,
        side=cfg.DATASET.get("IMAGE_SIZE", 224),
        workers=cfg.DATALOADER.WORKERS,
    )


def open_test_images(cfg: CfgNode, train: AnyDataset) -> AnyDataset | None:
    """The test images; None for people's own images, which have no labels to be tested on."""
    if train.labels is None:
        return None
    return open_images(cfg, "test")


def views_of(cfg: CfgNode, images: AnyDataset, *, device: torch.device) -> ImageViews:
    """Views of images in memory, or of those in files."""
    transform, seed = cfg.DATASET.TRANSFORM_NAME, cfg.SEED
    if isinstance(images, FolderDataset):
        cache = int(cfg.DATALOADER.CACHE_GB * 2**30)
        return FolderViews(images, transform, seed=seed, device=device, cache_bytes=cache)
    return Views(images, transform, seed=seed, device=device, backend=cfg.AUGMENT.BACKEND)


def read_features(path: str, *, normalize: bool) -> torch.Tensor:
    """Features of a ``.npy`` file, (N, D), checked; rows divided by their length if asked."""
    if not path:
        raise InputError("FEATURES.PATH is empty; give a .npy file of shape (images, dimensions)")
    found = find_input(path, "file of features (FEATURES.PATH)")
    array = load_array(found, kind="fiu", advice="give a .npy of shape (images, dimensions)")
    features = as_features(array, f"features in {found}")
    if not normalize:
        return features
    lengths = features.double().norm(dim=1, keepdim=True)
    if not lengths.all():
        row = int((lengths == 0).nonzero()[0, 0])
        raise InputError(f"row {row} of {found} is all zeros and cannot be normalised; remove it")
    unit: torch.Tensor = (features / lengths).to(features.dtype)
    return unit


def read_neighbors(path: str, key: str, *, images: int, count: int) -> torch.Tensor:
    """Each image and its ``count`` nearest neighbours, (N, 1 + count), int64, from a file.

    Raises
    ------
    InputError
        Not there, of another number or order of images, too few columns, or no indices of these
        images.
    """
    found = find_input(path, f"file of neighbours ({key})")
    advice = "mine them from this data set with usl-t_pretraining/mine-neighbors.py"
    array = load_array(
        found, shape=(images, None), kind="iu", limits=(0, images - 1), advice=advice
    )
    if array.shape[1] < 2:
        raise InputError(f"{found} has no neighbours beside the image itself; {advice}")
    # Exact duplicates may come before the image itself, in a few rows.
    own = float((array[:, 0] == np.arange(images)).mean())
    if own < 0.5:
        raise InputError(
            f"column 0 of {found} is the image itself in {100 * own:.0f} % of rows, so its images "
            f"are in another order; {advice}"
        )
    if not 1 <= count < array.shape[1]:
        setting = f"{key.rpartition('.')[0]}.NUM_NEIGHBORS"
        raise InputError(
            f"{setting} is {count}; choose 1 to {array.shape[1] - 1}, the columns of {found} "
            "after the image itself"
        )
    return torch.from_numpy(array[:, : 1 + count].astype(np.int64))


def moco_chain(augment: CfgNode, side: int) -> MocoChain:
    """The MoCo v2 chain that the AUGMENT settings describe, for images of this side."""
    return MocoChain(
        size=side,
        scale=(augment.CROP, 1.0),
        flip=augment.FLIP,
        jitter=augment.JITTER,
        grey=augment.GREY,
        blur=augment.BLUR,
    )
