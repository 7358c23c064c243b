r"""Choose which of your own images are worth labelling, with USL.

    cd selective_labeling && python usl-images.py --cfg configs/images_usl.yaml \
        --opts DATASET.ROOT_DIR ~/photos USL.NUM_SELECTED_SAMPLES 100

A folder of any depth, a .zip, a .tar, or a list of paths. Prints the picks; writes selected.csv,
RUN_DIR/selected_indices_<budget>_<seed>.npy, report.html and, with PICKS_TO, copies of the picks.
Files that are no images are listed in unreadable.csv.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages.images import open_own
from usl.stages.table import stage
from usl.stages.usl import choose_images


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    images = open_own(cfg)
    choose_images(cfg, call, images, title=images.folder.name)


if __name__ == "__main__":
    cli(main)
