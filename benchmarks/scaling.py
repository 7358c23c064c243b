"""How the time and the memory of a selection grow with the number of images.

    python benchmarks/scaling.py --plot scaling.png --json scaling.json
    python benchmarks/scaling.py --images 200000 --engine ray --nodes 1 2
    python benchmarks/scaling.py --images 200000 --plan

For 10 000 to 400 000 made-up features of 128 dimensions, mapped from a file, in a process of its
own each: neighbours for K = 20, k-means for one cluster in 400 images, in 20 iterations, and the
picks. Prints seconds, the peak of memory beyond that of a process that has loaded everything, and
the exponent that fits best: 1 is proportional to N, 2 to its square. --smoke: few features.

With --engine ray the tasks run on nodes of a Ray cluster on this machine, which share its cores;
the memory is that of the process that hands them out. Prints the sum of the picks, too, which is
that of --engine local. --backend cells: neighbours of nearby cells.

--plan: what a million to a hundred million images would cost on machines that can be rented, from
what the most --images cost here, and 3 seconds each of decoding and of a network (--arch of timm,
with made-up weights), on this CPU.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpu
from plan import Costs, embedding_costs, others, show
from selection import features

from usl import Regularizer
from usl.engines.local import LOCAL, Local
from usl.engines.registry import engine_named
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points
from usl.selectors.usl import pick

DIM, K, IMAGES_A_LABEL, ITERATIONS = 128, 20, 400, 20
PARTS = ("neighbours", "k-means", "picks")
STORE = 2 << 30
COUNTS = [10_000, 25_000, 50_000, 100_000, 200_000, 400_000]


def peak() -> float:
    """Megabytes this process has had at most."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def select(rows: np.ndarray, engine: Local, backend: str) -> tuple[list[float], int]:
    """Seconds of the parts of a selection, and the sum of its picks."""
    budget = max(2, len(rows) // IMAGES_A_LABEL)
    clock = [time.perf_counter()]
    points = Points(rows, engine=engine)
    density = find_neighbors(points, K, backend=backend).density
    clock.append(time.perf_counter())
    options = {"iterations": ITERATIONS, "nonempty": budget, "quiet": True}
    labels = kmeans(points, budget, seed=0, **options).labels
    clock.append(time.perf_counter())
    picks = pick(points, density, labels, budget, Regularizer()).indices
    clock.append(time.perf_counter())
    return [float(step) for step in np.diff(clock)], int(picks.sum())


def make(count: int, path: Path) -> None:
    """Write features."""
    np.save(path, features(count, DIM))


def worker(path: str, nodes: int, backend: str) -> None:
    """Print the figures of one file, on so many nodes; 0: in this process."""
    engine = LOCAL if nodes == 0 else cluster(nodes)
    select(features(5000, DIM), engine, "auto")
    before = peak()
    rows = np.load(path, mmap_mode="r")
    seconds, picks = select(rows, engine, backend)
    print(json.dumps({"seconds": seconds, "megabytes": peak() - before, "picks": picks}))


def cluster(nodes: int) -> Local:
    """Nodes on this machine, each with its share of the cores."""
    from ray.cluster_utils import Cluster

    cores = max(1, (os.cpu_count() or 1) // nodes)
    # By default 150 MB: what does not fit goes to disk and back.
    node = {"num_cpus": cores, "object_store_memory": STORE}
    options = node | {"include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=options)
    for _ in range(nodes - 1):
        started.add_node(**node)
    engine = engine_named("ray", started.address)
    # A task for each node starts its worker.
    list(engine.map(abs, [(1,)] * 4 * nodes))
    return engine


def exponent(counts: list[int], values: list[float]) -> float:
    """Of the power of N that fits best."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def plot(counts: list[int], seconds: np.ndarray, megabytes: list[float], path: Path) -> None:
    """Both against N, on logarithmic axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, values in zip((*PARTS, "all"), [*seconds.T, seconds.sum(axis=1)], strict=True):
        left.loglog(counts, values, "o-", label=f"{name}, N^{exponent(counts, list(values)):.2f}")
    left.set(xlabel="images", ylabel="seconds")
    left.legend()
    given = [count * DIM * 4 / 2**20 for count in counts]
    right.loglog(counts, megabytes, "o-", label="peak beyond the start")
    right.loglog(counts, given, "--", label="the features")
    right.set(xlabel="images", ylabel="MB")
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print a table; plot it, and write it as JSON, where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.nodes[0], given.backend)
        return
    print(f"{torch.get_num_threads()} threads, {cpu()}\n")
    if given.plot and len(given.images) < 2:
        parser.error("a plot needs two numbers of --images, or more")
    if given.plan and (given.plot or given.json or given.engine != "local"):
        parser.error("--plan goes with --images and --arch only")
    if given.plan:
        plan(given, 5000 if given.smoke else max(given.images))
        return
    figures: dict[str, object] = {"cpu": cpu()}
    for nodes in given.nodes if given.engine == "ray" else [0]:
        where = f"{nodes} nodes" if nodes else "this process"
        print(f"{where}\n")
        counts = [2000, 5000] if given.smoke else given.images
        figures[where] = measure(given, counts, nodes, given.backend)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def plan(given: argparse.Namespace, images: int) -> None:
    """Print what many images would cost."""
    vcpus, labels = torch.get_num_threads(), max(2, images // IMAGES_A_LABEL)
    found = {name: measure(given, [images], 0, name)["seconds"][0] for name in ("auto", "cells")}
    _, clusters, chosen = found["auto"]
    near = {name: seconds[0] for name, seconds in found.items()}
    decode, encode, dim = embedding_costs(given.arch)
    costs = Costs(
        decode,
        encode,
        {name: vcpus * near[name] / (images * others(images, name) * DIM) for name in near},
        vcpus * clusters / (images * labels * ITERATIONS * DIM),
        vcpus * chosen / (images * labels * Regularizer().rounds * DIM),
    )
    show(costs, dim, 1000, ITERATIONS, Regularizer().rounds)


def measure(
    given: argparse.Namespace, counts: list[int], nodes: int, backend: str
) -> dict[str, Any]:
    """Print a table for so many nodes; 0: this process. Its figures."""
    titles = (*PARTS, "all, s", "peak, MB", "features, MB", "sum of the picks")
    print(f"| images | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}")
    seconds, megabytes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / "features.npy"
            # In a process of its own: what this one takes would count for those it starts.
            maker = multiprocessing.get_context("spawn").Process(target=make, args=(count, path))
            maker.start()
            maker.join()
            words = [sys.executable, __file__, "--worker", str(path), "--nodes", str(nodes)]
            words += ["--backend", backend]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds.append(found["seconds"])
            megabytes.append(found["megabytes"])
            cells = [f"{s:.2f}" for s in (*found["seconds"], sum(found["seconds"]))]
            sizes = f"{found['megabytes']:.0f} | {count * DIM * 4 / 2**20:.0f}"
            print(f"| {count} | {' | '.join(cells)} | {sizes} | {found['picks']} |", flush=True)
    table = np.array(seconds)
    if len(counts) > 1:
        columns = [*table.T, table.sum(axis=1), np.maximum(megabytes, 1e-3)]
        fitted = [f"N^{exponent(counts, list(column)):.2f}" for column in columns]
        print(f"| fitted | {' | '.join(fitted)} | N^1 | |\n")
    if given.plot:
        plot(counts, table, megabytes, given.plot.with_stem(f"{given.plot.stem}{nodes or ''}"))
    return {"images": counts, "seconds": seconds, "megabytes": megabytes}


if __name__ == "__main__":
    main()
