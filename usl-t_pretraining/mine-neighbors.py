"""Mine the nearest neighbours of every image, from which USL-T and pretraining learn.

    cd usl-t_pretraining && python mine-neighbors.py --cfg configs/fashion-mnist_neighbors.yaml

Writes RUN_DIR/topk-train-neighbors.npy, (images, 1 + NUM_NEIGHBORS), column 0 being the image
itself: by the features of MODEL, or by those of a file, FEATURES.PATH.
"""

import numpy as np

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.errors import InputError
from usl.geometry.neighbors.exact import backend_of, find_neighbors, itself_first
from usl.geometry.neighbors.search import APPROXIMATE
from usl.geometry.points import Points
from usl.run import Expected
from usl.shards import remove
from usl.stages import pool
from usl.stages.inputs import begin, encoder_of, open_images
from usl.stages.selection import image_features
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    backend_of(cfg.KNN.BACKEND)
    count, labels = cfg.NUM_NEIGHBORS, None
    if cfg.FEATURES.PATH:
        given = pool.read_features(cfg.FEATURES)
        size = len(given.features)
    else:
        if cfg.FEATURES.NORMALIZE:
            raise InputError("FEATURES.NORMALIZE is True without a FEATURES.PATH; leave it False")
        images = open_images(cfg, "train")
        size, labels = len(images), images.labels
        encoder = encoder_of(cfg, images)
    if not 1 <= count < size:
        raise InputError(f"NUM_NEIGHBORS is {count}; choose 1 to {size - 1}, the other images")
    run = begin(cfg, call)

    # 1. Features of every image, in dataset order.
    if cfg.FEATURES.PATH:
        pool.note_pool(run, given)
        features = given.features
    else:
        features = image_features(run, cfg, encoder, images)
    points = Points(features.values, run.device)

    # 2. The nearest of each, after itself.
    source = {"features": features.fingerprint, "k": count}
    if cfg.KNN.BACKEND in APPROXIMATE:
        source["backend"] = cfg.KNN.BACKEND
    shards = None if run.folder is None else run.folder / "neighbors.partial"

    def compute() -> list[np.ndarray]:
        found = find_neighbors(
            points, 1 + count, backend=cfg.KNN.BACKEND, shards=shards, source=source
        )
        return [itself_first(found.indices).numpy()]

    expected = Expected(
        "topk-train-neighbors.npy", (size, 1 + count), kind="iu", low=0, high=size - 1
    )
    with run.timed("neighbours"):
        (mined,) = run.cached([expected], source, compute)
    assert mined is not None
    if shards is not None:
        remove(shards)

    # 3. How often is a neighbour of the same class?
    if labels is not None:
        same = labels[mined[:, 1:]] == labels[:, None]
        print(f"neighbours of the same class: {100 * same.mean():.1f} %")
    if run.folder is not None:
        print(f"neighbours: {run.folder / expected.name}")
    run.finish()


if __name__ == "__main__":
    cli(main)
