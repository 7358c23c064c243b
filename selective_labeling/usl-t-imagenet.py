"""Choose the images worth labelling with a trained selector, USL-T: the ImageNet form.

    cd selective_labeling && python usl-t-imagenet.py --cfg configs/ImageNet_usl-t_0.2.yaml

From each of the largest clusters of one head the densest image, whose label, once known, is given
to the densest images of its cluster. Prints the picks; writes
RUN_DIR/selected_indices_<budget>_<head>.npy, report.html, and
train_<percent>p_gen_<RUN_NAME>_index.csv with its complement. Without labels the CSV holds the
picks alone; give the answers for them as USLT.LABELS_PATH, a CSV of Index,Label, and run it again.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.geometry.points import Points
from usl.selectors.uslt import best_of_clusters
from usl.stages import uslt_select as uslt
from usl.stages.inputs import begin, open_images
from usl.stages.selection import check_density, image_features, neighbors
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    images = open_images(cfg, "train")
    encoder = uslt.encoder_below(cfg, images)
    heads, budget = uslt.heads_of(cfg, images)
    check_density(cfg.USLT.KNN_K, cfg.KNN.BACKEND, len(images))
    answers = uslt.read_answers(cfg.USLT, images)
    run = begin(cfg, call)

    # 1. Features of every image, in dataset order.
    features = image_features(run, cfg, encoder, images, width=uslt.width_of(heads))
    points = Points(features.values, run.device)

    # 2. How dense is the feature space around each image?
    density = neighbors(run, features, points, k=cfg.USLT.KNN_K, backend=cfg.KNN.BACKEND)
    near = density.mean_distances

    # 3. The densest image of each cluster, from the largest cluster on. One head's picks are kept.
    chosen = []
    for clusters, _ in uslt.clusters_of(heads, features, mean_of_heads=False):
        picks = best_of_clusters(clusters, -near, budget, by_size=True)
        each = cfg.USLT.NUM_PSEUDO_LABELS_PER_CLUSTER
        uslt.print_worth(
            len(chosen), clusters, picks, images.labels, mean_distances=near, count=each
        )
        chosen.append((clusters, picks))
    clusters, picks = chosen[cfg.USLT.HEAD_IN_USE]
    uslt.check_answers(cfg.USLT, picks, answers)
    count = uslt.cluster_count(heads)
    result, sizes = uslt.keep_picks(run, cfg, features, images, clusters, picks, count)

    # 4. Labels of the picks, for the densest images of their clusters too.
    uslt.save_pseudo_labels(run, cfg, images, clusters, near, picks, answers)

    # 5. Show them.
    uslt.finish_selection(
        run, result, images, points, sizes, color=density.density, color_by="density"
    )


if __name__ == "__main__":
    cli(main)
