"""Images per second of a pretraining step against its bare forward and backward pass.

    python benchmarks/pretraining.py

The bare pass has the same network and two views of as many images, made beforehand, and the loss
NT-Xent; the step also draws and augments the views and updates the weights. Medians, one process.
--smoke: few images, one round.
"""

import argparse

import numpy as np
import torch
from timing import rates

from usl.augment.moco import MocoTransform
from usl.augment.rng import Key
from usl.augment.views import Views
from usl.data.datasets import ImageDataset
from usl.encoders.preprocess import preprocess_named
from usl.encoders.registry import new_network
from usl.training.contrastive import nt_xent
from usl.training.pretraining import Contrast, contrastive_step


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    batch, rounds = (64, 1) if parser.parse_args().smoke else (512, 7)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {batch}")
    print("method  channels  step/s  bare/s  share")
    for cld in (False, True):
        for channels in (1, 3):
            images = np.random.RandomState(0).randint(0, 256, (batch, 32, 32, channels))
            data = ImageDataset("made up", "train", images.astype(np.uint8), None, ())
            network = new_network("SmallResNet", 16, 10, cld=cld)
            network = network.to(device, memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
            transform = MocoTransform()
            views = Views(data, preprocess_named("digits", data, side=32), device=device)
            step = contrastive_step(views, transform, Contrast(cld=cld), seed=0)(network)
            rows = torch.arange(batch, device=device)
            both = torch.cat([views(transform, rows, Key(rows, 0, view=view)) for view in (0, 1)])

            def bare(network=network, both=both):
                network.zero_grad()
                z, other = network(both).flatten(1).chunk(2)
                nt_xent(z, other, temperature=0.2).backward()

            def whole(optimizer=optimizer, step=step, rows=rows):
                optimizer.zero_grad()
                step(rows, 0, 0)[0].backward()
                optimizer.step()

            fast, full = rates(bare, whole, images=batch, device=device, rounds=rounds)
            name = "CLD" if cld else "SimCLR"
            print(f"{name:6}  {channels:8}  {full:6.0f}  {fast:6.0f}  {full / fast:5.2f}")


if __name__ == "__main__":
    main()
