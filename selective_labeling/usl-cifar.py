"""Choose the images worth labelling with USL: CIFAR-10, CIFAR-100, Fashion-MNIST or digits.

    cd selective_labeling && python usl-cifar.py --cfg configs/cifar10_usl.yaml

Prints the picks; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and
report.html.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages.inputs import open_in_memory
from usl.stages.table import stage
from usl.stages.usl import choose_images


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    images = open_in_memory(cfg, "train", advice="or use usl-imagenet.py")
    choose_images(cfg, call, images, title=images.name)


if __name__ == "__main__":
    cli(main)
