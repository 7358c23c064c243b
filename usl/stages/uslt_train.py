"""The steps of USL-T's two stages, which the CIFAR and the ImageNet scripts share."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from usl.artifacts import fingerprint
from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.config import CfgNode, as_dict, find_input
from usl.data.datasets import AnyDataset
from usl.data.labelled import read_labelled
from usl.data.splits import index_csvs
from usl.data.views import Chain, ImageViews
from usl.distributed import is_first
from usl.errors import InputError
from usl.metrics import majority_accuracy
from usl.models.encoders import load_encoder
from usl.models.resnet_cifar import Pretext
from usl.models.uslt import HEADS, UsltNetwork, load_heads
from usl.report.selection import SeedResult
from usl.run import Run
from usl.selection.points import Points
from usl.selection.usl import check_budget
from usl.selection.uslt import check_count, check_head, confident, pseudo_labels
from usl.steps import selection, training
from usl.steps.inputs import pretrained_path, read_neighbors
from usl.steps.training import training_folder, training_settings
from usl.training.loop import CHECKPOINT, Plan, Trained, fit
from usl.training.uslt import Reassignment, Watch, Weights, reassigning, uslt_step
from usl.training.uslt_losses import GlobalCriterion, GlobalOptions, LocalCriterion

# Rows of features whose logits are computed at once.
BLOCK = 1 << 14


def neighbors_of(cfg: CfgNode, images: int) -> torch.Tensor:
    """The neighbours that training draws from, (N, 1 + NUM_NEIGHBORS), int64."""
    uslt = cfg.USLT_PRETRAIN
    if not uslt.TOPK_NEIGHBORS_PATH:
        raise InputError(
            "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH is empty; give what mine-neighbors.py wrote"
        )
    return read_neighbors(
        uslt.TOPK_NEIGHBORS_PATH,
        "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH",
        images=images,
        count=uslt.NUM_NEIGHBORS,
    )


def note_inputs(
    run: Run, images: AnyDataset, neighbors: torch.Tensor, encoder: dict[str, str]
) -> None:
    """Record what the training starts from."""
    run.note(
        dataset=images.name,
        size=len(images),
        images=images.fingerprint(),
        neighbors=fingerprint(neighbors.numpy()),
        encoder=encoder,
    )


def pretext_of(model: CfgNode) -> tuple[Pretext, dict[str, str]]:
    """The pretext encoder of the MODEL settings, with its contrastive head, and what it is."""
    path = pretrained_path(model)
    encoder = load_encoder(
        path, model.ARCH, backbone_dim=model.BACKBONE_DIM, trust=model.TRUST_CHECKPOINT
    )
    if not isinstance(encoder, Pretext):
        raise InputError(f"checkpoint {path} has no contrastive head; give a pretext checkpoint")
    return encoder, {"architecture": model.ARCH, "sha256": fingerprint(path)}


def check_options(cfg: CfgNode) -> None:
    """Raise InputError where USLT_PRETRAIN or the optimizer is impossible."""
    uslt = cfg.USLT_PRETRAIN
    if cfg.OPTIMIZER.NAME != "Adam":
        raise InputError(f"OPTIMIZER.NAME is {cfg.OPTIMIZER.NAME!r}; USL-T trains with Adam")
    if not 0 <= cfg.OPTIMIZER.WEIGHT_DECAY < math.inf:
        raise InputError(
            f"OPTIMIZER.WEIGHT_DECAY is {cfg.OPTIMIZER.WEIGHT_DECAY}; choose 0 or more"
        )
    if not uslt.SHARPEN_TEMPERATURE > 0:
        raise InputError(
            f"USLT_PRETRAIN.SHARPEN_TEMPERATURE is {uslt.SHARPEN_TEMPERATURE}; choose above 0"
        )
    if not 0 <= uslt.CONFIDENCE_THRESHOLD < 1:
        raise InputError(
            f"USLT_PRETRAIN.CONFIDENCE_THRESHOLD is {uslt.CONFIDENCE_THRESHOLD}; "
            "choose 0 to below 1"
        )
    for name in ("LOCAL_LOSS_SCALE", "ADJUSTMENT_WEIGHT"):
        if not 0 <= uslt[name] < math.inf:
            raise InputError(f"USLT_PRETRAIN.{name} is {uslt[name]}; choose 0 or more")
    if not uslt.GLOBAL_START_EPOCH <= uslt.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH:
        raise InputError(
            "USLT_PRETRAIN.GLOBAL_START_EPOCH comes after TURN_OFF_LOCAL_LOSS_AFTER_EPOCH, so some "
            "epochs have no loss; choose an earlier one"
        )
    if uslt.REASSIGN_AFTER_STEPS < 0:
        raise InputError(
            f"USLT_PRETRAIN.REASSIGN_AFTER_STEPS is {uslt.REASSIGN_AFTER_STEPS}; choose 0 or more"
        )
    low, high = uslt.COUNT_EMA_MIN_TH, uslt.COUNT_EMA_MAX_TH
    if not 0 <= low <= high:
        raise InputError(
            f"USLT_PRETRAIN.COUNT_EMA_MIN_TH is {low} and COUNT_EMA_MAX_TH {high}; choose 0 or "
            "more, and no smaller a MAX than MIN"
        )
    path = Path(cfg.RUN_DIR) / CHECKPOINT
    if cfg.EVAL_ONLY and not path.exists():
        raise InputError(f"EVAL_ONLY, and there is no {path}; train first, or set RUN_DIR")


def begins(cfg: CfgNode) -> bool:
    """Whether training starts from the beginning, and not from a checkpoint."""
    there = not cfg.SKIP_SAVE and (Path(cfg.RUN_DIR) / CHECKPOINT).exists()
    return not cfg.EVAL_ONLY and not (there and cfg.RESUME == "auto")


def train_heads(
    cfg: CfgNode,
    plan: Plan,
    network: UsltNetwork,
    views: ImageViews,
    chain: Chain,
    neighbors: torch.Tensor,
    train: AnyDataset,
    test: AnyDataset,
    *,
    reassign: bool,
) -> Trained:
    """Train with both losses; ``checkpoint.pth`` and ``metrics.csv`` are written as it goes.

    With EVAL_ONLY nothing is trained: the checkpoint is loaded and looked at.
    """
    uslt, watch = cfg.USLT_PRETRAIN, _watch(cfg, test, views.device)
    if cfg.EVAL_ONLY:
        path = Path(cfg.RUN_DIR) / CHECKPOINT
        load_weights(network, weights_in(read_checkpoint(path)), where=str(path))
        return Trained(network.eval(), pd.DataFrame([{"epoch": 0} | watch(network)]))
    clusters = uslt.NUM_SELECTED_SAMPLES
    local = LocalCriterion(
        HEADS, clusters, adjustment=uslt.ADJUSTMENT_WEIGHT, temperature=uslt.SHARPEN_TEMPERATURE
    ).to(views.device)
    options = GlobalOptions(
        uslt.CONFIDENCE_THRESHOLD, uslt.REWEIGHT, uslt.REWEIGHT_RENORM, uslt.MEAN_OUTSIDE_MASK
    )
    whole = GlobalCriterion(HEADS, clusters, options, images=len(train) if reassign else 0)
    whole = whole.to(views.device)
    weights = Weights(
        uslt.LOCAL_LOSS_SCALE, uslt.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH, uslt.GLOBAL_START_EPOCH
    )
    reassignment = Reassignment(
        uslt.REASSIGN_AFTER_STEPS, uslt.COUNT_EMA_MIN_TH, uslt.COUNT_EMA_MAX_TH
    )
    return fit(
        network,
        uslt_step(views, chain, neighbors, local, whole, weights, seed=cfg.SEED),
        torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad],
            lr=cfg.OPTIMIZER.LR,
            weight_decay=cfg.OPTIMIZER.WEIGHT_DECAY,
        ),
        plan,
        images=len(train),
        device=views.device,
        folder=training_folder(cfg),
        settings=training_settings(cfg, train),
        resume=cfg.RESUME == "auto",
        evaluate=watch,
        after_step=reassigning(network, whole, reassignment, seed=cfg.SEED) if reassign else None,
        extras={"criterion_local": local, "criterion_global": whole, "val_predictions": watch},
    )


def _watch(cfg: CfgNode, images: AnyDataset, device: torch.device) -> Watch:
    return Watch(
        images,
        cfg.DATASET.TRANSFORM_NAME,
        threshold=cfg.USLT_PRETRAIN.CONFIDENCE_THRESHOLD,
        batch_size=cfg.DATALOADER.BATCH_SIZE,
        device=device,
    )


def finish_training(run: Run, trained: Trained, images: AnyDataset, device: torch.device) -> None:
    """Print how the images to choose from are clustered; write the report, and close the run."""
    clusters = run.cfg.USLT_PRETRAIN.NUM_SELECTED_SAMPLES
    with run.timed("evaluation"):
        found = _watch(run.cfg, images, device)(trained.network)
    if is_first():
        for head in sorted({name.partition("/")[2] for name in found}):
            numbers = {k.partition("/")[0]: v for k, v in found.items() if k.endswith(f"/{head}")}
            text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"training images, head {head}: {text}")
    training.finish_training(
        run,
        trained.metrics,
        title=f"A selector of {clusters} of {len(images):,} images",
        facts={"Data set": images.name, "Images": len(images), "Clusters": clusters},
    )


def heads_of(cfg: CfgNode, images: int) -> tuple[nn.ModuleList, int]:
    """The heads of MODEL.PRETRAIN_PATH, and the budget.

    Raises
    ------
    InputError
        No heads, features that they have not seen, another number of clusters than
        USLT.NUM_CLUSTERS, no such head, or a budget that is out of range.
    """
    uslt, path = cfg.USLT, pretrained_path(cfg.MODEL)
    if cfg.MODEL.FEATURES != "head" or cfg.MODEL.ARCH == "pixels":
        raise InputError(
            f"MODEL.ARCH is {cfg.MODEL.ARCH} and MODEL.FEATURES {cfg.MODEL.FEATURES}; the heads of "
            "USL-T were trained on those of its own network; set MODEL.FEATURES head"
        )
    heads = load_heads(path, trust=cfg.MODEL.TRUST_CHECKPOINT)
    clusters = cluster_count(heads)
    if uslt.NUM_CLUSTERS not in (0, clusters):
        raise InputError(
            f"USLT.NUM_CLUSTERS is {uslt.NUM_CLUSTERS}, and {path} has {clusters}; "
            "0 takes the checkpoint's"
        )
    check_head(uslt.HEAD_IN_USE, len(heads))
    budget = uslt.NUM_SELECTED_SAMPLES or clusters
    check_budget(budget, images)
    return heads, budget


def width_of(heads: nn.ModuleList) -> int:
    """Columns of the features that the heads see."""
    return heads[0].get_parameter("weight").shape[1]


def cluster_count(heads: nn.ModuleList) -> int:
    """Outputs of each head."""
    return len(heads[0].get_parameter("weight"))


@torch.inference_mode()
def clusters_of(
    heads: nn.ModuleList, features: np.ndarray, *, mean_of_heads: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cluster (N,) and confidence (N,) of every image, head by head, from features (N, D).

    Block by block, since all logits of ImageNet would not fit into memory; in float64, since
    in float32 rounding would decide between clusters that a reassignment has just parted. See
    :func:`usl.selection.uslt.confident`.
    """
    exact = copy.deepcopy(heads).double()
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in heads]
    for start in range(0, len(features), BLOCK):
        block = torch.from_numpy(features[start : start + BLOCK]).double()
        logits = torch.stack([head(block) for head in exact], dim=1)
        for number, parts in enumerate(found):
            parts.append(confident(logits, head=number, mean_of_heads=mean_of_heads))
    return [(torch.cat([c for c, _ in parts]), torch.cat([p for _, p in parts])) for parts in found]


