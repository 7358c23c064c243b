"""Choose images at random, as the published baselines were drawn.

    cd selective_labeling && python random-cifar.py --cfg configs/cifar10_random.yaml

Prints the picks; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and
report.html.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages.inputs import open_images
from usl.stages.random import choose_at_random
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    choose_at_random(cfg, call, open_images(cfg, "train"))


if __name__ == "__main__":
    cli(main)
