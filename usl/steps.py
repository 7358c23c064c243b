"""The steps of a selection, each reusing what an earlier run left in RUN_DIR if it still holds."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from usl.artifacts import fingerprint, load_array
from usl.config import LIST_KEYS, CfgNode, as_dict, find_input
from usl.data.datasets import AnyDataset, open_dataset
from usl.data.folder import FolderDataset
from usl.data.folder_views import FolderViews
from usl.data.labelled import read_labelled
from usl.data.transforms import check_transform
from usl.data.views import ImageViews, Views
from usl.distributed import is_first
from usl.errors import InputError
from usl.features import extract
from usl.models.encoders import ARCHITECTURES, load_backbone, load_encoder, pixels_encoder
from usl.models.resnet_cifar import CifarResNet
from usl.report.page import Table
from usl.report.selection import SeedResult, feature_map, write_selection_report
from usl.report.training import write_training_report
from usl.run import Expected, Run
from usl.selection.kmeans import Clusters, kmeans
from usl.selection.neighbors import Neighbors, check_backend, find_neighbors
from usl.selection.points import Points, as_features
from usl.selection.usl import Picks, Regularizer, check_budget, pick
from usl.training.loop import Plan

# Settings that do not change what a training ends with.
FREE_SETTINGS = (
    "RUN_NAME",
    "RUN_DIR",
    "SAVE_DIR",
    "SAVE_DIR_EXIST_OK",
    "OPTS_IN_RUN_NAME",
    "SKIP_SAVE",
    "DEVICE",
    "RESUME",
    "CHECKPOINT_STEPS",
    "HALF_ENCODER",
)
FEATURES = "memory_feats_list.npy"
# Budgets whose published picks come from more clusters than picks.
SPARE_CLUSTERS = {2500: 2501}


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


def image_features(
    run: Run, encoder: Encoder, images: AnyDataset, *, batch_size: int, name: str = FEATURES
) -> np.ndarray:
    """Features of every image, (N, D), from the encoder or from RUN_DIR."""
    source = {
        "images": images.fingerprint(),
        "encoder": encoder.made_from,
        "transform": encoder.transform,
        "batch_size": batch_size,
    }
    shards = None if run.folder is None else run.folder / f"{Path(name).stem}.partial"

    def compute() -> list[np.ndarray]:
        return [
            extract(
                encoder.network,
                images,
                transform=encoder.transform,
                batch_size=batch_size,
                device=run.device,
                shards=shards,
                source=source,
            )
        ]

    with run.timed(f"features ({images.split})"):
        features = run.cached([Expected(name, (len(images), None))], source, compute)[0]
        assert features is not None
    if shards is not None:
        shutil.rmtree(shards, ignore_errors=True)
    if name == FEATURES:
        run.note(dataset=images.name, size=len(images), **source, features=run.print_of(name))
    return features


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
        Not there, of another number of images, too few columns, or no indices of these images.
    """
    found = find_input(path, f"file of neighbours ({key})")
    advice = "mine them from this data set with usl-t_pretraining/mine-neighbors.py"
    array = load_array(
        found, shape=(images, None), kind="iu", limits=(0, images - 1), advice=advice
    )
    if not 1 <= count < array.shape[1]:
        setting = f"{key.rpartition('.')[0]}.NUM_NEIGHBORS"
        raise InputError(
            f"{setting} is {count}; choose 1 to {array.shape[1] - 1}, the columns of {found} "
            "after the image itself"
        )
    return torch.from_numpy(array[:, : 1 + count].astype(np.int64))


def note_features(run: Run, features: torch.Tensor) -> None:
    """Record which features the run starts from, where they are not its own."""
    run.note(size=len(features), features=fingerprint(features.numpy()))


def check_settings(cfg: CfgNode, budgets: Sequence[int], images: int) -> None:
    """Raise InputError where the settings ask the impossible of ``images`` images."""
    if not budgets:
        raise InputError("COMPARE.BUDGETS is empty; give at least one budget")
    for budget in budgets:
        check_budget(budget, images)
    check_seeds(cfg.USL.SEEDS, "USL.SEEDS")
    k = cfg.USL.KNN_K
    if not 1 <= k <= images:
        raise InputError(f"USL.KNN_K is {k}; choose 1 to {images}, the number of images")
    if cfg.USL.K_MEANS_NITERS < 1:
        raise InputError(f"USL.K_MEANS_NITERS is {cfg.USL.K_MEANS_NITERS}; choose at least 1")
    check_backend(cfg.KNN.BACKEND)
    if "DATALOADER" in cfg and cfg.DATALOADER.BATCH_SIZE < 1:
        raise InputError(f"DATALOADER.BATCH_SIZE is {cfg.DATALOADER.BATCH_SIZE}; choose at least 1")


def check_seeds(seeds: Sequence[int], name: str) -> None:
    """Raise InputError unless there are seeds and generators take each of them."""
    if not seeds:
        raise InputError(f"{name} is empty; give at least one seed")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{name} has a seed twice: {seeds}; give each once")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"{name} has {seed}; give numbers from 0 to {2**32 - 1}")


