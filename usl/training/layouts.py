"""Checkpoints in the layouts of the original's trainings, which its users' tools read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from usl.artifacts import replacing

# What else a training that goes on from such a file takes from it.
REST = ("step", "metrics", "random", "scaler")
# (what the checkpoint holds, the metrics of an epoch) to the layout
Layout = Callable[[dict[str, Any], dict[str, float]], dict[str, Any]]


def exporting(
    folder: Path, layout: Layout, *, name: str = ""
) -> Callable[[dict[str, Any], dict[str, float]], None]:
    """Write ``checkpoint{name}.pth.tar`` and, of the best, ``model_best{name}.pth.tar``.

    For ``export`` of :func:`usl.training.loop.fit`, after each epoch.
    """

    def export(content: dict[str, Any], row: dict[str, float]) -> None:
        found = layout(content, row) | {k: content[k] for k in REST if k in content}
        files = [f"checkpoint{name}.pth.tar"]
        if row.get("accuracy", -1.0) >= content["best"]:
            files.append(f"model_best{name}.pth.tar")
        for file_name in files:
            with replacing(folder / file_name) as file:
                torch.save(found, file)

    return export


def fixmatch_layout(lr: float) -> Layout:
    """FixMatch-pytorch's layout; ``lr`` is the learning rate at the start of the schedule.

    Other trainers resume it: the entries of optimizer and scheduler are those of torch's SGD and
    LambdaLR.
    """

    def layout(content: dict[str, Any], row: dict[str, float]) -> dict[str, Any]:
        optimizer = content["optimizer"]
        groups = [group | {"initial_lr": lr} for group in optimizer["param_groups"]]
        return {
            "epoch": content["epoch"],
            "state_dict": content["model"],
            "ema_state_dict": content["ema_model"],
            "acc": row["accuracy"],
            "best_acc": content["best"],
            "optimizer": {"state": optimizer["state"], "param_groups": groups},
            "scheduler": scheduler_state(groups, step=content["step"], lr=row["lr"], base_lr=lr),
        }

    return layout


def simclrv2_layout(options: dict[str, Any]) -> Layout:
    """The layout of SimCLRv2's fine-tuning; ``options`` of its command line, by their names."""

    def layout(content: dict[str, Any], row: dict[str, float]) -> dict[str, Any]:
        found = {
            "epoch": content["epoch"],
            "state_dict": {f"module.{k}": v for k, v in content["model"].items()},
            "best_acc1": content["best"],
            "optimizer": content["optimizer"],
            "args": argparse.Namespace(**options),
            "amp": None,
        }
        if content["ema_model"] is not None:
            found["ema_state_dict"] = content["ema_model"]
        return found

    return layout


def scheduler_state(
    groups: list[dict[str, Any]], *, step: int, lr: float, base_lr: float
) -> dict[str, Any]:
    """What ``LambdaLR`` of torch keeps after ``step`` steps, for the parameter groups of SGD.

    Parameters
    ----------
    groups : list of dict
    step : int
    lr, base_lr : float
        Learning rate now, and at the start of the schedule.
    """
    stand_ins = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in groups]
    optimizer = torch.optim.SGD(stand_ins, lr=base_lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    state = scheduler.state_dict()
    state |= {"last_epoch": step, "_step_count": step + 1, "_last_lr": [lr] * len(groups)}
    return state
