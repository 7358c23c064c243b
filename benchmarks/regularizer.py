"""How much the published regularisers weigh beside the density, for few labels and for many.

    python benchmarks/regularizer.py features.npy [more.npy …]

Of features of length 1 and budgets of 10 to 400: the spread of the regulariser within clusters, as
a multiple of that of the density. Far below 1 the densest image of each cluster is chosen anyhow;
far above 1 density no longer counts. K is a quarter of a mean cluster.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points, as_features, unit_rows
from usl.selectors.regularizer import Regularizer
from usl.selectors.usl import pick
from usl.stages.selection import neighbors_for

PUBLISHED = {
    "CIFAR-10": Regularizer(),
    "CIFAR-100": Regularizer(weight=1.0, alpha=1.0, horizon_dist=1.0),
    "ImageNet, MoCo": Regularizer(weight=1.5, momentum=0.0, rounds=2, horizon="num"),
    "ImageNet, CLIP": Regularizer(
        weight=0.05, alpha=1.0, momentum=0.0, rounds=2,
        horizon="num", horizon_num=32, exclude_same_cluster=True,
    ),
}  # fmt: skip


def spread(values: torch.Tensor, clusters: torch.Tensor) -> float:
    """Standard deviation of values from the means of their clusters."""
    means = torch.zeros(int(clusters.max()) + 1, dtype=torch.float64)
    means.scatter_reduce_(0, clusters, values, "mean", include_self=False)
    return float((values - means[clusters]).std())


def main() -> None:
    """Print one table a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=10_000, help="of larger files every n-th row")
    arguments = parser.parse_args()
    for path in arguments.files:
        features = np.load(path)
        features = features[:: max(1, len(features) // arguments.rows)]
        points = Points(unit_rows(as_features(features)))
        rows = []
        for budget in (10, 40, 100, 400):
            k = neighbors_for(0, len(points), budget)
            density = find_neighbors(points, k).density
            clusters = kmeans(points, budget, seed=1).labels
            row: dict[str, object] = {"budget": budget, "K": k}
            for name, regularizer in PUBLISHED.items():
                scores = pick(points, density, clusters, budget, regularizer).scores
                ratio = spread(density - scores, clusters) / spread(density, clusters)
                row[name] = f"{ratio:.2f}"
            rows.append(row)
        print(f"{path}: {len(points)} rows\n{pd.DataFrame(rows).to_string(index=False)}\n")


if __name__ == "__main__":
    main()
