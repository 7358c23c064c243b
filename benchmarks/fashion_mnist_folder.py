"""Write Fashion-MNIST as JPEGs in ImageNet's layout, to try the ImageNet scripts on.

    python benchmarks/fashion_mnist_folder.py 5000

Writes data/fashion-mnist-folder/train and val: that many training images and a fifth as many test
images, 32×32, in one folder a class.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from usl.data.datasets import open_dataset

ROOT = Path(__file__).resolve().parents[1] / "data"


def main() -> None:
    """Write the files."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    for split, folder, images in (("train", "train", count), ("test", "val", count // 5)):
        data = open_dataset("fashion-mnist", ROOT, split)
        for index in range(min(images, len(data))):
            name = data.classes[data.labels[index]].replace("/", "-")
            path = ROOT / "fashion-mnist-folder" / folder / name / f"{index:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.pad(data.images[index, :, :, 0], 2)).save(path, quality=95)
    print(f"wrote {ROOT / 'fashion-mnist-folder'}")


if __name__ == "__main__":
    main()
