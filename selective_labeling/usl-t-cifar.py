"""Choose the images worth labelling with a trained selector, USL-T: the CIFAR form.

    cd selective_labeling && python usl-t-cifar.py --cfg configs/cifar10_usl-t.yaml

From each cluster of one head the most confident image. Prints the picks; writes
RUN_DIR/selected_indices_<budget>_<head>.npy and report.html.
"""

import torch

from usl import steps, uslt_steps
from usl.config import parse, uslt_defaults
from usl.report.selection import SeedResult, print_picks
from usl.run import cli, start
from usl.selection.points import Points
from usl.selection.uslt import best_of_clusters, confident


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(uslt_defaults(), argv, script=__file__, doc=__doc__)
    images = steps.open_images(cfg, "train")
    encoder = steps.build_encoder(cfg.MODEL, cfg.DATASET.TRANSFORM_NAME, images)
    heads, budget = uslt_steps.heads_of(cfg, len(images))
    run = start(cfg, argv, script=__file__)

    # 1. Features of every image, in dataset order, and what each head makes of them.
    features = steps.image_features(run, encoder, images, batch_size=cfg.DATALOADER.BATCH_SIZE)
    logits = uslt_steps.logits_of(heads, features)

    chosen = {}
    for head in range(len(heads)):
        # 2. Clusters of a head, and how sure it is of every image.
        clusters, confidence = confident(logits, head=head, mean_of_heads=cfg.USLT.USE_MEAN_PROB)
        # 3. From each cluster the image it is surest of. One head's picks are kept.
        chosen[head] = clusters, confidence, best_of_clusters(clusters, confidence, budget)
        uslt_steps.print_worth(head, clusters, chosen[head][2], images.labels)
    clusters, confidence, picks = chosen[cfg.USLT.HEAD_IN_USE]
    uslt_steps.save_picks(run, cfg, picks)
    sizes = torch.bincount(clusters, minlength=logits.shape[2])
    result = SeedResult(cfg.USLT.HEAD_IN_USE, picks.numpy(), sizes[clusters[picks]].numpy())
    print_picks(result, images)

    # 4. Show them.
    points = Points(features, run.device)
    uslt_steps.finish_selection(run, result, images, points, confidence, sizes)


if __name__ == "__main__":
    cli(main)
