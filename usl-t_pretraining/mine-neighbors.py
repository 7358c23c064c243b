"""Mine the nearest neighbours of every image, from which USL-T and pretraining learn.

    cd usl-t_pretraining && python mine-neighbors.py --cfg configs/fashion-mnist_neighbors.yaml

Writes RUN_DIR/topk-train-neighbors.npy, (images, 1 + NUM_NEIGHBORS), column 0 being the image
itself: by the features of MODEL, or by those of a file, FEATURES.PATH.
"""

import numpy as np

from usl import steps
from usl.config import mine_defaults, parse
from usl.errors import InputError
from usl.run import Expected, cli, start
from usl.selection.neighbors import check_backend, find_neighbors, itself_first
from usl.selection.points import Points


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(mine_defaults(), argv, script=__file__, doc=__doc__)
    check_backend(cfg.KNN.BACKEND)
    count = cfg.NUM_NEIGHBORS
    if cfg.FEATURES.PATH:
        given = steps.read_features(cfg.FEATURES.PATH, normalize=cfg.FEATURES.NORMALIZE)
        size = len(given)
    else:
        images = steps.open_images(cfg, "train")
        size = len(images)
        encoder = steps.build_encoder(cfg.MODEL, cfg.DATASET.TRANSFORM_NAME, images)
    if not 1 <= count < size:
        raise InputError(f"NUM_NEIGHBORS is {count}; choose 1 to {size - 1}, the other images")
    run = start(cfg, argv, script=__file__)

    # 1. Features of every image, in dataset order.
    if cfg.FEATURES.PATH:
        points = Points(given, run.device)
        steps.note_features(run, given)
    else:
        features = steps.image_features(run, encoder, images, batch_size=cfg.DATALOADER.BATCH_SIZE)
        points = Points(features, run.device)

    # 2. The nearest of each, after itself.
    def compute() -> list[np.ndarray]:
        found = find_neighbors(points, 1 + count, backend=cfg.KNN.BACKEND)
        return [itself_first(found.indices).numpy()]

    expected = Expected(
        "topk-train-neighbors.npy", (size, 1 + count), kind="iu", low=0, high=size - 1
    )
    with run.timed("neighbours"):
        (mined,) = run.cached([expected], {"features": run.facts["features"], "k": count}, compute)
    assert mined is not None

    # 3. How often is a neighbour of the same class?
    if not cfg.FEATURES.PATH and images.labels is not None:
        same = images.labels[mined[:, 1:]] == images.labels[:, None]
        print(f"neighbours of the same class: {100 * same.mean():.1f} %")
    if run.folder is not None:
        print(f"neighbours: {run.folder / expected.name}")
    run.finish()


if __name__ == "__main__":
    cli(main)
