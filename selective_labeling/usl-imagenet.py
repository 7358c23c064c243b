"""Choose the images worth labelling with USL: ImageNet, ImageNet-100 or a folder of images.

    cd selective_labeling && python usl-imagenet.py --cfg configs/ImageNet_usl_moco_0.2.yaml

Prints the picks; writes, for every seed, RUN_DIR/selected_indices_<budget>_<seed>.npy and
train_<percent>p_gen_<RUN_NAME>_index.csv with its complement, and report.html. Released results in
RUN_DIR are used; a list of file names, DATASET.IMAGE_LIST, then stands for the images.
"""

from pathlib import Path

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages import pool, usl
from usl.stages.inputs import begin, open_images
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    budget = cfg.USL.NUM_SELECTED_SAMPLES
    images = open_images(cfg, "train")
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
        csvs=True,
        title=f"{budget} of {len(images):,} images worth labelling",
        facts={
            "Data set": f"{images.name}, {Path(cfg.DATASET.ROOT_DIR).name}",
            "Encoder": features.made_by,
        },
    )


if __name__ == "__main__":
    cli(main)
