"""How long every selector takes, and how much memory.

    OMP_NUM_THREADS=2 python benchmarks/selector_costs.py

100 picks from 60 000 made-up features of 512 dimensions, each selector in a process of its own,
without the density, which several share; those that need clusters or a density compute them.
Prints seconds, and the peak of memory, features and libraries included. --smoke: few features.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
from machine import cpu
from scaling import peak
from selection import features

from usl.geometry.points import Points
from usl.selectors.registry import SELECTORS, Context

BUDGET = 100


def worker(name: str, count: int, dim: int) -> None:
    """Print the figures of one selector."""
    x = features(count, dim)
    context = Context(Points(x), labels=torch.arange(count) % 10)
    # Compiled code is loaded beforehand, or made on a machine that has none yet.
    few = Points(features(5000, dim))
    SELECTORS[name](Context(few, labels=torch.arange(5000) % 10), 10, seed=0)
    begin = time.perf_counter()
    SELECTORS[name](context, BUDGET, seed=0)
    print(json.dumps([time.perf_counter() - begin, peak()]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(SELECTORS))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        name, count, dim = given.worker
        worker(name, int(count), int(dim))
        return
    count, dim = (2000, 16) if given.smoke else (60_000, 512)
    print(f"{torch.get_num_threads()} threads, {cpu()}; {BUDGET} of {count} × {dim}\n")
    print("| selector | seconds | peak, MB |\n|---|---|---|")
    for name in given.only:
        command = [sys.executable, __file__, "--worker", name, str(count), str(dim)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
        print(f"| {SELECTORS[name].title} | {seconds:.1f} | {megabytes:.0f} |", flush=True)


if __name__ == "__main__":
    main()
