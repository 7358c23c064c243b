"""Images per second from JPEGs to features: against the network alone, and the usual loop.

    python benchmarks/features.py --folder data/imagenette

The script's way (usl.inference.extract); the network alone on images that are ready, as the script
runs it and as people usually do; torchvision's ImageFolder and a DataLoader, with as many processes
as the script has threads; and decoding alone, by threads and by processes. Medians of several
rounds in one process, taking turns. Weights are random. Without --folder JPEGs of noise are made
up; --large makes JPEGs of 375 pixels on the short side of the folder's. --smoke: few images, one
round.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import rates
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from usl.data.datasets import open_dataset
from usl.data.folder import FolderDataset
from usl.encoders.timm import timm_network
from usl.inference import at_once, extract

NAMES = ("resnet50", "tf_efficientnet_lite0", "vit_small_patch16_224")
WORKERS = 2
# Images that go through the network together, as people usually do it.
USUAL = 64


def measure(
    name: str, images: FolderDataset, device: torch.device, rounds: int
) -> dict[str, float]:
    """Images per second of each way, by its name."""
    parts = timm_network(name)
    seen, usual = parts.preprocess, parts.network.eval().to(device)
    network = copy.deepcopy(usual).to(memory_format=torch.channels_last)
    ready = seen.normalize(seen.read(images, 0, len(images))).to(device)
    ordered = ready.contiguous(memory_format=torch.channels_last)
    batch = 64
    starts = range(0, len(images), batch)

    transform = T.Compose(
        [
            T.Resize(seen.resize, T.InterpolationMode(seen.interpolation)),
            T.CenterCrop(seen.side),
            T.ToTensor(),
            T.Normalize(seen.mean, seen.std),
        ]
    )

    def loader() -> DataLoader:
        return DataLoader(ImageFolder(images.folder, transform), USUAL, num_workers=WORKERS)

    @torch.inference_mode()
    def loop() -> list[torch.Tensor]:
        return [usual(x.to(device)).cpu() for x, _ in loader()]

    @torch.inference_mode()
    def alone(network: torch.nn.Module, x: torch.Tensor, size: int) -> list[torch.Tensor]:
        return [network(some) for some in x.split(size)]

    ways = {
        "here": lambda: extract(
            network, images, preprocess=seen, batch_size=batch, device=device, quiet=True
        ),
        "network alone": lambda: alone(network, ordered, at_once(ordered)),
        "network alone, usual": lambda: alone(usual, ready, USUAL),
        "usual loop": loop,
        "decoding, threads": lambda: [
            seen.normalize(seen.read(images, start, min(start + batch, len(images))))
            for start in starts
        ],
        "decoding, processes": lambda: list(loader()),
    }
    found = rates(*ways.values(), images=len(images), device=device, rounds=rounds)
    return dict(zip(ways, found, strict=True))


def jpegs(root: Path, source: Path | None, count: int, short: int) -> FolderDataset:
    """So many JPEGs of this short side, from a folder or of noise."""
    random = np.random.RandomState(0)
    found = [] if source is None else sorted((source / "train").rglob("*.JPEG"))
    (root / "train" / "a").mkdir(parents=True)
    for number in range(count):
        if found:
            picture = Image.open(found[number * len(found) // count]).convert("RGB")
        else:
            noise = random.randint(0, 256, (24, 32, 3)).astype(np.uint8)
            picture = Image.fromarray(noise)
        low = min(picture.size)
        size = [round(side * short / low) for side in picture.size]
        picture.resize(size, Image.Resampling.BICUBIC).save(
            root / "train" / "a" / f"{number:05}.jpg", quality=90
        )
    return open_dataset("imagenet", root, workers=WORKERS)


def main() -> None:
    """Print a table for every network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="ROOT_DIR of a folder data set")
    parser.add_argument("--large", action="store_true", help="375 pixels instead of 160")
    parser.add_argument("--network", nargs="*", default=NAMES, help="names of timm")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    count, rounds = (6, 1) if arguments.smoke else (256, 3)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = ("test_resnet",) if arguments.smoke else arguments.network
    short = 375 if arguments.large else 160
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, {count} JPEGs")
    with tempfile.TemporaryDirectory() as folder:
        images = jpegs(Path(folder), arguments.folder, count, short)
        for name in names:
            found = measure(name, images, device, rounds)
            print(f"{name}, short side {short}: images per second, and of this project's")
            for way, rate in found.items():
                print(f"  {way:22} {rate:8.1f}  {found['here'] / rate:5.2f}")


if __name__ == "__main__":
    main()
