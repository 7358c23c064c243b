"""Norms of a network that trains in several processes."""

import torch
import torch.distributed as dist
from torch import nn

from usl import distributed
from usl.training.loop import Plan, fit


def norms_of_two(shared_norms):
    """Kinds of the norms of a network that trains in two processes, and what they have seen."""
    scale = nn.Conv2d(1, 2, 1, bias=False)
    network = nn.Sequential(scale, nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(8))
    wrapped = distributed.parallel(network, torch.device("cpu"), shared_norms=shared_norms)
    x = torch.arange(8.0).reshape(2, 1, 2, 2) + 100 * distributed.rank()
    wrapped(x).sum().backward()
    kinds = [type(network[row]).__name__ for row in (1, 3)]
    return kinds, (network[1].running_mean / scale.weight.flatten()).tolist()


def statistics_when_tested():
    """What each of the processes tests with, after norms that were not shared."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    x = torch.randn(16, 4)
    seen = []

    def make(wrapped):
        return lambda images, epoch, number: (wrapped(x[images]).pow(2).sum(), {})

    def evaluate(tested):
        seen.append(tested[2].running_mean.tolist())
        return {}

    plan = Plan(epochs=2, batch_size=8, lr=0.1, ema=0.5, shared_norms=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    fit(network, make, optimizer, plan, images=16, device=torch.device("cpu"), evaluate=evaluate)
    everyones = [None, None]
    dist.all_gather_object(everyones, seen)
    return everyones


def norms_together():
    """All of this, in one start of the processes."""
    return norms_of_two(True), norms_of_two(False), statistics_when_tested()
