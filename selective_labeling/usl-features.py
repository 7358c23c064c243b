r"""Choose what is worth labelling with USL, from embeddings made elsewhere.

    cd selective_labeling && python usl-features.py --cfg configs/features_usl.yaml \
        --opts FEATURES.PATH my_embeddings.npy USL.NUM_SELECTED_SAMPLES 100

The file holds one row for each image, (images, dimensions). Prints the picks, which are row
numbers; writes RUN_DIR/selected_indices_<budget>_<seed>.npy for every seed, and report.html.
"""

from pathlib import Path

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.selectors.usl import check_labelled
from usl.stages import usl
from usl.stages.inputs import begin, engine_of
from usl.stages.pool import read_features
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    budget = cfg.USL.NUM_SELECTED_SAMPLES
    engine = engine_of(cfg)
    given = read_features(cfg.FEATURES, engine)
    usl.check_settings(cfg, [budget], len(given.features))
    known = usl.read_labelled_rows(cfg, given.size, given.ids, given.images)
    check_labelled(usl.labelled_in(given, known), budget, len(given.features))
    run = begin(cfg, call)

    # The features are given: density, clusters, from each cluster a dense row far from other picks.
    usl.choose(
        run,
        cfg,
        given,
        engine=engine,
        images=given.images,
        known=known,
        title=f"{budget} of {len(given.features):,} embeddings worth labelling",
        facts={"Features": Path(cfg.FEATURES.PATH).name},
    )


if __name__ == "__main__":
    cli(main)
