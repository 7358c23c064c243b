"""Random views of JPEGs for training: how fast, and does a busy device wait for them?

    OMP_NUM_THREADS=2 python benchmarks/views_ahead.py --folder data/imagenette

MoCo v2's crops of whole images, 224 pixels, by threads that decode: views per second of this
project, and of torchvision's ImageFolder with its own transforms and a DataLoader of as many
processes. Then the share of a training in which the device waits: for a GPU stands a device that
is busy for a fixed time a batch and leaves the CPU free. Views are prepared while it works on those
before, or made when it asks. Medians of several rounds. --smoke: few images, one round.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from features import jpegs
from timing import rates
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from usl.augment.folder_views import FolderViews, _name_of
from usl.augment.moco import MocoTransform
from usl.augment.rng import Key
from usl.data.folder import FolderDataset
from usl.encoders.preprocess import Preprocess

WORKERS = 2
SIDE = 224
SEEN = Preprocess(SIDE, 256, interpolation="bicubic")
CHAIN = T.Compose(
    [
        T.RandomResizedCrop(SIDE, scale=(0.2, 1.0)),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], p=0.5),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
    ]
)


def batches(images: FolderDataset, size: int) -> list[torch.Tensor]:
    """Rows of each batch."""
    return list(torch.arange(len(images)).split(size))


def crops(images: FolderDataset, size: int) -> None:
    """What threads make of a view, before the device colours it: decoded, cropped, resized."""
    views = FolderViews(images, SEEN, device=torch.device("cpu"), cache_bytes=0, whole=True)
    for rows in batches(images, size):
        views._ready(MocoTransform(size=SIDE), rows, Key(rows, 0))


def busy(images: FolderDataset, size: int, seconds: float, *, ahead: bool) -> float:
    """Share of the time in which a device that is busy for so long a batch waits."""
    views = FolderViews(images, SEEN, device=torch.device("cpu"), cache_bytes=0, whole=True)
    transform = MocoTransform(size=SIDE)
    all_rows = [(rows, Key(rows, 0, epoch)) for epoch in range(4) for rows in batches(images, size)]
    begin = time.perf_counter()
    for number, (rows, key) in enumerate(all_rows):
        for coming in all_rows[number : number + 1 + ahead]:
            views.prepare(transform, *coming)
        # What comes after this a GPU would do.
        views._coming.pop(_name_of(transform, rows, key)).result()
        time.sleep(seconds)
    spent = time.perf_counter() - begin
    return 1 - len(all_rows) * seconds / spent


def main() -> None:
    """Print rates, and shares of waiting."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="ROOT_DIR of a folder data set")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    count, size, rounds = (16, 4, 1) if arguments.smoke else (512, 64, 3)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {count} JPEGs of 375")
    with tempfile.TemporaryDirectory() as folder:
        images = jpegs(Path(folder), arguments.folder, count, 375)
        loader = DataLoader(ImageFolder(images.folder, CHAIN), size, num_workers=WORKERS)
        here, usual = rates(
            lambda: crops(images, size),
            lambda: list(loader),
            images=count,
            device=torch.device("cpu"),
            rounds=rounds,
        )
        print(f"views a second: here {here:.0f}, before colours; usual loop {usual:.0f}")
        for share in (1.5, 1.0, 0.5):
            seconds = share * size / here
            found = [
                sorted(busy(images, size, seconds, ahead=ahead) for _ in range(rounds))[rounds // 2]
                for ahead in (True, False)
            ]
            print(
                f"device busy {share:.1f} of the time that the views of a batch take: waits "
                f"{100 * found[0]:.0f} % with views ahead, {100 * found[1]:.0f} % without"
            )


if __name__ == "__main__":
    main()
