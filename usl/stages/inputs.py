"""What stages start from: a run, images, encoders, views and neighbours in files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from usl.artifacts import load_array
from usl.augment.folder_views import FolderViews
from usl.augment.views import ImageViews, Views
from usl.cli import Call, choose_device
from usl.config.parse import CfgNode, as_dict, dump
from usl.config.paths import find_input
from usl.data.datasets import AnyDataset, ImageDataset, open_dataset
from usl.data.folder import FolderDataset
from usl.distributed import is_main
from usl.encoders.checkpoints import NETWORKS
from usl.encoders.preprocess import Preprocess
from usl.encoders.registry import (
    Encoder,
    Request,
    build_backbone,
    build_encoder,
    preprocess_for,
)
from usl.engines.local import Local
from usl.engines.registry import engine_named
from usl.errors import InputError
from usl.inference import check_precision
from usl.run import Recompute, Run, log, start


def run_defaults() -> CfgNode:
    """Settings of every stage."""
    c = CfgNode()
    # A YAML whose values this one starts from; relative to the file that names it.
    c.BASE = ""
    # Results go to RUN_DIR, or where that is empty to SAVE_DIR/RUN_NAME.
    c.RUN_NAME = ""
    c.SAVE_DIR = "saved"
    c.RUN_DIR = ""
    # False: stop if the run's folder is there already.
    c.SAVE_DIR_EXIST_OK = True
    # Write nothing, only print.
    c.SKIP_SAVE = False
    # Append the options of the command line to RUN_NAME.
    c.OPTS_IN_RUN_NAME = False
    # auto takes CUDA if there is one; or cpu, cuda, cuda:1, …
    c.DEVICE = "auto"
    return c


def add_engine(c: CfgNode) -> CfgNode:
    """Settings of stages that outgrow one machine."""
    # Where images are embedded, and neighbours, clusters and picks computed, from the same features
    # the same ones: local, in this process; ray, on the nodes of a Ray cluster.
    c.ENGINE = "local"
    # host:port of a running cluster; empty: that of RAY_ADDRESS, else one starts on this machine.
    c.ENGINE_ADDRESS = ""
    # Of ENGINE local: memory for features and what is as large, on the CPU. An array that would
    # take more than a sixteenth of it lies in a file beside RUN_DIR; 0: all are in memory.
    c.MEMORY_GB = 0.0
    return c


def engine_of(cfg: CfgNode) -> Local:
    """The engine that the settings name.

    Raises
    ------
    InputError
        An unknown one, one that does not run here, or an address that means nothing to it.
    """
    if cfg.ENGINE_ADDRESS and cfg.ENGINE == "local":
        raise InputError(
            f"ENGINE_ADDRESS is {cfg.ENGINE_ADDRESS}, and ENGINE local; choose ENGINE ray"
        )
    if not 0 <= cfg.MEMORY_GB < math.inf:
        raise InputError(f"MEMORY_GB is {cfg.MEMORY_GB}; choose 0 or more")
    if cfg.MEMORY_GB and cfg.SKIP_SAVE:
        raise InputError(
            "MEMORY_GB needs files beside RUN_DIR, and SKIP_SAVE is True; leave one out"
        )
    if cfg.MEMORY_GB and cfg.ENGINE != "local":
        raise InputError(f"MEMORY_GB is {cfg.MEMORY_GB}, and ENGINE {cfg.ENGINE}; choose local")
    return engine_named(
        cfg.ENGINE,
        cfg.ENGINE_ADDRESS,
        memory=int(cfg.MEMORY_GB * 2**30) or None,
        folder=Path(cfg.RUN_DIR).parent,
    )


def add_recompute(c: CfgNode) -> CfgNode:
    """Settings of stages that keep arrays."""
    # Compute everything anew, though a finished run left it here. An unfinished run goes on, with
    # what still holds.
    c.RECOMPUTE_ALL = True
    # The same for what depends on the budget: clusters and picks.
    c.RECOMPUTE_NUM_DEP = True
    return c


def add_images(c: CfgNode) -> CfgNode:
    """Settings of stages that read images."""
    c.DATASET = CfgNode()
    # cifar10, cifar100, fashion-mnist or digits; scripts that read files also take imagenet,
    # imagenet100 and folder: ROOT_DIR/train and ROOT_DIR/val.
    c.DATASET.NAME = ""
    # Where its files are.
    c.DATASET.ROOT_DIR = "../data"
    # Mean and standard deviation for the project's own networks, by name:
    # usl/encoders/preprocess.py. Empty for encoders of timm and torchvision, which bring theirs.
    c.DATASET.TRANSFORM_NAME = ""
    c.DATALOADER = CfgNode()
    # Images that go through the network at once.
    c.DATALOADER.BATCH_SIZE = 128
    # Threads that decode image files; data sets that stay in memory need none.
    c.DATALOADER.WORKERS = 2
    c.MODEL = CfgNode()
    # The network: ResNet18 or SmallResNet.
    c.MODEL.ARCH = "ResNet18"
    return c


def add_folders(c: CfgNode) -> CfgNode:
    """Settings of stages that know folders of images too: imagenet, imagenet100, folder."""
    # The training images by name, one class/file a line, instead of all in ROOT_DIR/train. Where
    # features are in RUN_DIR already, the files themselves are not needed.
    c.DATASET.IMAGE_LIST = ""
    # The classes to keep: a text file, one folder name a line; what follows the name is ignored.
    c.DATASET.SUBSET = ""
    return c


def add_image_files(c: CfgNode) -> CfgNode:
    """Settings of stages that read image files too."""
    add_folders(c)
    # Side of what networks see of image files, in pixels; 0: the encoder's own, 224 for the
    # project's, after a resize to 256 / 224 of it.
    c.DATASET.IMAGE_SIZE = 0
    return c


def add_encoder(c: CfgNode) -> CfgNode:
    """Settings of stages that start from a pretrained network."""
    # ResNet18, SmallResNet, resnet50, SimCLRv2, CLIP-ViT-B/16, B/32 or L/14, timm/NAME,
    # torchvision/NAME; or pixels, which needs no checkpoint. python -m usl.encoders lists them.
    c.MODEL.ARCH = "ResNet18"
    # Its checkpoint: CLD's, SCAN-pretext's, USL-T's, SimCLRv2's, or encoder.pth of pretrain.py.
    # Empty for encoders of timm and torchvision: theirs, from the cache or downloaded.
    c.MODEL.PRETRAIN_PATH = ""
    # Of a SimCLRv2 network, where the name of its checkpoint does not say it: r50_1x_sk0, …
    c.MODEL.SIZE = ""
    # Width of the network before its head, checked against the network; 0: whatever it has.
    c.MODEL.BACKBONE_DIM = 0
    # head: what the encoder's head makes, as in the paper; backbone: what the head sees, scaled to
    # length 1, which is often better.
    c.MODEL.FEATURES = "head"
    # Of a checkpoint that has both: model, the trained weights; ema, their average.
    c.MODEL.WEIGHTS = "model"
    # Load a checkpoint that holds more than tensors. It can then run any code: only your own files.
    c.MODEL.TRUST_CHECKPOINT = False
    return c


def add_training_files(c: CfgNode) -> CfgNode:
    """Settings of stages that train on image files too."""
    add_image_files(c)
    # Decoded images to keep in memory, of each process.
    c.DATALOADER.CACHE_GB = 8.0
    return c


def add_extraction(c: CfgNode) -> CfgNode:
    """Settings of stages that keep features."""
    c.FEATURES = CfgNode()
    # float32; bfloat16 or float16 are faster on GPUs and some CPUs, and right to 2 or 3 digits.
    c.FEATURES.PRECISION = "float32"
    return c


def encoder_defaults() -> CfgNode:
    """Settings of stages that start from images and an encoder, to which they add their own."""
    return add_encoder(add_images(add_recompute(run_defaults())))


def embedding_defaults() -> CfgNode:
    """Settings of stages that embed images, to which they add their own."""
    return add_extraction(encoder_defaults())


def begin(cfg: CfgNode, call: Call, *, save: bool = True, part: bool = False) -> Run:
    """Begin the run that the settings describe; without ``save`` nothing is written.

    ``part``: of a run that has begun.

    Raises
    ------
    InputError
        The device is not there, or RUN_DIR cannot be used.
    """
    return start(
        Path(cfg.RUN_DIR) if save and not cfg.SKIP_SAVE else None,
        title=call.script,
        device=choose_device(cfg.DEVICE),
        command=call.command,
        settings=as_dict(cfg),
        settings_text=dump(cfg),
        exist_ok=cfg.SAVE_DIR_EXIST_OK,
        part=part,
        recompute=Recompute(
            everything=cfg.get("RECOMPUTE_ALL", True),
            by_budget=cfg.get("RECOMPUTE_NUM_DEP", True),
        ),
    )


def open_images(cfg: CfgNode, split: str) -> AnyDataset:
    """The images of a split of the DATASET settings."""
    data = cfg.DATASET
    # SUBSET alone is a key of the original's that does nothing.
    image_list, subset = (data.IMAGE_LIST, data.SUBSET) if "IMAGE_LIST" in data else ("", "")
    images = open_dataset(
        data.NAME,
        data.ROOT_DIR,
        split,
        workers=cfg.DATALOADER.WORKERS,
        image_list=find_input(image_list, "list (DATASET.IMAGE_LIST)") if image_list else None,
        subset=find_input(subset, "list of classes (DATASET.SUBSET)") if subset else None,
    )
    if isinstance(images, FolderDataset) and is_main():
        for remark in images.remarks:
            log.warning("%s", remark)
    return images


def open_in_memory(cfg: CfgNode, split: str, *, advice: str = "") -> ImageDataset:
    """As :func:`open_images`, of a data set that stays in memory.

    Raises
    ------
    InputError
        Its images are files; ``advice`` says what else to do.
    """
    images = open_images(cfg, split)
    if not isinstance(images, ImageDataset):
        raise InputError(
            f"DATASET.NAME is {cfg.DATASET.NAME!r}, whose images are files; choose cifar10, "
            f"cifar100, fashion-mnist or digits{advice and f', {advice}'}"
        )
    return images


def open_test_images(cfg: CfgNode, train: AnyDataset) -> AnyDataset | None:
    """The test images; None for people's own images, which have no labels to be tested on."""
    if train.labels is None:
        return None
    return open_images(cfg, "test")


