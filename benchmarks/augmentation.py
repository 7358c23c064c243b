"""Images per second of each chain: batched on the device against image by image with PIL.

    python benchmarks/augmentation.py

MoCo v2's chain, USL-T's strong view (SCAN's) and FixMatch's two. Both ways make the same views,
32×32, of made-up images; medians of several rounds in one process.
"""

import itertools

import torch
from timing import rates

from usl.augment.moco import MocoChain
from usl.augment.randaugment import RandAugmentChain, ScanChain, WeakChain
from usl.augment.views import Chain

IMAGES = 512
CHAINS: dict[str, Chain] = {
    "moco": MocoChain(),
    "scan": ScanChain(fill=0.5),
    "weak": WeakChain(),
    "randaugment": RandAugmentChain(),
}


def main() -> None:
    """Print a table."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {IMAGES} images a call")
    print("device  chain        channels  batched/s    PIL/s  ratio")
    for kind, channels, (name, chain) in itertools.product(devices, (1, 3), CHAINS.items()):
        device = torch.device(kind)
        images = torch.randint(0, 256, (IMAGES, channels, 32, 32), dtype=torch.uint8)
        pictures = images.permute(0, 2, 3, 1).numpy()
        resident, rows = images.to(device), torch.arange(IMAGES, device=device)

        def batched(resident=resident, rows=rows, chain=chain):
            draws = chain.draw(rows, 32, 32, seed=0, epoch=0, view=0)
            return chain.apply(resident.float() / 255, draws)

        def one_by_one(pictures=pictures, chain=chain):
            draws = chain.draw(torch.arange(IMAGES), 32, 32, seed=0, epoch=0, view=0)
            return chain.apply_pil(pictures, draws)

        fast, slow = rates(batched, one_by_one, images=IMAGES, device=device)
        print(f"{kind:6}  {name:11}  {channels:8}  {fast:9.0f}  {slow:7.0f}  {fast / slow:5.1f}")


if __name__ == "__main__":
    main()