def neighbors(run: Run, points: Points, *, k: int, backend: str) -> Neighbors:
    """The K nearest neighbours of every image, of the features noted in the run."""
    n, suffix = len(points), "" if k == 20 else f"_{k}"
    expected = [
        Expected(f"d_knns{suffix}.npy", (n, k), low=0.0),
        Expected(f"ind_knns{suffix}.npy", (n, k), kind="iu", low=0, high=n - 1),
        Expected(f"spread{suffix}.npy", (n,), low=0.0, optional=True),
    ]

    source = {"features": run.facts["features"], "k": k}

    def compute() -> list[np.ndarray]:
        found = find_neighbors(points, k, backend=backend)
        return [found.distances.numpy(), found.indices.numpy(), found.spread.numpy()]

    with run.timed("neighbours"):
        distances, indices, spread = run.cached(expected, source, compute)
        assert distances is not None and indices is not None
        if spread is None:
            spread = distances.mean(axis=1, dtype=np.float64)
    return Neighbors(
        torch.from_numpy(distances), torch.from_numpy(indices), torch.from_numpy(spread).double()
    )


def clusters(run: Run, points: Points, *, budget: int, seed: int, iterations: int) -> Clusters:
    """One cluster for every pick (with spares for a published budget of 2500)."""
    n = len(points)
    count = min(n, SPARE_CLUSTERS.get(budget, budget))
    source = {
        "features": run.facts["features"],
        "clusters": count,
        "seed": seed,
        "iterations": iterations,
    }
    expected = [
        Expected(f"cluster_labels_{budget}_{seed}.npy", (n,), kind="iu", low=0, high=count - 1),
        Expected(f"centroids_{budget}_{seed}.npy", (count, points.dim)),
    ]

    def compute() -> list[np.ndarray]:
        found = kmeans(points, count, seed=seed, iterations=iterations, alive=budget)
        return [found.labels.numpy(), found.centroids.float().numpy()]

    with run.timed("k-means"):
        labels, centroids = run.cached(expected, source, compute, by_budget=True)
        assert labels is not None and centroids is not None
    return Clusters(torch.from_numpy(labels).long(), torch.from_numpy(centroids).double())


def picks(
    run: Run,
    points: Points,
    density: Neighbors,
    grouped: Clusters,
    *,
    budget: int,
    seed: int,
    regularizer: Regularizer,
) -> Picks:
    """One image from each cluster; always computed, since it takes seconds."""
    with run.timed("picks"):
        chosen = pick(points, density.density, grouped.labels, budget, regularizer)
    source = {
        "features": run.facts["features"],
        "neighbours": fingerprint(density.spread.numpy()),
        "clusters": run.print_of(f"cluster_labels_{budget}_{seed}.npy"),
        "regularizer": vars(regularizer),
    }
    save_picks(run, chosen.indices.numpy(), budget=budget, seed=seed, source=source)
    return chosen


def save_picks(
    run: Run, indices: np.ndarray, *, budget: int, seed: int, source: dict[str, Any]
) -> None:
    """Write ``selected_indices_<budget>_<seed>.npy``."""
    run.save(f"selected_indices_{budget}_{seed}.npy", indices, source, by_budget=True)


def listed_picks(
    pattern: str, images: AnyDataset, *, budget: int, seed: int
) -> dict[str, torch.Tensor]:
    """Picks that were made elsewhere, (budget,), by the name of their folder; none without any."""
    if not pattern:
        return {}
    path = pattern.replace("{budget}", str(budget)).replace("{seed}", str(seed))
    listed = read_labelled(find_input(path, "list of picks (COMPARE.LIST)"), images)
    if len(listed) != budget:
        raise InputError(f"{path} has {len(listed)} picks, and the budget is {budget}")
    return {Path(pattern).parent.name.replace("{seed}", "").rstrip("_-"): listed.indices}


def save_lists(
    run: Run, dataset: str, selections: dict[str, torch.Tensor], *, budget: int, seed: int
) -> None:
    """Write each selection as a CSV with a column Index, ``lists/<budget>/….csv``."""
    for selector, picks in selections.items():
        name = f"{dataset}_{selector.replace(' ', '-')}_seed{seed}.csv"
        table = pd.DataFrame({"Index": picks.tolist()})
        run.save_text(f"lists/{budget}/{name}", table.to_csv(index=False))


def regularizer_of(reg: CfgNode) -> Regularizer:
    """The regulariser that the USL.REG settings describe."""
    return Regularizer(
        weight=reg.W,
        alpha=reg.ALPHA,
        momentum=reg.MOMENTUM,
        rounds=reg.NITERS,
        horizon=reg.HORIZON,
        horizon_dist=reg.HORIZON_DIST,
        horizon_num=reg.HORIZON_NUM,
        exclude_same_cluster=reg.EXCLUDE_SAME_CLUSTER,
    )


