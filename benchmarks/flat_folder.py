"""Photographs in one flat folder, without labels: which classes the picks are of, and random ones.

    python benchmarks/flat_folder.py data/imagenette FOLDER --arch timm/tf_efficientnet_lite0 \
        --weights data/encoders/tf_efficientnet_lite0.pth

Links all training images of a data set in ImageNet's layout into FOLDER/photos, side by side and
under numbers in a shuffled order, so that nothing tells their classes. Lets usl-images.py choose,
and only then asks what they were: classes without a pick, and the largest share of one, beside the
mean of 1000 random draws.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def link(source: Path, folder: Path) -> list[str]:
    """Link the images under numbers; their classes, in the order of these."""
    files = sorted((source / "train").glob("*/*"))
    order = np.random.RandomState(0).permutation(len(files))
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(order):
        path = folder / f"{number:06}{files[row].suffix}"
        if not path.exists():
            os.link(files[row], path)
    return [files[row].parent.name for row in order]


def shape(classes: np.ndarray, picks: np.ndarray, count: int) -> tuple[int, float]:
    """Classes without a pick, and the share of the one with most, in percent."""
    counts = np.bincount(classes[picks], minlength=count)
    return int((counts == 0).sum()), 100 * counts.max() / len(picks)


def main() -> None:
    """Print a table of budgets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="pixels")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 20, 50, 100])
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    names, classes = np.unique(link(arguments.source, folder / "photos"), return_inverse=True)
    rows, random = [], np.random.RandomState(0)
    for budget in arguments.budgets:
        options = {
            "DATASET.ROOT_DIR": folder / "photos", "RUN_DIR": folder / "run",
            "MODEL.ARCH": arguments.arch, "USL.NUM_SELECTED_SAMPLES": budget,
            "MODEL.PRETRAIN_PATH": arguments.weights.resolve() if arguments.weights else "",
            "RECOMPUTE_ALL": False,
        }  # fmt: skip
        words = [str(word) for pair in options.items() for word in pair]
        subprocess.run(
            [sys.executable, "usl-images.py", "--cfg", "configs/images_usl.yaml", "--opts", *words],
            cwd=ROOT / "selective_labeling", check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        picks = np.load(folder / "run" / f"selected_indices_{budget}_1.npy")
        missed, largest = shape(classes, picks, len(names))
        draws = [
            shape(classes, random.choice(len(classes), budget, replace=False), len(names))
            for _ in range(1000)
        ]
        mean = np.mean(draws, axis=0)
        rows.append(
            {
                "picks": budget,
                "classes without one": missed,
                "random": f"{mean[0]:.2f}",
                "largest share, %": f"{largest:.0f}",
                "random's": f"{mean[1]:.0f}",
            }
        )
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
