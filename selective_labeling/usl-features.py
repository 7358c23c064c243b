r"""Choose what is worth labelling with USL, from embeddings made elsewhere.

    cd selective_labeling && python usl-features.py --cfg configs/features_usl.yaml \
        --opts FEATURES.PATH my_embeddings.npy USL.NUM_SELECTED_SAMPLES 100

The file holds one row for each image, (images, dimensions). Prints the picks, which are row
numbers; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and report.html.
"""

from pathlib import Path

from usl import steps
from usl.config import features_defaults, parse
from usl.report.selection import SeedResult, print_picks
from usl.run import cli, start
from usl.selection.points import Points


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(features_defaults(), argv, script=__file__, doc=__doc__)
    budget, regularizer = cfg.USL.NUM_SELECTED_SAMPLES, steps.regularizer_of(cfg.USL.REG)
    features = steps.read_features(cfg.FEATURES.PATH, normalize=cfg.FEATURES.NORMALIZE)
    steps.check_settings(cfg, [budget], len(features))
    run = start(cfg, argv, script=__file__)

    # 1. The features are given.
    steps.note_features(run, features)
    points = Points(features, run.device)

    # 2. How dense is the feature space around each image?
    density = steps.neighbors(run, points, k=cfg.USL.KNN_K, backend=cfg.KNN.BACKEND)

    results = []
    for seed in cfg.USL.SEEDS:
        # 3. One cluster for every label we can afford.
        grouped = steps.clusters(
            run, points, budget=budget, seed=seed, iterations=cfg.USL.K_MEANS_NITERS
        )
        # 4. From each, a dense image far from the other picks.
        chosen = steps.picks(
            run, points, density, grouped, budget=budget, seed=seed, regularizer=regularizer
        )
        sizes = grouped.sizes[chosen.clusters].numpy()
        results.append(SeedResult(seed, chosen.indices.numpy(), sizes))
        print_picks(results[-1])

    # 5. Show them.
    steps.finish(
        run,
        results,
        title=f"{budget} of {len(points):,} embeddings worth labelling",
        facts={"Features": Path(cfg.FEATURES.PATH).name, "Neighbours": cfg.USL.KNN_K},
        points=points,
        shade=density.density,
    )


if __name__ == "__main__":
    cli(main)
