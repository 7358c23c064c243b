"""Choose the images worth labelling with USL: ImageNet, ImageNet-100 or a folder of images.

    cd selective_labeling && python usl-imagenet.py --cfg configs/ImageNet_usl_moco_0.2.yaml

Prints the picks; writes, for every seed, RUN_DIR/selected_indices_<budget>_<seed>.npy and
train_<percent>p_gen_<RUN_NAME>_index.csv with its complement, and report.html. Released results in
RUN_DIR are used; a list of file names, DATASET.IMAGE_LIST, then stands for the images.
"""

from pathlib import Path

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages.inputs import open_images
from usl.stages.table import stage
from usl.stages.usl import choose_images


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    images = open_images(cfg, "train")
    title = f"{images.name}, {Path(cfg.DATASET.ROOT_DIR).name}"
    choose_images(cfg, call, images, title=title, csvs=True)


if __name__ == "__main__":
    cli(main)
