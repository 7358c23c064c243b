"""Choose the images worth labelling with a trained selector, USL-T: the CIFAR form.

    cd selective_labeling && python usl-t-cifar.py --cfg configs/cifar10_usl-t.yaml

From each cluster of one head the most confident image. Prints the picks; writes
RUN_DIR/selected_indices_<budget>_<head>.npy and report.html.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.geometry.points import Points
from usl.selectors.uslt import best_of_clusters
from usl.stages import uslt_select as uslt
from usl.stages.inputs import begin, open_in_memory
from usl.stages.selection import image_features
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    images = open_in_memory(cfg, "train", advice="or use usl-t-imagenet.py")
    encoder = uslt.encoder_below(cfg, images)
    heads, budget = uslt.heads_of(cfg, images)
    run = begin(cfg, call)

    # 1. Features of every image, in dataset order.
    features = image_features(run, cfg, encoder, images, width=uslt.width_of(heads))

    # 2. Clusters of each head, and how sure it is of every image.
    chosen, mean = [], cfg.USLT.USE_MEAN_PROB
    for clusters, confidence in uslt.clusters_of(heads, features, mean_of_heads=mean):
        # 3. From each cluster the image it is surest of. One head's picks are kept.
        picks = best_of_clusters(clusters, confidence, budget)
        uslt.print_worth(len(chosen), clusters, picks, images.labels)
        chosen.append((clusters, confidence, picks))
    clusters, confidence, picks = chosen[cfg.USLT.HEAD_IN_USE]
    count = uslt.cluster_count(heads)
    result, sizes = uslt.keep_picks(run, cfg, features, images, clusters, picks, count)

    # 4. Show them.
    points = Points(features.values, run.device)
    uslt.finish_selection(
        run, result, images, points, sizes, color=confidence, color_by="confidence"
    )


if __name__ == "__main__":
    cli(main)
