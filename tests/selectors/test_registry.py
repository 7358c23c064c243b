"""What every selector must do."""

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError
from usl.geometry import assignment, distances, pairs
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points
from usl.selectors import maxherding, probcover
from usl.selectors.registry import SELECTORS, Context

# How much is computed at once.
BLOCKS = [
    (assignment, "ASSIGN_ELEMENTS", 64), (assignment, "TERMS", 1000), (pairs, "SIDE", 7),
    (pairs, "SCRATCH", 12), (distances, "SHARE", 12), (maxherding, "SIDE", 16),
    (maxherding, "BATCH", 3), (probcover, "SIDE", 9),
]  # fmt: skip
# Its 300 steps take a second.
SLOW = ("activeft",)
pytestmark = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SELECTORS],
)


def context(x, *, labels=True):
    given = Points(x)
    known = torch.arange(len(x)) % 3 if labels else None
    return Context(given, find_neighbors(given, min(5, len(x))).density, labels=known)


@pytest.mark.parametrize("kind", ["sphere", "duplicates", "constant"])
@pytest.mark.parametrize("budget", [1, 7, 60])
def test_exactly_the_budget_of_distinct_picks(name, kind, budget):
    picks = SELECTORS[name](context(features(kind, 60, 4)), budget, seed=3)
    assert picks.dtype == torch.int64 and picks.shape == (budget,)
    assert len(set(picks.tolist())) == budget and picks.min() >= 0 and picks.max() < 60


def test_the_same_seed_gives_the_same_picks_whatever_the_threads(name):
    # More values than torch keeps to one thread.
    x = features("sphere", 3000, 32)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(SELECTORS[name](context(x), 9, seed=1))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["sphere", "duplicates"])
def test_the_same_seed_gives_the_same_picks_whatever_the_blocks(name, kind, monkeypatch):
    x = features(kind, 80, 4)
    first = SELECTORS[name](context(x), 9, seed=1)
    for module, constant, size in BLOCKS:
        monkeypatch.setattr(module, constant, size)
    assert torch.equal(SELECTORS[name](context(x), 9, seed=1), first)
    monkeypatch.undo()
    if kind == "sphere":
        other = SELECTORS[name](context(x), 9, seed=2)
        assert torch.equal(other, first) is not SELECTORS[name].seeded


def test_the_largest_seed(name):
    picks = SELECTORS[name](context(features("sphere", 40, 3)), 5, seed=2**32 - 1)
    assert len(set(picks.tolist())) == 5


def test_inputs_and_global_generators_are_left_alone(name):
    x = torch.from_numpy(features("sphere", 40, 3))
    before, state, other = x.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    SELECTORS[name](context(x), 5, seed=1)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], other)


def test_labels_steer_only_those_that_say_so(name):
    x, selector = features("sphere", 60, 4), SELECTORS[name]
    one = context(x)
    other = Context(one.points, one.density, labels=one.labels.flip(0))
    same = torch.equal(selector(one, 9, seed=1), selector(other, 9, seed=1))
    assert same is not selector.uses_labels
    without = context(x, labels=False)
    if selector.uses_labels:
        with pytest.raises(InputError, match="needs the labels of the whole pool; give them"):
            selector(without, 9, seed=1)
    else:
        assert torch.equal(selector(without, 9, seed=1), selector(one, 9, seed=1))


def test_a_budget_or_seed_out_of_range(name):
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=f"`seed` is {seed}; choose 0 to 4294967295"):
            SELECTORS[name](context(features("sphere", 60, 4)), 5, seed=seed)
    for budget in (0, 61):
        with pytest.raises(InputError, match=f"a budget of {budget} picks from 60 images"):
            SELECTORS[name](context(features("sphere", 60, 4)), budget, seed=0)


def test_a_context_computes_what_it_was_not_given(name):
    x = features("sphere", 60, 4)
    labels = torch.arange(60) % 3
    known = find_neighbors(x, 20).density
    lazy, whole = Context(Points(x), labels=labels), Context(Points(x), known, labels=labels)
    assert torch.equal(SELECTORS[name](lazy, 9, seed=1), SELECTORS[name](whole, 9, seed=1))
    # Once for all selectors.
    assert lazy.clusters(9, 1) is lazy.clusters(9, 1)