def request_of(cfg: CfgNode, images: AnyDataset, *, weights: str | None = None) -> Request:
    """What the MODEL settings ask of an encoder, for these training images."""
    model = cfg.MODEL
    return Request(
        images=images,
        transform=cfg.DATASET.TRANSFORM_NAME,
        side=cfg.DATASET.get("IMAGE_SIZE", 0),
        checkpoint=(lambda: checkpoint_path(model)) if model.PRETRAIN_PATH else None,
        output=model.get("FEATURES", "head"),
        backbone_dim=model.get("BACKBONE_DIM") or None,
        weights=model.WEIGHTS if weights is None else weights,
        size=model.get("SIZE", ""),
        trust=model.TRUST_CHECKPOINT,
        skip_unreadable=cfg.DATASET.get("UNREADABLE") == "skip",
    )


def encoder_of(cfg: CfgNode, images: AnyDataset, *, weights: str | None = None) -> Encoder:
    """The encoder that the MODEL settings name, for these training images."""
    if "PRECISION" in cfg.get("FEATURES", {}):
        check_precision(cfg.FEATURES.PRECISION)
    return build_encoder(cfg.MODEL.ARCH, request_of(cfg, images, weights=weights))


def backbone_of(cfg: CfgNode, images: AnyDataset) -> tuple[nn.Module, int, dict[str, str]]:
    """The pretrained network of the MODEL settings, without its heads; its width and source."""
    if cfg.MODEL.ARCH in NETWORKS:
        checkpoint_path(cfg.MODEL)
    return build_backbone(cfg.MODEL.ARCH, request_of(cfg, images))


