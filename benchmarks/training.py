"""Images per second of a training step with batched views against PIL's, image by image.

    python benchmarks/training.py

A step of USL-T (three forward passes of 448 images, two of them of strong views) and one of
FixMatch (64 labelled images and 448 others, one forward pass of 960 views), each with the update of
the weights. Both ways share the network, in float32, and take turns in one process; medians.
--smoke: few images, one round.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from rivals import PilViews
from timing import rates
from torch import nn

from usl.augment.randaugment import RandAugmentTransform, ScanTransform, WeakTransform
from usl.augment.views import Views
from usl.data.datasets import ImageDataset
from usl.encoders.preprocess import preprocess_named
from usl.lists.read import Labelled
from usl.models.classifier import Classifier
from usl.models.resnet_cifar import CifarResNet, small_resnet
from usl.models.uslt import UsltNetwork, new_heads
from usl.models.wideresnet import WideResNet
from usl.training.fixmatch import FixMatch, FixMatchViews, fixmatch_step
from usl.training.loop import Step
from usl.training.uslt import Weights, uslt_step
from usl.training.uslt_losses import GlobalCriterion, GlobalOptions, LocalCriterion

CLUSTERS, MU = 40, 7
SMALL = small_resnet(16, 10)


def uslt(backbone: CifarResNet) -> nn.Module:
    """A network for USL-T."""
    return UsltNetwork(backbone, new_heads(backbone.dim, CLUSTERS, cosine=False))


def fixmatch(backbone: CifarResNet) -> nn.Module:
    """A network for FixMatch."""
    return Classifier(backbone, backbone.dim, 10)


Case = tuple[str, str, Callable[[], nn.Module]]
CASES: dict[str, list[Case]] = {
    "cpu": [
        ("USL-T", "SmallResNet 16/10", lambda: uslt(CifarResNet(**SMALL))),
        ("FixMatch", "SmallResNet 16/10", lambda: fixmatch(CifarResNet(**SMALL))),
        ("FixMatch", "WRN-10-1", lambda: WideResNet(10, 1)),
    ],
    "cuda": [
        ("USL-T", "ResNet-18", lambda: uslt(CifarResNet())),
        ("FixMatch", "WRN-28-2", lambda: WideResNet(28, 2)),
    ],
}


def step_of(method: str, network: nn.Module, views: Views, labelled: int) -> Step:
    """A step of the method on MU · labelled images, and for FixMatch on the labelled ones too."""
    if method == "USL-T":
        neighbors = torch.arange(len(views), device=views.device)[:, None].expand(-1, 5)
        local = LocalCriterion(3, CLUSTERS, adjustment=5.0, temperature=0.25).to(views.device)
        whole = GlobalCriterion(3, CLUSTERS, GlobalOptions()).to(views.device)
        strong = ScanTransform(fill=0.5)
        return uslt_step(views, strong, neighbors, local, whole, Weights(), seed=0)(network)
    some = Labelled("made up", torch.arange(10), torch.arange(10))
    options = FixMatch(labelled=labelled, mu=MU)
    weak, strong = WeakTransform(), RandAugmentTransform()
    batches = FixMatchViews(views, weak, strong, some, options, seed=0, steps=1)
    return fixmatch_step(batches)(network)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    labelled, rounds = (4, 1) if parser.parse_args().smoke else (64, 5)
    count = labelled * MU
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("device  method    network            channels  images  batched/s    PIL/s  ratio")
    for kind in devices:
        device = torch.device(kind)
        for (method, name, build), channels in itertools.product(CASES[kind], (1, 3)):
            pictures = np.random.RandomState(0).randint(0, 256, (count, 32, 32, channels))
            data = ImageDataset("made up", "train", pictures.astype(np.uint8), None, ())
            network = build().to(device, memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
            rows = torch.arange(count, device=device)

            def train(step, optimizer=optimizer, rows=rows):
                optimizer.zero_grad()
                step(rows, 0, 0)[0].backward()
                optimizer.step()

            both = [
                partial(train, step_of(method, network, views, labelled))
                for views in (
                    kind_of(data, preprocess_named("digits", data, side=32), device=device)
                    for kind_of in (Views, PilViews)
                )
            ]
            images = count + (labelled if method == "FixMatch" else 0)
            fast, slow = rates(*both, images=images, device=device, rounds=rounds)
            print(
                f"{kind:6}  {method:8}  {name:17}  {channels:8}  {images:6}  {fast:9.0f}  "
                f"{slow:7.0f}  {fast / slow:5.1f}"
            )


if __name__ == "__main__":
    main()
