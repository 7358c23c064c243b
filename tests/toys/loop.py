"""A toy training for the tests of the loop."""

import math

import torch
from helpers import CPU
from torch import nn

from usl.training.loop import Plan, fit


class Toy:
    """A regression that is small enough to be followed by hand."""

    def __init__(self, tmp_path=None, *, die_at=None, spoil_at=None, **plan):
        torch.manual_seed(0)
        self.network = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0, momentum=0.9)
        self.plan = Plan(**({"epochs": 3, "batch_size": 4, "lr": 0.05, "seed": 7} | plan))
        self.x = torch.randn(22, 3, generator=torch.Generator().manual_seed(1))
        self.folder, self.die_at, self.spoil_at = tmp_path, die_at, spoil_at
        self.seen, self.rates = [], []

    def make(self, network):
        def step(images, epoch, number):
            if number == self.die_at:
                raise KeyboardInterrupt
            self.seen.append(images.tolist())
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            loss = (network(self.x[images])[:, 0] - self.x[images].sum(1)).pow(2).mean()
            return loss * (math.nan if number == self.spoil_at else 1), {"half": loss / 2}

        return step

    def run(self, **options):
        return fit(
            self.network, self.make, self.optimizer, self.plan,
            images=22, device=CPU, folder=self.folder, **options,
        )  # fmt: skip

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.network.parameters()])
