"""Choose images of ImageNet or of a folder at random, as the published baseline was drawn.

    cd selective_labeling && python random-imagenet.py --cfg configs/ImageNet_random_0.2.yaml

Prints the picks; writes, for every seed, RUN_DIR/selected_indices_<budget>_<seed>.npy and
train_<percent>p_gen_random_index.csv with its complement, and report.html. A list of file names,
DATASET.IMAGE_LIST, is enough.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages.inputs import open_images
from usl.stages.random import choose_at_random
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    choose_at_random(cfg, call, open_images(cfg, "train"), csvs=True)


if __name__ == "__main__":
    cli(main)
