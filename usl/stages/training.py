"""What trainings share: settings, plan, optimizer, what may be resumed, report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from usl.artifacts import fingerprint
from usl.augment.moco import MocoTransform
from usl.checkpoints import read_checkpoint
from usl.cli import choose_device
from usl.config.parse import CfgNode, as_dict
from usl.config.paths import find_input
from usl.data.datasets import AnyDataset
from usl.distributed import is_main
from usl.errors import InputError
from usl.report.training import write_training_report
from usl.run import Run
from usl.stages.inputs import check_seeds
from usl.stages.paths import LISTS
from usl.training.loop import Plan, check_own
from usl.training.resume import load_training

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
    "RECOMPUTE_ALL",
    "RECOMPUTE_NUM_DEP",
    "BACKUP_PYTHON_FILE",
    "EVAL_ONLY",
    "MAX_STEPS",
    "PRINT_FREQ",
    "DIST",
)


def add_training(c: CfgNode) -> CfgNode:
    """Settings of every training: how long, how exactly, how often it is looked at."""
    # Order of the images, random views, and initial weights where there is no checkpoint.
    c.SEED = 0
    # auto: go on from RUN_DIR/checkpoint.pth if it is there; none: begin anew; or the path of a
    # checkpoint to go on from, of this project or in the layout of the original's.
    c.RESUME = "auto"
    # Epochs that count as done before the first one.
    c.START_EPOCH = 0
    # Passes over the images.
    c.EPOCHS = 200
    # Steps instead of epochs, if above 0.
    c.STEPS = 0
    # Stop after so many steps, with the schedule of them all: for trials; 0: none.
    c.MAX_STEPS = 0
    # cosine, epoch-cosine (which falls between epochs only), constant, or fixmatch (7/16 of a
    # half-turn), after a linear warm-up.
    c.SCHEDULE = "constant"
    c.WARMUP_EPOCHS = 0
    # Parts of a batch, one after the other, to save memory. Each part is compared within itself.
    c.ACCUMULATE = 1
    # float32, bfloat16 or float16; auto: bfloat16 where the device has it, else float16 on a GPU
    # and float32 on a CPU.
    c.PRECISION = "float32"
    # Steps between two looks at the loss: is it finite, and what does the progress bar say?
    c.PRINT_FREQ = 20
    # Steps between checkpoints; 0: one after each epoch.
    c.CHECKPOINT_STEPS = 0
    # Epochs between evaluations.
    c.EVALUATE_EVERY = 1
    c.OPTIMIZER = CfgNode()
    return c


def add_flip(c: CfgNode) -> CfgNode:
    """Settings of stages whose random views are mirrored or not."""
    c.AUGMENT = CfgNode()
    # Probability of a mirrored view.
    c.AUGMENT.FLIP = 0.5
    return c


def add_moco(c: CfgNode) -> CfgNode:
    """Settings of stages that see MoCo v2's random views: usl/augment/moco.py."""
    add_flip(c)
    # These four play no part with SCAN's views, which TRANSFORM_NAMEs FixMatch-… and SCAN-… mean.
    # Smallest share of the area that a crop keeps.
    c.AUGMENT.CROP = 0.2
    # Probabilities.
    c.AUGMENT.JITTER = 0.8
    c.AUGMENT.GREY = 0.2
    c.AUGMENT.BLUR = 0.5
    return c


def moco_transform(augment: CfgNode, side: int) -> MocoTransform:
    """MoCo v2's random view as the AUGMENT settings describe it, for images of this side."""
    return MocoTransform(
        size=side,
        scale=(augment.CROP, 1.0),
        flip=augment.FLIP,
        jitter=augment.JITTER,
        grey=augment.GREY,
        blur=augment.BLUR,
    )


