"""Choose images at random, as the published baselines were drawn.

    cd selective_labeling && python random-cifar.py --cfg configs/cifar10_random.yaml

Prints the picks; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and
report.html.
"""

from usl import steps
from usl.config import parse, random_defaults
from usl.report.selection import SeedResult, print_picks
from usl.run import cli, start
from usl.selection.random import random_picks
from usl.selection.usl import check_budget


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(random_defaults(), argv, script=__file__, doc=__doc__)
    budget = cfg.RANDOM.NUM_SELECTED_SAMPLES
    images = steps.open_images(cfg, "train")
    check_budget(budget, len(images))
    steps.check_seeds(cfg.RANDOM.SEEDS, "RANDOM.SEEDS")
    run = start(cfg, argv, script=__file__)

    results = []
    for seed in cfg.RANDOM.SEEDS:
        picks = random_picks(len(images), budget, seed=seed).numpy()
        steps.save_picks(run, picks, budget=budget, seed=seed, source={"images": len(images)})
        results.append(SeedResult(seed, picks))
        print_picks(results[-1], images)
    steps.finish(
        run,
        results,
        title=f"{budget} of {len(images):,} images, at random",
        facts={"Data set": images.name},
        images=images,
    )


if __name__ == "__main__":
    cli(main)
