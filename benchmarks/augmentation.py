"""Images per second of each transform: batched on the device against image by image with PIL.

    python benchmarks/augmentation.py

MoCo v2's view, USL-T's strong view (SCAN's) and FixMatch's two. Both ways make the same views,
32×32, of made-up images; medians of several rounds in one process. --smoke: few images, one round.
"""

import argparse
import itertools

import torch
from rivals import pil_view
from timing import rates

from usl.augment.moco import MocoTransform
from usl.augment.randaugment import RandAugmentTransform, ScanTransform, WeakTransform
from usl.augment.rng import Key
from usl.augment.views import Transform

TRANSFORMS: dict[str, Transform] = {
    "moco": MocoTransform(),
    "scan": ScanTransform(fill=0.5),
    "weak": WeakTransform(),
    "randaugment": RandAugmentTransform(),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    count, rounds = (16, 1) if smoke else (512, 5)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {count} images a call")
    print("device  transform    channels  batched/s    PIL/s  ratio")
    for kind, channels, name in itertools.product(devices, (1, 3), TRANSFORMS):
        device, transform = torch.device(kind), TRANSFORMS[name]
        images = torch.randint(0, 256, (count, channels, 32, 32), dtype=torch.uint8)
        pictures = images.permute(0, 2, 3, 1).numpy()
        resident, key = images.to(device), Key(torch.arange(count, device=device), 0)

        def batched(resident=resident, key=key, transform=transform):
            return transform.apply(resident.float() / 255, transform.sample(key, (32, 32)))

        def one_by_one(pictures=pictures, key=key, transform=transform):
            return pil_view(transform, pictures, transform.sample(key.to("cpu"), (32, 32)))

        fast, slow = rates(batched, one_by_one, images=count, device=device, rounds=rounds)
        print(f"{kind:6}  {name:11}  {channels:8}  {fast:9.0f}  {slow:7.0f}  {fast / slow:5.1f}")


if __name__ == "__main__":
    main()
