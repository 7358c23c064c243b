"""How fast the selection core is, beside libraries and beside the bare product of all pairs.

    python benchmarks/selection.py --json figures.json
    python benchmarks/selection.py --only neighbours --dims 512

Features of length 1 around 32 centres, 50 000 × 128 and for neighbours also × 512, float32:
neighbours for K = 20 and 400; 20 iterations of k-means for 40, 400 and 2000 clusters; picks for as
many labels; all of USL for 400 labels. Every way is run in the same process, in a shuffled order,
five times; medians of seconds, and in brackets multiples of the first way: for neighbours the bare
product of all pairs, torch's in blocks of 2000 rows. The first call, which compiles or loads, is
not counted; it is printed. Other libraries give distances in float32 and break ties as they like;
this project's are settled in float64, and ties go to the lowest index. k-means and picks begin with
points that are prepared, as they are after the neighbours; what that takes is printed. KeOps takes
minutes on a CPU: --backends compiled keops. --smoke: little.
"""

import argparse
import json
import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpu

from usl import Regularizer, select
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points
from usl.geometry.products import packed
from usl.selectors.usl import pick

ITERATIONS = 20
Ways = dict[str, Callable[[], object]]


def features(count: int, dim: int) -> np.ndarray:
    """Rows of length 1, float32."""
    draw = np.random.RandomState(0)
    rows = draw.randn(32, dim)[draw.randint(32, size=count)] + draw.randn(count, dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def product(rows: np.ndarray) -> None:
    """All pairs, multiplied and forgotten."""
    x = torch.from_numpy(rows)
    out = torch.empty(min(2000, len(x)), len(x))
    for start in range(0, len(x), len(out)):
        part = x[start : start + len(out)]
        torch.mm(part, x.T, out=out[: len(part)])


def faiss() -> Any:
    """The module, or None."""
    try:
        import faiss
    except ImportError:
        # It is no dependency; main says how to install it.
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def neighbours(rows: np.ndarray, k: int, backends: list[str]) -> Ways:
    """By name, what finds the neighbours."""
    from sklearn.neighbors import NearestNeighbors

    ways: Ways = {"bare product": lambda: product(rows)}
    for name in backends:
        ways[f"this project, {name}"] = lambda name=name: find_neighbors(
            Points(rows), k, backend=name
        )
    if library := faiss():
        ways["faiss"] = lambda: library.knn(rows, rows, k)
    ways["scikit-learn"] = lambda: (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(rows)
    )
    return ways


def clusterings(points: Points, count: int) -> Ways:
    """By name, what clusters the points from the same start in the same number of iterations."""
    from sklearn.cluster import KMeans

    rows = points.host.numpy()
    first = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    start = rows[first.numpy()]

    def by_faiss(library: Any) -> None:
        found = library.Clustering(rows.shape[1], count)
        found.niter, found.min_points_per_centroid = ITERATIONS, 1
        found.max_points_per_centroid = len(rows)
        library.copy_array_to_vector(start.ravel(), found.centroids)
        found.train(rows, library.IndexFlatL2(rows.shape[1]))

    options = {"algorithm": "lloyd", "n_init": 1, "max_iter": ITERATIONS, "tol": 0.0}
    ways: Ways = {
        "scikit-learn": lambda: KMeans(count, init=start, **options).fit(rows),
        "this project": lambda: kmeans(points, count, seed=0, iterations=ITERATIONS, quiet=True),
    }
    if library := faiss():
        ways["faiss"] = lambda: by_faiss(library)
    return ways


def selections(points: Points, density: torch.Tensor, budget: int) -> Ways:
    """By horizon, the picks."""
    labels = kmeans(points, budget, seed=0, nonempty=budget, quiet=True).labels
    ways: Ways = {}
    for horizon in ("dist", "num"):
        reg = Regularizer(horizon=horizon)
        ways[f"HORIZON {horizon}"] = lambda reg=reg: pick(points, density, labels, budget, reg)
    return ways


def cases(arguments: argparse.Namespace, count: int) -> dict[str, dict[str, Ways]]:
    """By kind and name, what is compared."""
    found: dict[str, dict[str, Ways]] = {}
    if "neighbours" in arguments.kinds:
        for dim in arguments.dims:
            rows = features(count, dim)
            for k in (20, 400):
                ways = neighbours(rows, k, arguments.backends)
                found.setdefault("neighbours", {})[f"D {dim}, K {k}"] = ways
    budgets = [b for b in (40, 400, 2000) if b < count]
    rows = features(count, 128)
    if {"k-means", "picks"} & set(arguments.kinds):
        begin = time.perf_counter()
        points = Points(rows)
        packed(points)
        print(f"points prepared in {time.perf_counter() - begin:.2f} s\n")
        density = find_neighbors(points, 20).density
        if "k-means" in arguments.kinds:
            found["k-means"] = {f"C {c}": clusterings(points, c) for c in budgets}
        if "picks" in arguments.kinds:
            found["picks"] = {f"B {b}": selections(points, density, b) for b in budgets}
    if "usl" in arguments.kinds:
        found["usl"] = {
            f"B 400, K {k}": {
                "bare product": lambda: product(rows),
                "this project": lambda k=k: select(rows, 400, k=k),
            }
            for k in (20, 400)
        }
    return found


def measure(ways: Ways, rounds: int) -> dict[str, float]:
    """Median seconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    shuffled = random.Random(0)
    for number in range(1 + rounds):
        for name in shuffled.sample(list(ways), len(ways)):
            begin = time.perf_counter()
            ways[name]()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(spent) for name, spent in times.items()}


def table(kind: str, figures: dict[str, dict[str, float]]) -> str:
    """A table in Markdown: seconds, and multiples of the first way."""
    first, *_ = names = list(next(iter(figures.values())))
    lines = [f"| {kind} | {' | '.join(figures)} |", f"|---|{'---|' * len(figures)}"]
    for name in names:
        cells = [f"{one[name]:.2f} ({one[name] / one[first]:.2f})" for one in figures.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = ["neighbours", "k-means", "picks", "usl"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, dest="kinds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--backends", nargs="+", default=["compiled", "torch"])
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("usl").setLevel(logging.ERROR)
    count, rounds = (5000, 1) if arguments.smoke else (50_000, arguments.rounds)
    begin = time.perf_counter()
    find_neighbors(features(5000, 16), 5, backend="compiled")
    print(f"first call in this process: {time.perf_counter() - begin:.2f} s\n")
    if faiss() is None:
        print("faiss is not installed: pip install faiss-cpu\n")
    print(f"{count} rows, {torch.get_num_threads()} threads, {cpu()}, medians of {rounds}\n")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind, of_kind in cases(arguments, count).items():
        results[kind] = {name: measure(ways, rounds) for name, ways in of_kind.items()}
        print(table(kind, results[kind]), end="\n\n", flush=True)
    if arguments.json:
        about = {"cpu": cpu(), "threads": torch.get_num_threads(), "rows": count, "rounds": rounds}
        arguments.json.write_text(json.dumps(about | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
