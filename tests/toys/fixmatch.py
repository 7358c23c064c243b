"""A small FixMatch training, whose views are watched."""

import torch
from helpers import CPU, Watched, disturbed, labelled, preprocess, small_backbone, tiny_images
from torch import distributed as dist

from usl.augment.randaugment import RandAugmentTransform, WeakTransform
from usl.augment.views import Views
from usl.models.classifier import Classifier
from usl.stages.fixmatch import fixmatch_defaults
from usl.stages.training import sgd as stage_sgd
from usl.training.fixmatch import FixMatch, FixMatchViews, fixmatch_step
from usl.training.layouts import REST, exporting, fixmatch_layout
from usl.training.loop import Plan, fit

DATA = tiny_images(30)
CHOSEN = torch.tensor([3, 8, 1, 22, 17])
LABELLED = labelled(DATA, *CHOSEN.tolist())
# What the files of FixMatch-pytorch hold.
LAYOUT = {"epoch", "state_dict", "ema_state_dict", "acc", "best_acc", "optimizer", "scheduler"}
# And what this project needs beside to go on from them.
LAYOUT |= set(REST)
OPTIONS = FixMatch(labelled=4, mu=3, threshold=0.4)


def small(seed=0):
    backbone = small_backbone(seed)
    return Classifier(backbone, backbone.dim, 3)


def images_of(calls):
    return [image for call in calls for image in call[1]]


def tiny_views(dtype=torch.float32):
    return Watched(Views(DATA, preprocess(DATA), device=CPU), dtype)


def sgd(network, **settings):
    optimizer = fixmatch_defaults().OPTIMIZER
    for name, value in settings.items():
        optimizer[name] = value
    return stage_sgd(network, optimizer, decay_all=False)


def probe(network):
    """Something that every weight has a part in."""
    x = torch.linspace(-1, 1, 4 * 3072).reshape(4, 3, 32, 32)
    with torch.no_grad():
        return {"accuracy": network(x.to(next(network.parameters()).dtype)).std().item()}


def batches_of(views, options=OPTIONS, labelled=LABELLED, *, steps, seed=5):
    """The views of each step, with the transforms of 32 pixels."""
    return FixMatchViews(
        views, WeakTransform(), RandAugmentTransform(), labelled, options, seed=seed, steps=steps
    )


def train(
    folder=None, *, network=None, views=None, options=OPTIONS, die_at=None, spoil_at=None,
    per_epoch=3, compiled=False, evaluate=probe, after_step=None, **plan,
):  # fmt: skip
    """Six steps, two epochs."""
    network = small() if network is None else network
    batch = options.labelled * options.mu
    plan = Plan(
        **{
            "epochs": 0, "steps": 6, "batch_size": batch, "lr": 0.1, "schedule": "fixmatch",
            "ema": 0.9, "seed": 5,
        } | plan
    )  # fmt: skip
    batches = batches_of(tiny_views() if views is None else views, options, steps=per_epoch)
    make = fixmatch_step(batches, compiled=compiled)
    if folder is not None:
        folder.mkdir(exist_ok=True)
    return fit(
        network, disturbed(make, die_at=die_at, spoil_at=spoil_at), sgd(network), plan,
        images=per_epoch * batch, device=CPU,
        folder=folder, evaluate=evaluate, after_step=after_step,
        export=exporting(folder, fixmatch_layout(plan.lr)) if folder else None,
    )  # fmt: skip


def outcome(dtype):
    """One epoch of three steps: metrics, the weight average, labelled images by step."""
    views = tiny_views(dtype)
    trained = train(network=small().to(dtype), views=views, steps=3)
    weights = trained.network.state_dict()
    return {
        "metrics": {c: trained.metrics[c].tolist() for c in ("loss", "mask", "accuracy")},
        "weights": {k: v.double().flatten().tolist() for k, v in weights.items()},
        "labelled": [call[1] for call in views.calls[::3]],
    }


def outcomes():
    """The same of each of two processes, in both precisions."""
    results = []
    for dtype in (torch.float64, torch.float32):
        result, labelled = outcome(dtype), [None, None]
        dist.all_gather_object(labelled, result["labelled"])
        results.append(result | {"labelled": labelled})
    return results
