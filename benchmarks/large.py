"""A selection from more images than the memory has room for.

    python benchmarks/large.py --images 10000000 --memory-gb 6

Writes made-up float16 features of 64 dimensions, in shards, on patches of 8 dimensions around
10 000 centres; runs selective_labeling/usl-features.py on them with MEMORY_GB, KNN.BACKEND cells,
K = 20, 1000 labels and 20 iterations of k-means, or with --hierarchical a label in 100 images by
USL.K_MEANS hierarchical and one round of picks. Prints the seconds of its steps, and the peaks of
its memory: of its own, and with what it maps from files, which the system takes back where it needs
the room. Given the same --folder, a run that was stopped goes on where it was, and neighbours are
those of the first. --smoke: few features.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from machine import cpu

ROOT = Path(__file__).resolve().parents[1]
DIM, CENTRES, PATCHES, WITHIN, SHARD = 64, 10_000, 50, 8, 1_000_000


def write(folder: Path, count: int) -> None:
    """Features, shard by shard; those there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.RandomState(0)
    centres = draw.randn(CENTRES, DIM).astype(np.float32)
    patches = draw.randn(PATCHES, WITHIN, DIM).astype(np.float32) / 4
    for number, start in enumerate(range(0, count, SHARD)):
        path = folder / f"{number:05}.npy"
        if path.exists():
            continue
        draws, size = np.random.default_rng(number), min(SHARD, count - start)
        which = draws.integers(CENTRES, size=size)
        rows = centres[which] + 0.02 * draws.standard_normal((size, DIM), dtype=np.float32)
        for patch in range(PATCHES):
            on = np.flatnonzero(which % PATCHES == patch)
            rows[on] += draws.standard_normal((len(on), WITHIN), dtype=np.float32) @ patches[patch]
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.save(file, rows.astype(np.float16))
        unfinished.rename(path)


def watch(pid: int, peaks: dict[str, float], done: threading.Event) -> None:
    """Keep the peaks of a process's memory, in GB."""
    names = {"RssAnon": "own", "VmRSS": "with files"}
    while not done.wait(0.5):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            name, _, rest = line.partition(":")
            if name in names:
                size = int(rest.split()[0]) / 2**20
                peaks[names[name]] = max(peaks.get(names[name], 0.0), size)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--memory-gb", type=float, default=6.0)
    parser.add_argument("--hierarchical", action="store_true")
    parser.add_argument("--folder", type=Path, help="where features and results go")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        given.images, given.memory_gb = 20_000, 0.001
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        begin, features = time.perf_counter(), folder / f"features{given.images}"
        write(features, given.images)
        print(f"{given.images} × {DIM}, {given.memory_gb:g} GB, {cpu()}")
        print(f"features written in {time.perf_counter() - begin:.0f} s", flush=True)
        labels = max(10, given.images // 100) if given.hierarchical else 1000
        run = folder / f"run{given.images}"
        options = {
            "FEATURES.PATH": features, "RUN_DIR": run, "USL.SEEDS": "[1]",
            "USL.KNN_K": 20, "KNN.BACKEND": "cells", "USL.NUM_SELECTED_SAMPLES": labels,
            "USL.K_MEANS_NITERS": 20, "MEMORY_GB": given.memory_gb, "RECOMPUTE_ALL": False,
        }  # fmt: skip
        if given.hierarchical:
            options |= {"USL.K_MEANS": "hierarchical", "USL.REG.NITERS": 1}
        script = [sys.executable, "usl-features.py", "--cfg", "configs/features_usl.yaml"]
        words = [str(word) for option in options.items() for word in option]
        process = subprocess.Popen(
            [*script, "--opts", *words], cwd=ROOT / "selective_labeling", stdout=subprocess.DEVNULL
        )
        peaks: dict[str, float] = {}
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, peaks, done), daemon=True)
        watcher.start()
        code = process.wait()
        done.set()
        if code:
            sys.exit(code)
        record = json.loads((run / "run.json").read_text())
        print("\n| step, as far as this process did it | seconds |\n|---|---|")
        for step, seconds in record["timings"].items():
            print(f"| {step} | {seconds:.1f} |")
        print("\npeak, GB: " + ", ".join(f"{name} {size:.2f}" for name, size in peaks.items()))


if __name__ == "__main__":
    main()
