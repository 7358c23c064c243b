"""The stages: what each script's settings are, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

from usl.cli import Call, call_of
from usl.config.flags import Flag
from usl.config.parse import CfgNode, parse
from usl.config.paths import has
from usl.errors import InputError
from usl.run import open_log
from usl.stages import (
    compare,
    finetune,
    fixmatch,
    images,
    mine,
    pretrain,
    random,
    simclrv2,
    usl,
    uslt_select,
    uslt_train,
)
from usl.stages.paths import PATHS


@dataclass(frozen=True)
class Stage:
    """A script's settings.

    Attributes
    ----------
    defaults : callable
        Returns a fresh tree.
    cfg : str, optional
        The YAML without ``--cfg``: the original's, where that has one.
    flags : tuple of Flag
        Of the original's command line.
    cfg_of : callable
        The YAML without ``--cfg``, where there are flags; see :func:`usl.config.parse.parse`.
    """

    defaults: Callable[[], CfgNode]
    cfg: str | None = None
    flags: tuple[Flag, ...] = ()
    cfg_of: Callable[[dict[str, Any]], str | None] = lambda flags: None


# By folder and script.
STAGES: dict[str, Stage] = {
    "selective_labeling/usl-cifar.py": Stage(usl.usl_defaults, "configs/cifar10_usl.yaml"),
    "selective_labeling/usl-imagenet.py": Stage(
        usl.usl_imagenet_defaults, "configs/ImageNet_usl_moco_0.2.yaml"
    ),
    "selective_labeling/usl-images.py": Stage(images.images_defaults, "configs/images_usl.yaml"),
    "selective_labeling/usl-features.py": Stage(usl.features_defaults, "configs/features_usl.yaml"),
    "selective_labeling/random-cifar.py": Stage(
        random.random_defaults, "configs/cifar10_random.yaml"
    ),
    "selective_labeling/random-imagenet.py": Stage(
        random.random_imagenet_defaults, "configs/ImageNet_random_0.2.yaml"
    ),
    "selective_labeling/compare.py": Stage(compare.compare_defaults),
    "selective_labeling/usl-t-cifar.py": Stage(
        uslt_select.uslt_defaults, "configs/cifar10_usl-t.yaml"
    ),
    "selective_labeling/usl-t-imagenet.py": Stage(
        uslt_select.uslt_imagenet_defaults, "configs/ImageNet_usl-t_0.2.yaml"
    ),
    "usl-t_pretraining/mine-neighbors.py": Stage(mine.mine_defaults),
    "usl-t_pretraining/usl-t-cifar-pretrain.py": Stage(
        uslt_train.uslt_pretrain_defaults, "configs/cifar10_usl-t_pretrain.yaml"
    ),
    "usl-t_pretraining/usl-t-imagenet-pretrain.py": Stage(
        uslt_train.uslt_imagenet_pretrain_defaults, "configs/ImageNet_usl-t_pretrain.yaml"
    ),
    "semisup-simclrv2-cld/fine_tune.py": Stage(
        finetune.finetune_defaults, "configs/cifar10_usl_finetune.yaml"
    ),
    "semisup-simclrv2/fine_tune.py": Stage(
        simclrv2.simclrv2_defaults, "configs/imagenet_usl-t_0.2.yaml", simclrv2.FLAGS
    ),
    "semisup-fixmatch-cifar/train.py": Stage(
        fixmatch.fixmatch_defaults,
        "configs/cifar10_usl_fixmatch.yaml",
        fixmatch.FLAGS,
        fixmatch.cfg_of,
    ),
    "selfsup-simclr-cld/pretrain.py": Stage(pretrain.pretrain_defaults),
}
# What options of the library are called in settings; of several, the one that a stage has.
SETTINGS: dict[str, tuple[str, ...]] = {
    "dataset": ("DATASET.NAME",),
    "root": ("DATASET.ROOT_DIR",),
    "transform": ("DATASET.TRANSFORM_NAME",),
    "side": ("DATASET.IMAGE_SIZE",),
    "image_list": ("DATASET.IMAGE_LIST",),
    "subset": ("DATASET.SUBSET",),
    "batch_size": ("DATALOADER.BATCH_SIZE",),
    "workers": ("DATALOADER.WORKERS",),
    "cache_gb": ("DATALOADER.CACHE_GB",),
    "architecture": ("MODEL.ARCH",),
    "output": ("MODEL.FEATURES",),
    "backbone_dim": ("MODEL.BACKBONE_DIM",),
    "checkpoint": ("MODEL.PRETRAIN_PATH",),
    "weights": ("USLT.WEIGHTS", "MODEL.WEIGHTS"),
    "trust": ("MODEL.TRUST_CHECKPOINT",),
    "size": ("MODEL.SIZE",),
    "depth": ("MODEL.DEPTH",),
    "width": ("MODEL.WIDTH",),
    "id_column": ("FEATURES.ID_COLUMN",),
    "image_column": ("FEATURES.IMAGES",),
    "picks_to": ("PICKS_TO",),
    "labelled": ("USL.LABELED_INDICES_PATH",),
    "device": ("DEVICE",),
    "run_name": ("RUN_NAME",),
    "run_dir": ("RUN_DIR",),
    "recompute": ("RECOMPUTE_ALL",),
    "resume": ("RESUME",),
    "export": ("EXPORT",),
    "classes": ("EXPORT_CLASSES",),
    "backend": ("KNN.BACKEND",),
    "engine": ("ENGINE",),
    "engine_address": ("ENGINE_ADDRESS",),
    "memory": ("MEMORY_GB",),
    "selector": ("COMPARE.SELECTORS", "SELECTOR"),
    "k": ("USL.KNN_K", "USLT.KNN_K", "NUM_NEIGHBORS"),
    "iterations": ("USL.K_MEANS_NITERS",),
    "weight": ("USL.REG.W",),
    "alpha": ("USL.REG.ALPHA",),
    "horizon": ("USL.REG.HORIZON",),
    "horizon_dist": ("USL.REG.HORIZON_DIST",),
    "horizon_num": ("USL.REG.HORIZON_NUM",),
    "clusters": ("USLT_PRETRAIN.NUM_SELECTED_SAMPLES",),
    "head": ("USLT.HEAD_IN_USE",),
    "pseudo_labels": ("USLT.NUM_PSEUDO_LABELS_PER_CLUSTER",),
    "epochs": ("EPOCHS",),
    "steps": ("STEPS",),
    "start_epoch": ("START_EPOCH",),
    "stop": ("FIXMATCH.EARLY_STOP", "MAX_STEPS"),
    "lr": ("OPTIMIZER.LR",),
    "schedule": ("SCHEDULE",),
    "warmup": ("WARMUP_EPOCHS", "WARMUP_STEPS"),
    "accumulate": ("ACCUMULATE",),
    "precision": ("PRECISION", "FEATURES.PRECISION"),
    "ema": ("EMA_DECAY", "USLT_PRETRAIN.EMA_DECAY"),
    "save_every": ("CHECKPOINT_STEPS",),
    "evaluate_every": ("EVALUATE_EVERY",),
    "check_every": ("PRINT_FREQ",),
    "momentum": ("USL.REG.MOMENTUM", "OPTIMIZER.MOMENTUM"),
    "weight_decay": ("OPTIMIZER.WEIGHT_DECAY",),
    "dist_backend": ("DIST.BACKEND",),
    "address": ("DIST.URL",),
    "nodes": ("DIST.NODES",),
    "node": ("DIST.NODE",),
    "scale": ("AUGMENT.CROP",),
    "flip": ("AUGMENT.FLIP",),
    "jitter": ("AUGMENT.JITTER",),
    "grey": ("AUGMENT.GREY",),
    "blur": ("AUGMENT.BLUR",),
    "temperature": ("SIMCLR.TEMPERATURE", "FIXMATCH.TEMPERATURE"),
    "groups": ("GROUP.COUNT",),
    "group_temperature": ("GROUP.TEMPERATURE",),
    "group_weight": ("GROUP.WEIGHT",),
    "mu": ("FIXMATCH.MU",),
    "threshold": ("FIXMATCH.THRESHOLD",),
    "lambda_u": ("FIXMATCH.LAMBDA_U",),
}
# Keys that the original's files have as null where nobody chose a value.
OPTIONAL = ("SEED",)
# Keys of older YAML files, and why they do nothing any more.
RETIRED = {"AUGMENT.BACKEND": "random views are always made in batches"}


def owners(key: str) -> list[str]:
    """The scripts that have a setting, each with its folder."""
    return [name for name, stage in STAGES.items() if has(stage.defaults(), key)]


def read_settings(
    entry: Stage, argv: Sequence[str] | None = None, *, script: str, doc: str | None = None
) -> CfgNode:
    """The settings of a script; see :func:`usl.config.parse.parse`."""
    return parse(
        entry.defaults(), argv, script=script, doc=doc, default_cfg=entry.cfg, paths=PATHS,
        flags=entry.flags, cfg_of=entry.cfg_of,
        optional=OPTIONAL, retired=RETIRED, owners=owners,
    )  # fmt: skip


def _entry(script: str) -> Stage:
    path = Path(script).resolve()
    return STAGES[f"{path.parent.name}/{path.name}"]


def settings_of(script: str, config: str = "") -> CfgNode:
    """The settings that a script, ``__file__``, has with this YAML alone; without: its defaults."""
    words = ["--cfg", config] if config else []
    return read_settings(replace(_entry(script), cfg=None), words, script=script)


def stage(
    script: str, doc: str | None
) -> Callable[[Callable[[CfgNode, Call], None]], Callable[..., None]]:
    """Make ``main(cfg, call)`` of a script what can be called with arguments: ``main(argv)``.

    The settings are read, and errors of the library name its options as settings.

    Parameters
    ----------
    script, doc
        ``__file__`` and ``__doc__`` of the script.
    """
    entry = _entry(script)

    def decorate(main: Callable[[CfgNode, Call], None]) -> Callable[..., None]:
        @wraps(main)
        def run(argv: Sequence[str] | None = None) -> None:
            cfg = entry.defaults()
            open_log()
            try:
                cfg = read_settings(entry, argv, script=script, doc=doc)
                main(cfg, call_of(script, argv))
            except InputError as error:
                keys = cfg
                raise error.naming(
                    lambda option: next((k for k in SETTINGS.get(option, ()) if has(keys, k)), None)
                ) from None

        return run

    return decorate