def finish(
    run: Run,
    results: Sequence[SeedResult],
    *,
    title: str,
    facts: dict[str, Any],
    images: AnyDataset | None = None,
    points: Points | None = None,
    shade: torch.Tensor | None = None,
    table: Table | None = None,
) -> None:
    """Write ``report.html``, print where it is, and close the run.

    With ``points`` and ``shade`` (N,), a density or a confidence, the report has a map.
    """
    if run.folder is not None:
        path = run.folder / "report.html"
        with run.timed("report"):
            layout = None
            if points is not None and shade is not None:
                layout = feature_map(points.host.numpy(), shade.numpy(), results)
        write_selection_report(
            path,
            results,
            title=title,
            facts=facts | {"Device": str(run.device)},
            command=run.command,
            timings=run.timings,
            dataset=images,
            maps=layout,
            table=table,
        )
        print(f"report: {path}", flush=True)
    run.finish()


def plan_of(cfg: CfgNode, images: int, *, ema: float = 0.0) -> Plan:
    """The training plan that the settings describe."""
    batch = cfg.DATALOADER.BATCH_SIZE
    check_resume(cfg.RESUME)
    return Plan(
        epochs=cfg.EPOCHS,
        steps=cfg.STEPS,
        batch_size=batch,
        lr=cfg.OPTIMIZER.LR,
        warmup=cfg.WARMUP_EPOCHS * (images // max(1, batch)),
        schedule=cfg.SCHEDULE,
        accumulate=cfg.ACCUMULATE,
        precision=cfg.PRECISION,
        ema=ema,
        save_every=cfg.CHECKPOINT_STEPS,
        evaluate_every=cfg.EVALUATE_EVERY,
        seed=cfg.get("SEED", 0),
    )


def check_resume(resume: str) -> None:
    """Raise InputError unless a training is to go on, or to begin anew."""
    if resume not in ("auto", "none"):
        raise InputError(f"RESUME is {resume!r}; choose auto or none")


def check_sgd(optimizer: CfgNode) -> None:
    """Raise InputError unless the OPTIMIZER settings are possible ones of SGD."""
    if optimizer.get("NAME", "SGD") != "SGD":
        raise InputError(f"unknown OPTIMIZER.NAME {optimizer.NAME!r}; choose SGD")
    for name in ("MOMENTUM", "WEIGHT_DECAY"):
        if not 0 <= optimizer[name] < math.inf:
            raise InputError(f"OPTIMIZER.{name} is {optimizer[name]}; choose 0 or more")
    if optimizer.NESTEROV and not optimizer.MOMENTUM:
        raise InputError("OPTIMIZER.NESTEROV needs a MOMENTUM; set one above 0, or NESTEROV False")


def sgd(network: nn.Module, optimizer: CfgNode, *, decay_all: bool = True) -> torch.optim.Optimizer:
    """SGD of the parameters that are to be trained, as the OPTIMIZER settings describe it.

    Without ``decay_all`` biases and batch norm, which have one dimension, do not decay.
    """
    check_sgd(optimizer)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not decay_all:
        groups = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        groups,
        lr=optimizer.LR,
        momentum=optimizer.MOMENTUM,
        nesterov=optimizer.NESTEROV,
        weight_decay=optimizer.WEIGHT_DECAY,
    )


def training_folder(cfg: CfgNode) -> Path | None:
    """RUN_DIR, in every process; None with SKIP_SAVE."""
    return None if cfg.SKIP_SAVE else Path(cfg.RUN_DIR)


def training_settings(cfg: CfgNode, images: AnyDataset) -> dict[str, Any]:
    """What must be the same for an interrupted training to go on: all that changes the weights."""
    settings = as_dict(cfg)
    for key in FREE_SETTINGS:
        settings.pop(key, None)
    settings["DATASET"].pop("ROOT_DIR")
    settings["DATALOADER"].pop("WORKERS")
    # An input is known by its content, wherever it lies.
    for name, section in settings.items():
        for key, value in section.items() if isinstance(section, dict) else ():
            if key.endswith("_PATH") and value and f"{name}.{key}" not in LIST_KEYS:
                section[key] = fingerprint(find_input(value, f"file ({name}.{key})"))
    return settings | {"images": images.fingerprint()}


def finish_training(run: Run, metrics: pd.DataFrame, *, title: str, facts: dict[str, Any]) -> None:
    """Write ``report.html`` with the curves, print the last numbers, and close the run."""
    if is_first():
        print("\n".join(f"{name}: {value:.4g}" for name, value in metrics.iloc[-1].items()))
    if run.folder is not None:
        path = run.folder / "report.html"
        write_training_report(
            path,
            metrics,
            title=title,
            facts=facts | {"Device": str(run.device)},
            command=run.command,
            timings=run.timings,
        )
        print(f"report: {path}", flush=True)
    run.finish()


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
