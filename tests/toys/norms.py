"""Norms of a network that trains in several processes."""

import torch
from torch import nn

from usl import distributed


def norms_of_two(shared_norms):
    """Kinds of the norms of a network that trains in two processes, and what they have seen."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(8))
    wrapped = distributed.parallel(network, torch.device("cpu"), shared_norms=shared_norms)
    x = torch.arange(8.0).reshape(2, 1, 2, 2) + 100 * distributed.rank()
    wrapped(x).sum().backward()
    kinds = [type(network[row]).__name__ for row in (1, 3)]
    return kinds, (network[1].running_mean / network[0].weight.flatten()).tolist()
