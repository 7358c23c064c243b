"""A small training of USL-T."""

from itertools import chain

import numpy as np
import torch
from helpers import CPU, disturbed, preprocess
from oracles.uslt_losses import PUBLISHED, global_options

from usl.augment.randaugment import ScanTransform
from usl.augment.views import Views
from usl.data.datasets import ImageDataset
from usl.geometry.neighbors.exact import find_neighbors, itself_first
from usl.models.resnet_cifar import CifarResNet, small_resnet
from usl.models.uslt import HEADS, UsltNetwork, new_heads
from usl.training.loop import Plan, fit
from usl.training.uslt import Reassignment, UsltEvaluator, Weights, reassigning, uslt_step
from usl.training.uslt_losses import GlobalCriterion, LocalCriterion

TRANSFORM = "SCAN-cifar10"
STRONG_VIEW = ScanTransform(fill=(0.4914, 0.4822, 0.4465))


def colours(n=48, groups=4, labelled=True):
    """Images of a few plain colours with noise, in the order 0, 1, 2, 3, 0, …"""
    random = np.random.RandomState(3)
    kinds = random.randint(40, 216, (groups, 1, 1, 3))
    labels = np.arange(n) % groups
    images = kinds[labels] + random.randint(-30, 31, (n, 32, 32, 3))
    classes = tuple("abcdefgh"[:groups])
    images = images.clip(0, 255).astype(np.uint8)
    return ImageDataset("colours", "train", images, labels if labelled else None, classes)


def neighbors_of(data):
    pixels = torch.from_numpy(data.images.reshape(len(data), -1).astype(np.float32))
    return itself_first(find_neighbors(pixels, 6).indices)


class Training:
    """A small training of USL-T: the CIFAR form, or with ``imagenet`` frozen and reassigning."""

    def __init__(
        self,
        folder=None,
        *,
        imagenet=False,
        die_at=None,
        spoil_at=None,
        reassign=True,
        labelled=True,
        weights=None,
        **plan,
    ):
        self.data = colours(labelled=labelled)
        self.folder, self.die_at, self.spoil_at = folder, die_at, spoil_at
        self.imagenet, self.does_reassign = imagenet, imagenet and reassign
        torch.manual_seed(0)
        heads = new_heads(64, 5, cosine=imagenet)
        backbone = CifarResNet(**small_resnet(2, 10))
        self.network = UsltNetwork(backbone, heads, frozen=imagenet)
        seen = preprocess(self.data, TRANSFORM)
        self.views = Views(self.data, seen, device=CPU)
        setting = PUBLISHED["imagenet100" if imagenet else "cifar10"]
        threshold = 0 if imagenet else 0.25
        options = global_options(threshold, setting.reweight, setting.renormalise, setting.outside)
        self.local = LocalCriterion(
            HEADS, 5, adjustment=setting.adjustment, temperature=setting.temperature
        )
        self.whole = GlobalCriterion(HEADS, 5, options, images=48 if imagenet else 0)
        self.evaluator = UsltEvaluator(
            self.data, seen, threshold=threshold, batch_size=20, device=CPU
        )
        self.weights = weights or Weights(local=setting.scale)
        self.plan = Plan(
            **({"epochs": 3, "batch_size": 16, "lr": 1e-3, "schedule": "constant"} | plan)
        )

    def make(self, network):
        step = uslt_step(
            self.views, STRONG_VIEW, neighbors_of(self.data), self.local, self.whole, self.weights,
            seed=5,
        )  # fmt: skip
        return disturbed(step, die_at=self.die_at, spoil_at=self.spoil_at)(network)

    def run(self):
        reassignment = Reassignment(after=2, low=6, high=14)
        after = reassigning(self.network, self.whole, reassignment, seed=5)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        return fit(
            self.network, self.make, torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4),
            self.plan, images=48, device=CPU, folder=self.folder, evaluate=self.evaluator,
            after_step=after if self.does_reassign else None,
            extras={
                "criterion_local": self.local,
                "criterion_global": self.whole,
                "val_predictions": self.evaluator,
            },
        )  # fmt: skip


def outcomes():
    """Metrics, and the first of all weights and averages after an epoch, of both forms."""
    results = []
    for imagenet in (False, True):
        training = Training(imagenet=imagenet, epochs=1)
        trained = training.run()
        states = (trained.network, training.local, training.whole)
        values = chain.from_iterable(state.state_dict().items() for state in states)
        first = {name: value.double().flatten()[:50].tolist() for name, value in values}
        row = trained.metrics.drop(columns="images_per_second").iloc[-1].to_dict()
        results.append([row, first])
    return results
