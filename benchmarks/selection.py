"""How fast neighbours are found, beside libraries and beside the bare product of all pairs.

    python benchmarks/selection.py --json figures.json

Features of length 1 around 32 centres, 50 000 × 128 and × 512, K = 20 and 400, float32. Every way
is run in the same process, in a shuffled order, five times; medians, and in brackets multiples of
the bare product, which is torch's of all pairs in blocks of 2000 rows. The first call, which
compiles or loads, is not counted; it is printed. Other libraries give distances in float32 and
break ties as they like; this project's are settled in float64, and ties go to the lowest index.
--smoke: little.
"""

import argparse
import json
import logging
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points


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


def ways(rows: np.ndarray, k: int) -> dict[str, Callable[[], object]]:
    """By name, what finds the neighbours here."""
    found: dict[str, Callable[[], object]] = {
        "bare product": lambda: product(rows),
        "this project": lambda: find_neighbors(Points(rows), k, backend="compiled"),
        "this project, torch": lambda: find_neighbors(Points(rows), k, backend="torch"),
    }
    try:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        found["faiss"] = lambda: faiss.knn(rows, rows, k)
    except ImportError:
        # It is no dependency; main says how to install it.
        pass
    from sklearn.neighbors import NearestNeighbors

    found["scikit-learn"] = lambda: (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(rows)
    )
    return found


def measure(rows: np.ndarray, k: int, rounds: int) -> dict[str, float]:
    """Median seconds of each way."""
    calls = ways(rows, k)
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    for number in range(1 + rounds):
        for name in shuffled.sample(list(calls), len(calls)):
            begin = time.perf_counter()
            calls[name]()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(spent) for name, spent in times.items()}


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("usl").setLevel(logging.WARNING)
    count, rounds = (5000, 1) if arguments.smoke else (50_000, arguments.rounds)
    begin = time.perf_counter()
    find_neighbors(features(5000, 16), 5, backend="compiled")
    print(f"first call in this process: {time.perf_counter() - begin:.2f} s\n")
    figures: dict[str, dict[str, float]] = {}
    for dim in arguments.dims:
        for k in (20, 400):
            figures[f"D {dim}, K {k}"] = measure(features(count, dim), k, rounds)
    names = list(next(iter(figures.values())))
    if "faiss" not in names:
        print("faiss is not installed: pip install faiss-cpu\n")
    print(f"{count} rows, {torch.get_num_threads()} threads, {platform.processor() or 'CPU'}\n")
    print(f"| | {' | '.join(figures)} |\n|---|{'---|' * len(figures)}")
    for name in names:
        cells = [f"{f[name]:.2f} ({f[name] / f['bare product']:.2f})" for f in figures.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
