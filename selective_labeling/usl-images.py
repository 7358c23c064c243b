r"""Choose which of your own images are worth labelling, with USL.

    cd selective_labeling && python usl-images.py --cfg configs/images_usl.yaml \
        --opts DATASET.ROOT_DIR ~/photos USL.NUM_SELECTED_SAMPLES 100

A folder of any depth, a .zip, a .tar, or a list of paths. Prints the picks; writes selected.csv,
RUN_DIR/selected_indices_<budget>_<seed>.npy, report.html and, with PICKS_TO, copies of the picks.
Files that are no images are listed in unreadable.csv.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages import images, pool, usl
from usl.stages.inputs import begin
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    budget = cfg.USL.NUM_SELECTED_SAMPLES
    own = images.open_own(cfg)
    usl.check_settings(cfg, [budget], len(own))
    encoder = pool.encoder_unless_given(cfg, own)
    run = begin(cfg, call)

    # 1. Features of every image, in the order of their paths.
    features = pool.embed_pool(run, cfg, own, encoder)

    # 2. Density, clusters, and from each cluster a dense image far from the other picks.
    usl.choose(
        run,
        cfg,
        features,
        images=own,
        title=f"{budget} of {len(own):,} images worth labelling",
        facts={"Images": own.folder.name, "Encoder": features.made_by},
    )


if __name__ == "__main__":
    cli(main)
