"""Selection with a trained USL-T: the settings and steps of both scripts."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from usl.artifacts import fingerprint
from usl.config.parse import CfgNode, as_dict
from usl.config.paths import find_input
from usl.data.datasets import AnyDataset
from usl.encoders.registry import Encoder
from usl.errors import InputError
from usl.geometry.points import Points, check_budget
from usl.inference import Features
from usl.lists.exports import check_exports
from usl.lists.read import read_labelled
from usl.lists.write import index_csvs, seeded
from usl.metrics import majority_accuracy
from usl.models.uslt import load_heads
from usl.report.selection import Result, print_picks
from usl.run import Run
from usl.selectors.uslt import check_count, check_head, confident, pseudo_labels
from usl.stages import report, selection
from usl.stages.inputs import (
    add_image_files,
    checkpoint_path,
    embedding_defaults,
    encoder_of,
)
from usl.stages.selection import add_export
from usl.stages.usl import add_neighbors

# Rows of features whose logits are computed at once.
BLOCK = 1 << 14


def uslt_defaults() -> CfgNode:
    """Settings of ``usl-t-cifar.py``."""
    c = add_export(embedding_defaults())
    # USLT.WEIGHTS instead.
    del c.MODEL["WEIGHTS"]
    c.USLT = CfgNode()
    # Of a checkpoint that has both: model, the trained weights; ema, their average.
    c.USLT.WEIGHTS = "model"
    # The budget; 0: one image for each cluster of the checkpoint.
    c.USLT.NUM_SELECTED_SAMPLES = 0
    # 0: whatever the checkpoint has; another number must be the checkpoint's.
    c.USLT.NUM_CLUSTERS = 0
    # The head whose argmax makes the clusters.
    c.USLT.HEAD_IN_USE = 0
    # CIFAR form: confidence is the mean over heads of each one's largest probability, not this
    # head's alone.
    c.USLT.USE_MEAN_PROB = True
    # ImageNet form only, whose picks are the densest images, not the most confident ones:
    # neighbours that make the density, the image itself included,
    c.USLT.KNN_K = 20
    # and the densest images of a cluster that get the label of its pick.
    c.USLT.NUM_PSEUDO_LABELS_PER_CLUSTER = 20
    return c


def uslt_imagenet_defaults() -> CfgNode:
    """Settings of ``usl-t-imagenet.py``."""
    c = add_image_files(uslt_defaults())
    # A CSV of the answers, Index,Label, where the data set has no labels or others are wanted.
    c.USLT.LABELS_PATH = ""
    return add_neighbors(c)


def encoder_below(cfg: CfgNode, images: AnyDataset) -> Encoder:
    """The encoder that the heads of MODEL.PRETRAIN_PATH see through."""
    return encoder_of(cfg, images, weights=cfg.USLT.WEIGHTS)


def heads_of(cfg: CfgNode, images: AnyDataset) -> tuple[nn.ModuleList, int]:
    """The heads of MODEL.PRETRAIN_PATH, and the budget.

    Raises
    ------
    InputError
        No heads, features that they have not seen, another number of clusters than
        USLT.NUM_CLUSTERS, no such head, a budget that is out of range, or an EXPORT that is
        unknown or needs files that are not here.
    """
    uslt, path = cfg.USLT, checkpoint_path(cfg.MODEL)
    if cfg.MODEL.FEATURES != "head" or cfg.MODEL.ARCH == "pixels":
        raise InputError(
            f"MODEL.ARCH is {cfg.MODEL.ARCH} and MODEL.FEATURES {cfg.MODEL.FEATURES}; the heads of "
            "USL-T were trained on those of its own network; set MODEL.FEATURES head"
        )
    heads = load_heads(path, weights=uslt.WEIGHTS, trust=cfg.MODEL.TRUST_CHECKPOINT)
    clusters = cluster_count(heads)
    if uslt.NUM_CLUSTERS not in (0, clusters):
        raise InputError(
            f"USLT.NUM_CLUSTERS is {uslt.NUM_CLUSTERS}, and {path} has {clusters}; "
            "0 takes the checkpoint's"
        )
    check_head(uslt.HEAD_IN_USE, len(heads))
    budget = uslt.NUM_SELECTED_SAMPLES or clusters
    check_budget(budget, len(images))
    check_exports(cfg.EXPORT, cfg.EXPORT_CLASSES, images)
    return heads, budget


def width_of(heads: nn.ModuleList) -> int:
    """Columns of the features that the heads see."""
    return heads[0].get_parameter("weight").shape[1]


def cluster_count(heads: nn.ModuleList) -> int:
    """Outputs of each head."""
    return len(heads[0].get_parameter("weight"))


@torch.inference_mode()
def clusters_of(
    heads: nn.ModuleList, features: Features, *, mean_of_heads: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cluster (N,) and confidence (N,) of every image, head by head, from features.

    Block by block, since all logits of ImageNet would not fit into memory; in float64, since
    in float32 rounding would decide between clusters that a reassignment has just parted. See
    :func:`usl.selectors.uslt.confident`.
    """
    exact = copy.deepcopy(heads).double()
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in heads]
    for start in range(0, len(features), BLOCK):
        block = torch.from_numpy(features.values[start : start + BLOCK]).double()
        logits = torch.stack([head(block) for head in exact], dim=1)
        for number, parts in enumerate(found):
            parts.append(confident(logits, head=number, mean_of_heads=mean_of_heads))
    return [(torch.cat([c for c, _ in parts]), torch.cat([p for _, p in parts])) for parts in found]


