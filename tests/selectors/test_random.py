"""The published random lists, bit for bit."""

import json

import pytest
from helpers import FACTS

from usl.selectors.random import random_picks

LISTS = json.loads((FACTS / "published_random.json").read_text())


@pytest.mark.parametrize(
    ("name", "seed", "budget"),
    [
        ("cifar10_seed1", 1, 40),
        ("cifar10_seed2", 2, 40),
        ("cifar10_seed5", 5, 40),
        ("cifar100_seed5", 5, 400),
    ],
)
def test_random_picks_equal_the_published_lists(name, seed, budget):
    assert random_picks(50000, budget, seed=seed).tolist() == LISTS[name]
