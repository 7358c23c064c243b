"""Hierarchical k-means instead of Lloyd's: how much wider clusters are, and how much faster.

    python benchmarks/hierarchy.py

Fashion-MNIST's training images in the features of the encoder in selfsup-simclr-cld/released. For
each number of clusters: seconds of both, the mean squared distance to the centroids of the
hierarchical one in shares of Lloyd's, and the accuracy of a linear probe of the centremost images
of both on the test images. --smoke: few images.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from usl.data.datasets import open_dataset
from usl.encoders.registry import Request, build_encoder
from usl.geometry.hierarchy import hierarchical_kmeans
from usl.geometry.kmeans import assigned_distances, kmeans
from usl.geometry.points import Points, unit_rows
from usl.inference import extract
from usl.metrics import linear_probe
from usl.selectors.by_cluster import central_picks

ROOT = Path(__file__).resolve().parents[1]
RELEASED = ROOT / "selfsup-simclr-cld" / "released" / "fashion-mnist_simclr.pth"
ITERATIONS = 200


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--clusters", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    train, test = (open_dataset("fashion-mnist", given.data, split) for split in ("train", "test"))
    if given.smoke:
        train, test, given.clusters = train.part(0, 3000), test.part(0, 500), [50]
    request = Request(images=train, transform="fashion-mnist", checkpoint=lambda: RELEASED)
    encoder = build_encoder("SmallResNet", request)

    def embedded(images) -> np.ndarray:
        values = extract(encoder.network, images, preprocess=encoder.preprocess, batch_size=128)
        return unit_rows(torch.from_numpy(values)).numpy()

    values, tests = embedded(train), embedded(test)
    points = Points(values)
    # Packed once, for both.
    kmeans(points, 1, seed=0, iterations=1, quiet=True)
    print("| clusters | Lloyd, s | hierarchical, s | width | Lloyd, % | hierarchical, % |")
    print("|---|---|---|---|---|---|")
    for count in given.clusters:
        seconds, width, accuracy = [], [], []
        for cluster in (kmeans, hierarchical_kmeans):
            options = {"nonempty": count} if cluster is kmeans else {}
            begin = time.perf_counter()
            found = cluster(points, count, seed=0, iterations=ITERATIONS, **options)
            seconds.append(time.perf_counter() - begin)
            width.append(float(assigned_distances(points, found.centroids, found.labels).mean()))
            picks = central_picks(points, found).numpy()
            accuracy.append(linear_probe(values[picks], train.labels[picks], tests, test.labels))
        cells = [f"{s:.1f}" for s in seconds] + [f"{width[1] / width[0]:.3f}"]
        print(f"| {count} | {' | '.join(cells)} | {' | '.join(f'{a:.1f}' for a in accuracy)} |")


if __name__ == "__main__":
    main()