def save_picks(run: Run, cfg: CfgNode, picks: torch.Tensor) -> None:
    """Write ``selected_indices_<budget>_<head>.npy``."""
    heads = fingerprint(pretrained_path(cfg.MODEL))
    source = {"features": run.facts["features"], "heads": heads, "uslt": as_dict(cfg.USLT)}
    selection.save_picks(
        run, picks.numpy(), budget=len(picks), seed=cfg.USLT.HEAD_IN_USE, source=source
    )


def print_worth(
    head: int,
    clusters: torch.Tensor,
    picks: torch.Tensor,
    labels: np.ndarray | None,
    *,
    spread: torch.Tensor | None = None,
    count: int = 1,
) -> None:
    """Print how right a head's clusters are, where labels (N,) are known.

    If each cluster took its majority label; if it took its pick's label, images of clusters without
    a pick being wrong; and, with ``spread``, of the pseudo-labels of ``count`` images a cluster.
    """
    if labels is None:
        return
    known = torch.from_numpy(labels)

    def right(spread: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        given = pseudo_labels(clusters, spread, picks, known[picks], count=count)
        return given == known, given >= 0

    by_pick = right(torch.zeros(len(clusters)), len(known))[0].double().mean()
    text = f"majority label {majority_accuracy(clusters.numpy(), labels):.1f}"
    text += f", by the pick's {100 * float(by_pick):.1f}"
    if spread is not None:
        hits, given = right(spread, count)
        share = 100 * float(hits[given].double().mean())
        text += f", of {int(given.sum())} pseudo-labels {share:.1f}"
    print(f"head {head}: accuracy by {text}")


def read_answers(uslt: CfgNode, images: AnyDataset) -> torch.Tensor | None:
    """Known labels of all images, (N,), -1 where unknown; None if there are none.

    A person's, from USLT.LABELS_PATH, or else the data set's.
    """
    check_count(uslt.NUM_PSEUDO_LABELS_PER_CLUSTER)
    if not uslt.LABELS_PATH:
        return None if images.labels is None else torch.from_numpy(images.labels)
    path = find_input(uslt.LABELS_PATH, "file of answers (USLT.LABELS_PATH)")
    given = read_labelled(path, images)
    known = torch.full((len(images),), -1)
    known[given.indices] = given.labels
    return known


def save_pseudo_labels(
    run: Run,
    uslt: CfgNode,
    images: AnyDataset,
    clusters: torch.Tensor,
    spread: torch.Tensor,
    picks: torch.Tensor,
    answers: torch.Tensor | None,
) -> None:
    """Write the CSVs of labelled and of all other images.

    Without ``answers``, of :func:`read_answers`, the CSVs have no column Pseudolabel.
    """
    given = None
    if answers is not None:
        unanswered = picks[answers[picks] < 0]
        if len(unanswered):
            raise InputError(
                f"{uslt.LABELS_PATH} has no answer for {len(unanswered)} of {len(picks)} picks, "
                f"such as image {int(unanswered[0])}; label these too"
            )
        count = uslt.NUM_PSEUDO_LABELS_PER_CLUSTER
        given = pseudo_labels(clusters, spread, picks, answers[picks], count=count)
    name = run.cfg.RUN_NAME or "usl-t"
    if uslt.HEAD_IN_USE:
        name += f"_seed{uslt.HEAD_IN_USE}"
    labels = None if given is None else given.numpy()
    for file, text in index_csvs(images, picks.numpy(), name, pseudo_labels=labels).items():
        run.save_text(file, text)


def finish_selection(
    run: Run,
    result: SeedResult,
    images: AnyDataset,
    points: Points,
    shade: torch.Tensor,
    sizes: torch.Tensor,
) -> None:
    """Write the report of a selection and close the run."""
    selection.finish(
        run,
        [result],
        title=f"{len(result.picks)} of {len(images):,} images worth labelling",
        facts={
            "Data set": images.name,
            "Selector": "USL-T",
            "Live clusters": f"{int((sizes > 0).sum())} of {len(sizes)}",
        },
        images=images,
        points=points,
        shade=shade,
    )
