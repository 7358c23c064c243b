"""Choose the images worth labelling with a trained selector, USL-T: the ImageNet form.

    cd selective_labeling && python usl-t-imagenet.py --cfg configs/ImageNet_usl-t_0.2.yaml

From each of the largest clusters of one head the densest image, whose label, once known, is given
to the densest images of its cluster. Prints the picks; writes
RUN_DIR/selected_indices_<budget>_<head>.npy, report.html, and
train_<percent>p_gen_<RUN_NAME>_index.csv with its complement. Without labels the CSV holds the
picks alone; give the answers for them as USLT.LABELS_PATH, a CSV of Index,Label, and run it again.
"""

import torch

from usl import steps
from usl.config import parse, uslt_imagenet_defaults
from usl.report.selection import SeedResult, print_picks
from usl.run import cli, start
from usl.selection.points import Points
from usl.selection.uslt import best_of_clusters


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(uslt_imagenet_defaults(), argv, script=__file__, doc=__doc__)
    images = steps.open_images(cfg, "train")
    encoder = steps.build_encoder(cfg.MODEL, cfg.DATASET.TRANSFORM_NAME, images)
    heads, budget = steps.uslt.heads_of(cfg, len(images))
    steps.check_neighbors(cfg.USLT.KNN_K, "USLT.KNN_K", cfg.KNN.BACKEND, len(images))
    answers = steps.uslt.read_answers(cfg.USLT, images)
    run = start(cfg, argv, script=__file__)

    # 1. Features of every image, in dataset order.
    size, width = cfg.DATALOADER.BATCH_SIZE, steps.uslt.width_of(heads)
    features = steps.image_features(run, encoder, images, batch_size=size, width=width)
    points = Points(features, run.device)

    # 2. How dense is the feature space around each image?
    density = steps.neighbors(run, points, k=cfg.USLT.KNN_K, backend=cfg.KNN.BACKEND)

    # 3. The densest image of each cluster, from the largest cluster on. One head's picks are kept.
    chosen = []
    for clusters, _ in steps.uslt.clusters_of(heads, features, mean_of_heads=False):
        picks = best_of_clusters(clusters, -density.spread, budget, by_size=True)
        steps.uslt.print_worth(
            len(chosen), clusters, picks, images.labels, spread=density.spread,
            count=cfg.USLT.NUM_PSEUDO_LABELS_PER_CLUSTER,
        )  # fmt: skip
        chosen.append((clusters, picks))
    clusters, picks = chosen[cfg.USLT.HEAD_IN_USE]
    steps.uslt.save_picks(run, cfg, picks)
    sizes = torch.bincount(clusters, minlength=steps.uslt.cluster_count(heads))
    result = SeedResult(cfg.USLT.HEAD_IN_USE, picks.numpy(), sizes[clusters[picks]].numpy())
    print_picks(result, images)

    # 4. Labels of the picks, for the densest images of their clusters too.
    steps.uslt.save_pseudo_labels(run, cfg.USLT, images, clusters, density.spread, picks, answers)

    # 5. Show them.
    steps.uslt.finish_selection(run, result, images, points, density.density, sizes)


if __name__ == "__main__":
    cli(main)
