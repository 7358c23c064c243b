"""Why USL trails where it does, and which widths the kernels of rivals get.

    python benchmarks/development.py selective_labeling/configs/study/digits.yaml FEATURES.npy …

For each pair of a pool of compare.py and its features, which that leaves in RUN_DIR, chooses from
half of the training images, every second one, and tests on the other half, at most 5000. No test
image is read, and the seeds are apart from those of any result. Prints the accuracy of a linear
probe, a mean over pools, budgets and seeds: of several picks from several clusterings, and of
MaxHerding and RDSS with several widths. --smoke: digits by their pixels, small.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.pairs import Pairs
from usl.geometry.points import Points, unit_rows
from usl.metrics import linear_probe
from usl.selectors.by_cluster import best_clusters, central_picks
from usl.selectors.maxherding import herding_picks
from usl.selectors.rdss import rdss_picks
from usl.selectors.regularizer import Regularizer
from usl.selectors.usl import pick
from usl.stages.inputs import open_images
from usl.stages.selection import neighbors_for
from usl.stages.table import settings_of

COMPARE = str(Path(__file__).parents[1] / "selective_labeling" / "compare.py")
BUDGETS, SEEDS, TESTED = (10, 20, 40, 100), range(101, 106), 5000
KERNELS = {"MaxHerding": herding_picks, "RDSS": rdss_picks}
WIDTHS = (1, 1 / 2, 1 / 4, 1 / 7, 1 / 10, 1 / 14, 1 / 20)
# What was published for CLIP's features; that for CIFAR-10 is the default.
CLIPS = Regularizer(
    weight=0.05, alpha=1.0, momentum=0.0, rounds=2, horizon="num", horizon_num=32,
    exclude_same_cluster=True,
)  # fmt: skip


def selections(
    points: Points, densities: dict[int, torch.Tensor], budget: int, seed: int
) -> dict[tuple[str, str], torch.Tensor]:
    """Picks, by what was varied; ``densities`` by K are kept there."""
    by_budget = neighbors_for(0, len(points), budget)
    for k in {20, by_budget} - densities.keys():
        densities[k] = find_neighbors(points, k).density
    clusterings = {
        "random start": kmeans(points, budget, seed=seed, nonempty=budget, quiet=True),
        "best of eight": best_clusters(points, budget, seed=seed, nonempty=budget),
        "tightest": best_clusters(points, budget, seed=seed, nonempty=budget, spread=True),
    }
    found = {}
    for name, clusters in clusterings.items():
        found[name, "centre"] = central_picks(points, clusters)[:budget]
        for what, k, regularizer in (
            ("densest, K 20", 20, Regularizer(rounds=1)),
            ("densest, K by budget", by_budget, Regularizer(rounds=1)),
            ("USL, K 20, CIFAR-10's regulariser", 20, Regularizer()),
            ("USL, K 20, CLIP's regulariser", 20, CLIPS),
        ):
            chosen = pick(points, densities[k], clusters.labels, budget, regularizer)
            found[name, what] = chosen.indices
    if seed == SEEDS[0]:
        median = Pairs(points).median()
        for share in WIDTHS:
            for title, choose in KERNELS.items():
                found[title, f"{share:g} of the median"] = choose(
                    points, budget, squared_width=share * median
                )
    return found


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", help="a YAML of compare.py and its features, …")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    pairs = list(zip(given.pairs[::2], given.pairs[1::2], strict=True))
    if given.smoke:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pools = [("digits by their pixels", digits.data, digits.target)]
    else:
        pools = [
            (
                Path(config).stem,
                np.load(path),
                open_images(settings_of(COMPARE, config), "train").labels,
            )
            for config, path in pairs
        ]
    rows = []
    for name, values, labels in pools:
        values = unit_rows(torch.from_numpy(np.asarray(values, dtype=np.float32)), name).numpy()
        points, (known, answers) = Points(values[::2]), (labels[::2], labels[1::2])
        step = -(-len(answers) // TESTED)
        tests = values[1::2][::step], answers[::step]
        densities: dict[int, torch.Tensor] = {}
        for budget in (10, 20) if given.smoke else BUDGETS:
            for seed in SEEDS[:1] if given.smoke else SEEDS:
                for rule, picks in selections(points, densities, budget, seed).items():
                    accuracy = linear_probe(values[::2][picks], known[picks], *tests)
                    rows.append((name, *rule, budget, accuracy))
    found = pd.DataFrame(rows, columns=["pool", "rule", "picks", "budget", "accuracy"])
    for kernels in (False, True):
        shown = found[found["rule"].isin(KERNELS) == kernels]
        means = shown.groupby(["rule", "picks", "pool", "budget"], sort=False)["accuracy"].mean()
        table = means.groupby(["rule", "picks"], sort=False).mean().unstack("picks", sort=False)
        print(table.round(1).to_string(), end="\n\n")


if __name__ == "__main__":
    main()
