"""What selectors share, and what each of them takes."""

import time

import torch
from helpers import features

from usl.geometry.points import Points
from usl.selectors.registry import Context, Selector, Shared, timed


def test_things_are_computed_once_and_their_seconds_known():
    shared, calls = Shared(), []

    def compute():
        calls.append(1)
        time.sleep(0.05)
        return "found"

    assert [shared.once("a", compute), shared.once("a", compute)] == ["found", "found"]
    assert len(calls) == 1 and shared.seconds["a"] >= 0.05
    assert shared.borrowed == shared.seconds["a"]
    assert shared.once("b", lambda: 3) == 3 and shared.borrowed == shared.seconds["a"]


def test_seconds_hold_what_another_selector_has_computed():
    """Whoever comes first computes the clusters; both are said to have needed them."""
    delay, calls = 0.2, []

    def cluster(budget, seed):
        calls.append((budget, seed))
        time.sleep(delay)

    def choose(context, budget, *, seed):
        context.clusters(budget, seed)
        return torch.arange(budget)

    clustering = Selector("clustering", choose)
    plain = Selector("plain", lambda context, budget, *, seed: torch.arange(budget))
    context = Context(Points(features("sphere", 20, 3)), cluster=cluster)
    seconds = [timed(one, context, 4, seed=1)[1] for one in (clustering, plain, clustering)]
    assert calls == [(4, 1)]
    assert min(seconds[0], seconds[2]) >= delay > seconds[1]
    picks, _ = timed(plain, context, 4, seed=1)
    assert picks.tolist() == [0, 1, 2, 3]
