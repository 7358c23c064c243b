"""Neighbours of nearby cells instead of exact ones: how many are missed, how fast, and what for.

    python benchmarks/cells.py --images 400000

The pool is made of Fashion-MNIST's training images, moved by up to two pixels and mirrored, in the
features of the encoder in selfsup-simclr-cld/released. Prints seconds of both searches, the recall
of the approximate one, how many picks of USL are the same, and the accuracy of a linear probe of
the picks on the test images; means over three seeds. --smoke: few images.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from usl import Regularizer
from usl.data.datasets import ImageDataset, open_dataset
from usl.encoders.registry import Request, build_encoder
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points, unit_rows
from usl.inference import extract
from usl.metrics import linear_probe
from usl.selectors.usl import pick

ROOT = Path(__file__).resolve().parents[1]
RELEASED = ROOT / "selfsup-simclr-cld" / "released" / "fashion-mnist_simclr.pth"
K, SEEDS = 20, (1, 2, 3)


def moved(images: ImageDataset, count: int) -> ImageDataset:
    """So many images: the originals, then copies that are moved and mirrored."""
    draw = np.random.RandomState(0)
    parts, labels = [images.images], [images.labels]
    while sum(map(len, parts)) < count:
        down, right = draw.randint(-2, 3, size=2)
        other = np.roll(images.images, (down, right), axis=(1, 2))
        parts.append(other[:, :, ::-1] if draw.rand() < 0.5 else other)
        labels.append(images.labels)
    pool = np.ascontiguousarray(np.concatenate(parts)[:count])
    return replace(images, images=pool, labels=np.concatenate(labels)[:count])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 40, 100])
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        given.images, given.budgets = 3000, [20]
    train, test = (open_dataset("fashion-mnist", given.data, split) for split in ("train", "test"))
    request = Request(images=train, transform="fashion-mnist", checkpoint=lambda: RELEASED)
    encoder = build_encoder("SmallResNet", request)

    def embedded(images: ImageDataset) -> np.ndarray:
        values = extract(
            encoder.network, images, preprocess=encoder.preprocess, batch_size=128, quiet=False
        )
        return unit_rows(torch.from_numpy(values)).numpy()

    pool = moved(train, given.images)
    values, tests = embedded(pool), embedded(test)
    points, found = Points(values), {}
    print(f"{len(points)} × {points.dim}, K = {K}\n")
    print(f"| | seconds | recall | probe, {given.budgets} labels |\n|---|---|---|---|")
    clusters = {
        (budget, seed): kmeans(points, budget, seed=seed, nonempty=budget, quiet=True).labels
        for budget in given.budgets
        for seed in SEEDS
    }
    for backend in ("auto", "cells"):
        begin = time.perf_counter()
        near = find_neighbors(points, K, backend=backend)
        seconds = time.perf_counter() - begin
        accuracies = []
        for budget in given.budgets:
            each = []
            for seed in SEEDS:
                labels = clusters[budget, seed]
                picks = pick(points, near.density, labels, budget, Regularizer()).indices.numpy()
                found[backend, budget, seed] = set(picks.tolist())
                each.append(linear_probe(values[picks], pool.labels[picks], tests, test.labels))
            accuracies.append(f"{np.mean(each):.1f}")
        recall = f"{100 * near.recall:.2f} ± {100 * near.margin:.2f} %"
        print(f"| {backend} | {seconds:.1f} | {recall} | {', '.join(accuracies)} |", flush=True)
    same = {
        budget: np.mean([len(found["auto", budget, s] & found["cells", budget, s]) for s in SEEDS])
        for budget in given.budgets
    }
    print("\nthe same picks: " + ", ".join(f"{s:.0f} of {budget}" for budget, s in same.items()))


if __name__ == "__main__":
    main()
