"""Choose the images worth labelling with USL: CIFAR-10, CIFAR-100, Fashion-MNIST or digits.

    cd selective_labeling && python usl-cifar.py --cfg configs/cifar10_usl.yaml

Prints the picks; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and
report.html.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages import pool, usl
from usl.stages.inputs import begin, open_in_memory
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    budget = cfg.USL.NUM_SELECTED_SAMPLES
    images = open_in_memory(cfg, "train", advice="or use usl-imagenet.py")
    usl.check_settings(cfg, [budget], len(images))
    encoder = pool.encoder_unless_given(cfg, images)
    run = begin(cfg, call)

    # 1. Features of every image, in dataset order.
    features = pool.embed_pool(run, cfg, images, encoder)

    # 2. Density, clusters, and from each cluster a dense image far from the other picks.
    usl.choose(
        run,
        cfg,
        features,
        images=images,
        title=f"{budget} of {len(images):,} images worth labelling",
        facts={"Data set": images.name, "Encoder": features.made_by},
    )


if __name__ == "__main__":
    cli(main)
