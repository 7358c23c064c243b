"""Choose images at random, as the published baselines were drawn.

    cd selective_labeling && python random-cifar.py --cfg configs/cifar10_random.yaml

Prints the picks; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and
report.html.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.geometry.points import check_budget
from usl.lists.exports import check_exports
from usl.report.selection import Result, print_picks
from usl.selectors.random import random_picks
from usl.stages.inputs import begin, check_seeds, open_images
from usl.stages.selection import export_picks, finish, save_picks
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    budget = cfg.RANDOM.NUM_SELECTED_SAMPLES
    images = open_images(cfg, "train")
    check_budget(budget, len(images))
    check_seeds(cfg.RANDOM.SEEDS, "RANDOM.SEEDS")
    check_exports(cfg.EXPORT)
    run = begin(cfg, call)

    results = []
    for seed in cfg.RANDOM.SEEDS:
        picks = random_picks(len(images), budget, seed=seed).numpy()
        save_picks(run, picks, budget=budget, seed=seed, source={"images": len(images)})
        export_picks(run, cfg, images, picks, seed=seed)
        results.append(Result(f"seed {seed}", picks))
        print_picks(results[-1], images)
    finish(
        run,
        results,
        title=f"{budget} of {len(images):,} images, at random",
        facts={"Data set": images.name},
        images=images,
    )


if __name__ == "__main__":
    cli(main)