def keep_picks(
    run: Run,
    cfg: CfgNode,
    features: Features,
    images: AnyDataset,
    clusters: torch.Tensor,
    picks: torch.Tensor,
    count: int,
) -> tuple[Result, torch.Tensor]:
    """Save, export and print the picks of the head in use; return the sizes of its clusters too.

    Writes ``selected_indices_<budget>_<head>.npy``.
    """
    head = cfg.USLT.HEAD_IN_USE
    heads = fingerprint(checkpoint_path(cfg.MODEL))
    source = {"features": features.fingerprint, "heads": heads, "uslt": as_dict(cfg.USLT)}
    selection.save_picks(run, picks.numpy(), budget=len(picks), seed=head, source=source)
    selection.export_picks(run, cfg, images, picks.numpy(), seed=head)
    sizes = torch.bincount(clusters, minlength=count)
    result = Result(f"head {head}", picks.numpy(), sizes[clusters[picks]].numpy())
    print_picks(result, images)
    return result, sizes


def print_worth(
    head: int,
    clusters: torch.Tensor,
    picks: torch.Tensor,
    labels: np.ndarray | None,
    *,
    mean_distances: torch.Tensor | None = None,
    count: int = 1,
) -> None:
    """Print how right a head's clusters are, where labels (N,) are known.

    If each cluster took its majority label; if it took its pick's label, images of clusters without
    a pick being wrong; and, with ``mean_distances`` (N,), of the pseudo-labels of ``count`` images
    a cluster.
    """
    if labels is None:
        return
    known = torch.from_numpy(labels)

    def right(distances: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        given = pseudo_labels(clusters, distances, picks, known[picks], count=count)
        return given == known, given >= 0

    by_pick = right(torch.zeros(len(clusters)), len(known))[0].double().mean()
    text = f"majority label {majority_accuracy(clusters.numpy(), labels):.1f}"
    text += f", by the pick's {100 * float(by_pick):.1f}"
    if mean_distances is not None:
        hits, given = right(mean_distances, count)
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


def check_answers(uslt: CfgNode, picks: torch.Tensor, answers: torch.Tensor | None) -> None:
    """Raise InputError where picks have no answer, of :func:`read_answers`, and others have one."""
    if answers is None:
        return
    unanswered = picks[answers[picks] < 0]
    if len(unanswered):
        raise InputError(
            f"{uslt.LABELS_PATH} has no answer for {len(unanswered)} of {len(picks)} picks, "
            f"such as image {int(unanswered[0])}; label these too"
        )


def save_pseudo_labels(
    run: Run,
    cfg: CfgNode,
    images: AnyDataset,
    clusters: torch.Tensor,
    mean_distances: torch.Tensor,
    picks: torch.Tensor,
    answers: torch.Tensor | None,
) -> None:
    """Write the CSVs of labelled and of all other images.

    Without ``answers``, of :func:`read_answers`, the CSVs have no column Pseudolabel.
    """
    uslt, given = cfg.USLT, None
    if answers is not None:
        count = uslt.NUM_PSEUDO_LABELS_PER_CLUSTER
        given = pseudo_labels(clusters, mean_distances, picks, answers[picks], count=count)
    name = seeded(cfg.RUN_NAME or "usl-t", uslt.HEAD_IN_USE)
    labels = None if given is None else given.numpy()
    for file, text in index_csvs(images, picks.numpy(), name, pseudo_labels=labels).items():
        run.save_text(file, text)


def finish_selection(
    run: Run,
    result: Result,
    images: AnyDataset,
    points: Points,
    sizes: torch.Tensor,
    *,
    color: torch.Tensor,
    color_by: str,
) -> None:
    """Write the report of a selection and close the run."""
    report.finish(
        run,
        [result],
        title=f"{len(result.picks)} of {len(images):,} images worth labelling",
        facts={
            "Data set": images.name,
            "Selector": "USL-T",
            "Non-empty clusters": f"{int((sizes > 0).sum())} of {len(sizes)}",
        },
        images=images,
        points=points,
        color=color,
        color_by=color_by,
    )
