"""Random picks: their settings, and the one body of both scripts."""

from __future__ import annotations

from usl.cli import Call
from usl.config.parse import CfgNode
from usl.data.datasets import AnyDataset
from usl.geometry.points import check_budget
from usl.lists.exports import check_exports
from usl.report.selection import Result, print_picks
from usl.selectors.random import random_picks
from usl.stages import report, selection
from usl.stages.inputs import add_folders, begin, check_seeds, encoder_defaults


def random_defaults() -> CfgNode:
    """Settings of ``random-cifar.py``."""
    # MODEL, DATALOADER and RECOMPUTE_* are the original's: a draw depends on none of them.
    c = selection.add_export(encoder_defaults())
    c.RANDOM = CfgNode()
    # One draw for each.
    c.RANDOM.SEEDS = [1, 2, 3, 4, 5]
    # The budget: how many images can be labelled.
    c.RANDOM.NUM_SELECTED_SAMPLES = 40
    return c


def random_imagenet_defaults() -> CfgNode:
    """Settings of ``random-imagenet.py``."""
    c = add_folders(random_defaults())
    c.RANDOM.SEEDS = [0]
    return c


def choose_at_random(cfg: CfgNode, call: Call, images: AnyDataset, *, csvs: bool = False) -> None:
    """Draw picks, once for every seed, save and show them; ``csvs`` as for :func:`choose`."""
    budget = cfg.RANDOM.NUM_SELECTED_SAMPLES
    check_budget(budget, len(images))
    check_seeds(cfg.RANDOM.SEEDS, "RANDOM.SEEDS")
    check_exports(cfg.EXPORT, cfg.EXPORT_CLASSES, images)
    run = begin(cfg, call)
    results = []
    for seed in cfg.RANDOM.SEEDS:
        picks = random_picks(len(images), budget, seed=seed).numpy()
        source = {"images": images.fingerprint(), "seed": seed}
        selection.save_picks(run, picks, budget=budget, seed=seed, source=source)
        selection.export_picks(run, cfg, images, picks, seed=seed)
        if csvs:
            selection.save_csvs(run, images, picks, name="random", seed=seed)
        results.append(Result(f"seed {seed}", picks))
        print_picks(results[-1], images)
    report.finish(
        run,
        results,
        title=f"{budget} of {len(images):,} images, at random",
        facts={"Data set": images.name},
        images=images,
    )
