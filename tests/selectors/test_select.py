"""Choosing by name, in one call, and which images each pick stands for."""

import numpy as np
import pytest
import torch
from helpers import features

import usl
from usl import InputError
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points
from usl.selectors.registry import SELECTORS, Context, chosen_by
from usl.selectors.regularizer import Regularizer

OTHERS = [name for name, selector in SELECTORS.items() if not selector.uses_labels]


@pytest.mark.parametrize("name", OTHERS)
def test_every_selector_by_name(name):
    x = features("sphere", 90, 5)
    found = usl.select(x, 8, seed=3, k=10, selector=name)
    assert len(set(found.picks.tolist())) == 8
    if name == "usl":
        return
    expected = SELECTORS[name](Context(Points(x), found.density), 8, seed=3)
    assert torch.equal(found.picks, expected)
    distances = np.square(x[:, None].astype(np.float64) - x[found.picks][None]).sum(axis=2)
    assert found.clusters.tolist() == distances.argmin(axis=1).tolist()
    assert torch.equal(found.scores, found.density)


def test_fewer_images_than_the_papers_neighbours():
    x = features("sphere", 60, 4)
    for name in ("usl", "rdss"):
        one, two = usl.select(x, 5, selector=name), usl.select(x, 5, k=60, selector=name)
        assert torch.equal(one.density, two.density) and torch.equal(one.picks, two.picks)
    x = features("sphere", 500, 4)
    assert torch.equal(usl.select(x, 5).density, usl.select(x, 5, k=400).density)


def test_of_copies_every_pick_stands_for_itself():
    x = np.repeat(features("sphere", 3, 4), 3, axis=0)
    clusters, picks = chosen_by(SELECTORS["k-centre"], Context(Points(x)), 9, seed=0)
    assert clusters.labels[picks.indices].tolist() == list(range(9))
    assert clusters.sizes.tolist() == [1] * 9


def test_usl_on_other_clusters_takes_a_regularizer():
    x, strong = features("sphere", 90, 5), Regularizer(weight=50.0, horizon="num")
    found = [
        usl.select(x, 8, seed=3, k=10, selector="usl-tightest", regularizer=one).picks.tolist()
        for one in (None, strong)
    ]
    context = Context(Points(x), find_neighbors(x, 10).density, regularizer=strong)
    assert found[1] == SELECTORS["usl-tightest"](context, 8, seed=3).tolist() != found[0]


@pytest.mark.parametrize(
    "selector", ["kmeans-centres", "kmeans-plusplus", "kmeans-best", "tightest"]
)
def test_the_limit_of_k_means_reaches_other_selectors(selector):
    x = features("sphere", 200, 5)
    one, whole = (
        usl.select(x, 30, seed=3, k=10, selector=selector, iterations=limit).picks
        for limit in (1, 200)
    )
    context = Context(Points(x), find_neighbors(x, 10).density, iterations=1)
    assert torch.equal(one, SELECTORS[selector](context, 30, seed=3)) and not torch.equal(
        one, whole
    )


def test_what_other_selectors_do_not_take():
    x = features("sphere", 30, 4)
    with pytest.raises(
        InputError, match="MaxHerding takes no labels and no `clusters`; leave them"
    ):
        usl.select(x, 5, k=5, selector="maxherding", labelled=[3])
    with pytest.raises(InputError, match="unknown `selector` 'best'; choose some of random, strat"):
        usl.select(x, 5, k=5, selector="best")
    with pytest.raises(InputError, match="`selector` stratified needs the labels of the whole poo"):
        usl.select(x, 5, k=5, selector="stratified")


@pytest.mark.parametrize(
    "options",
    [
        {"selector": "best"}, {"selector": "stratified"}, {"seed": -1}, {"seed": 2**64},
        {"selector": "rdss", "clusters": 9}, {"budget": 91},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_said_before_neighbours_are_searched(options, monkeypatch):
    monkeypatch.setattr("usl.selectors.select.find_neighbors", None)
    with pytest.raises(InputError):
        usl.select(features("sphere", 90, 5), **{"budget": 5} | options)
