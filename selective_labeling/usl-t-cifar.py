"""Choose the images worth labelling with a trained selector, USL-T: the CIFAR form.

    cd selective_labeling && python usl-t-cifar.py --cfg configs/cifar10_usl-t.yaml

From each cluster of one head the most confident image. Prints the picks; writes
RUN_DIR/selected_indices_<budget>_<head>.npy and report.html.
"""

import torch

from usl import steps
from usl.config import parse, uslt_defaults
from usl.report.selection import SeedResult, print_picks
from usl.run import cli, start
from usl.selection.points import Points
from usl.selection.uslt import best_of_clusters


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(uslt_defaults(), argv, script=__file__, doc=__doc__)
    images = steps.open_images(cfg, "train")
    encoder = steps.build_encoder(cfg.MODEL, cfg.DATASET.TRANSFORM_NAME, images)
    heads, budget = steps.uslt.heads_of(cfg, len(images))
    run = start(cfg, argv, script=__file__)

    # 1. Features of every image, in dataset order.
    size, width = cfg.DATALOADER.BATCH_SIZE, steps.uslt.width_of(heads)
    features = steps.image_features(run, encoder, images, batch_size=size, width=width)

    # 2. Clusters of each head, and how sure it is of every image.
    chosen, mean = [], cfg.USLT.USE_MEAN_PROB
    for clusters, confidence in steps.uslt.clusters_of(heads, features, mean_of_heads=mean):
        # 3. From each cluster the image it is surest of. One head's picks are kept.
        picks = best_of_clusters(clusters, confidence, budget)
        steps.uslt.print_worth(len(chosen), clusters, picks, images.labels)
        chosen.append((clusters, confidence, picks))
    clusters, confidence, picks = chosen[cfg.USLT.HEAD_IN_USE]
    steps.uslt.save_picks(run, cfg, picks)
    sizes = torch.bincount(clusters, minlength=steps.uslt.cluster_count(heads))
    result = SeedResult(cfg.USLT.HEAD_IN_USE, picks.numpy(), sizes[clusters[picks]].numpy())
    print_picks(result, images)

    # 4. Show them.
    points = Points(features, run.device)
    steps.uslt.finish_selection(run, result, images, points, confidence, sizes)


if __name__ == "__main__":
    cli(main)