def plan_of(cfg: CfgNode, images: int, *, ema: float = 0.0, batch: int | None = None) -> Plan:
    """The training plan that the settings describe; ``batch`` instead of their BATCH_SIZE."""
    batch = cfg.DATALOADER.BATCH_SIZE if batch is None else batch
    seed = cfg.get("SEED", 0)
    check_seeds([seed], "SEED")
    if cfg.WARMUP_EPOCHS < 0:
        raise InputError(f"WARMUP_EPOCHS is {cfg.WARMUP_EPOCHS}; choose 0 or more")
    if "SEED" in cfg:
        check_resume(cfg, [seed])
    return Plan(
        epochs=cfg.EPOCHS,
        steps=cfg.STEPS,
        batch_size=batch,
        lr=cfg.OPTIMIZER.LR,
        warmup=cfg.WARMUP_EPOCHS * (images // max(1, batch)),
        schedule=cfg.SCHEDULE,
        accumulate=cfg.ACCUMULATE,
        precision=precision_of(cfg),
        ema=ema,
        start=cfg.START_EPOCH,
        stop=cfg.MAX_STEPS,
        save_every=cfg.CHECKPOINT_STEPS,
        evaluate_every=cfg.EVALUATE_EVERY,
        check_every=cfg.PRINT_FREQ,
        shared_norms=cfg.MODEL.get("SYNC_BN", True),
        seed=seed,
    )


def precision_of(cfg: CfgNode) -> str:
    """The precision of PRECISION; for ``auto`` the fastest that the device has instructions for."""
    if cfg.PRECISION != "auto":
        precision: str = cfg.PRECISION
        return precision
    if choose_device(cfg.DEVICE).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    known = torch.cpu.get_capabilities()
    return "bfloat16" if any(known[name] for name in known if "bf16" in name) else "float32"


def resume_of(cfg: CfgNode, seed: int) -> bool | Path:
    """Whether a training goes on from its own checkpoint, or the one that RESUME names.

    Raises
    ------
    InputError
        There is none.
    """
    if cfg.RESUME in ("auto", "none"):
        return bool(cfg.RESUME == "auto")
    path = cfg.RESUME.replace("{seed}", str(seed))
    return find_input(path, "checkpoint (RESUME)", advice="or choose auto or none")


def check_resume(cfg: CfgNode, seeds: Sequence[int]) -> None:
    """Raise InputError where a checkpoint is missing, or one would serve several trainings."""
    found = {resume_of(cfg, seed) for seed in seeds}
    if len(found) < len(seeds) and any(isinstance(one, Path) for one in found):
        raise InputError(
            f"RESUME is one checkpoint for the seeds {list(seeds)}; write {{seed}} in its name, "
            "or train one seed"
        )


def check_own_checkpoint(cfg: CfgNode, plan: Plan, images: AnyDataset) -> None:
    """Raise InputError where the one training of a run cannot go on from its own checkpoint."""
    check_own(
        plan,
        images=len(images),
        folder=training_folder(cfg),
        settings=training_settings(cfg, images),
        resume=resume_of(cfg, plan.seed),
    )


def check_checkpoint(
    cfg: CfgNode, seed: int, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Raise InputError where a training cannot go on from what RESUME names.

    Before anything is written. What the checkpoint has is left in network and optimizer.
    """
    given = resume_of(cfg, seed)
    if isinstance(given, Path):
        load_training(read_checkpoint(given), given, network, optimizer)


def tested_checkpoint(cfg: CfgNode, seed: int, own: Path) -> Path:
    """The checkpoint that EVAL_ONLY tests: what RESUME names, or else the run's ``own``.

    Raises
    ------
    InputError
        There is none.
    """
    given = resume_of(cfg, seed)
    path = given if isinstance(given, Path) else own
    if not path.exists():
        raise InputError(
            f"EVAL_ONLY, and there is no {path}; train first, or set RUN_DIR or RESUME"
        )
    return path


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
    # The fingerprint of the images stands for what names them.
    for key in ("ROOT_DIR", "IMAGE_LIST", "SUBSET"):
        settings["DATASET"].pop(key, None)
    settings["DATALOADER"].pop("WORKERS")
    settings["DATALOADER"].pop("CACHE_GB", None)
    settings["MODEL"].pop("TRUST_CHECKPOINT", None)
    settings.get("FIXMATCH", {}).pop("EARLY_STOP", None)
    # An input is known by its content, wherever it lies.
    for name, section in settings.items():
        for key, value in section.items() if isinstance(section, dict) else ():
            if key.endswith("_PATH") and value and f"{name}.{key}" not in LISTS:
                section[key] = fingerprint(find_input(value, f"file ({name}.{key})"))
    return settings | {"images": images.fingerprint()}


def finish_training(run: Run, metrics: pd.DataFrame, *, title: str, facts: dict[str, Any]) -> None:
    """Write ``report.html`` with the curves, print the last numbers, and close the run."""
    if is_main():
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
