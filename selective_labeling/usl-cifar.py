"""Choose the images worth labelling with USL: CIFAR-10, CIFAR-100, Fashion-MNIST or digits.

    cd selective_labeling && python usl-cifar.py --cfg configs/cifar10_usl.yaml

Prints the picks; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and
report.html.
"""

from usl import steps
from usl.config import parse, usl_defaults
from usl.report.selection import SeedResult, print_picks
from usl.run import cli, start
from usl.selection.points import Points


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(usl_defaults(), argv, script=__file__, doc=__doc__)
    budget, regularizer = cfg.USL.NUM_SELECTED_SAMPLES, steps.regularizer_of(cfg.USL.REG)
    images = steps.open_images(cfg, "train")
    steps.check_settings(cfg, [budget], len(images))
    encoder = steps.build_encoder(cfg.MODEL, cfg.DATASET.TRANSFORM_NAME, images)
    run = start(cfg, argv, script=__file__)

    # 1. Features of every image, in dataset order.
    features = steps.image_features(run, encoder, images, batch_size=cfg.DATALOADER.BATCH_SIZE)
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
        print_picks(results[-1], images)

    # 5. Show them.
    steps.finish(
        run,
        results,
        title=f"{budget} of {len(images):,} images worth labelling",
        facts={"Data set": images.name, "Encoder": cfg.MODEL.ARCH, "Neighbours": cfg.USL.KNN_K},
        images=images,
        points=points,
        shade=density.density,
    )


if __name__ == "__main__":
    cli(main)