def checkpoint_path(model: CfgNode) -> Path:
    """The checkpoint of MODEL.PRETRAIN_PATH, wherever it is looked for."""
    if not model.PRETRAIN_PATH:
        raise InputError(f"MODEL.PRETRAIN_PATH is empty; {model.ARCH} needs a checkpoint")
    return find_input(model.PRETRAIN_PATH, "checkpoint (MODEL.PRETRAIN_PATH)")


def preprocess_of(cfg: CfgNode, images: AnyDataset) -> Preprocess:
    """The preprocessing of networks in training.

    Raises
    ------
    InputError
        Unknown names, or an encoder that does not see images in memory as they are.
    """
    preprocess = preprocess_for(
        cfg.MODEL.ARCH,
        Request(
            images=images,
            transform=cfg.DATASET.TRANSFORM_NAME,
            side=cfg.DATASET.get("IMAGE_SIZE", 0),
        ),
    )
    if isinstance(images, ImageDataset) and preprocess.resize != images.side:
        raise InputError(
            f"MODEL.ARCH {cfg.MODEL.ARCH} sees {preprocess.side} × {preprocess.side} pixels, and "
            f"trains on image files only, not on {cfg.DATASET.NAME}; choose ResNet18 or SmallResNet"
        )
    return preprocess


def views_of(
    cfg: CfgNode, images: AnyDataset, *, device: torch.device, whole: bool = False
) -> ImageViews:
    """Views of images in memory, or of those in files; ``whole`` as ``FolderViews`` has it."""
    preprocess = preprocess_of(cfg, images)
    if isinstance(images, FolderDataset):
        if not 0 <= cfg.DATALOADER.CACHE_GB < math.inf:
            raise InputError(f"DATALOADER.CACHE_GB is {cfg.DATALOADER.CACHE_GB}; choose 0 or more")
        cache = int(cfg.DATALOADER.CACHE_GB * 2**30)
        return FolderViews(images, preprocess, device=device, cache_bytes=cache, whole=whole)
    return Views(images, preprocess, device=device)


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
    itself = float((array[:, 0] == np.arange(images)).mean())
    if itself < 0.5:
        raise InputError(
            f"column 0 of {found} is the image itself in {100 * itself:.0f} % of rows, so its "
            f"images are in another order; {advice}"
        )
    if not 1 <= count < array.shape[1]:
        setting = f"{key.rpartition('.')[0]}.NUM_NEIGHBORS"
        raise InputError(
            f"{setting} is {count}; choose 1 to {array.shape[1] - 1}, the columns of {found} "
            "after the image itself"
        )
    return torch.from_numpy(array[:, : 1 + count].astype(np.int64))


def check_seeds(seeds: Sequence[int], name: str) -> None:
    """Raise InputError unless there are seeds and generators take each of them."""
    if not seeds:
        raise InputError(f"{name} is empty; give at least one seed")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{name} has a seed twice: {seeds}; give each once")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"{name} has {seed}; give numbers from 0 to {2**32 - 1}")
