"""k-medoids of a kernel and hierarchical k-means: against slow forms, and by hand."""

import numpy as np
import pytest
import torch
from helpers import features
from oracles import rivals

from usl import InputError
from usl.geometry import pairs as pairs_module
from usl.selectors import hierarchical
from usl.selectors.farthest import squared_distance_picks
from usl.selectors.hierarchical import hierarchical_picks, level_sizes, shares
from usl.selectors.maxherding import herding_picks
from usl.selectors.medoids import medoid_picks

KINDS = ["sphere", "grid", "duplicates", "constant", "outlier"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 6, 15, 60])
def test_k_medoids_alternates_between_groups_and_medoids(kind, budget):
    x = features(kind, 60, 3)
    for seed in range(3):
        expected, coverage = rivals.medoids(x, budget, seed=seed, squared_width=1.0)
        assert medoid_picks(x, budget, seed=seed, squared_width=1.0).tolist() == expected
        assert (np.diff(coverage) >= -1e-9).all()


def test_k_medoids_by_hand():
    # Two groups on a line. Whatever the start in each, the middle of the three covers most.
    x = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    for seed in range(8):
        assert sorted(medoid_picks(x, 2, seed=seed, squared_width=1.0).tolist()) == [1, 4]
    # Of two that cover each other alike the first is taken, and copies are in its place as good.
    assert medoid_picks(np.array([[0.0], [1.0]]), 1, seed=0, squared_width=1.0).tolist() == [0]
    copies = medoid_picks(np.array([[3.0], [3.0], [3.0], [9.0]]), 3, seed=1, squared_width=1.0)
    assert len(copies.unique()) == 3 and 3 in copies


def test_k_medoids_covers_evenly_spaced_images_of_many(monkeypatch):
    monkeypatch.setattr("usl.geometry.pairs.REFERENCES", 30)
    x = features("sphere", 100, 4)
    for budget in (5, 12, 60):
        expected, _ = rivals.medoids(x, budget, seed=2, squared_width=1.0, step=3)
        assert medoid_picks(x, budget, seed=2, squared_width=1.0).tolist() == expected


def test_k_medoids_begins_with_draws_and_covers_better_than_they_do():
    x = features("sphere", 200, 4)
    start = squared_distance_picks(x, 10, seed=4)
    assert torch.equal(medoid_picks(x, 10, seed=4, rounds=0), start)
    kernel = np.exp(-rivals.distances(x, x) / 0.2)

    def coverage(picks):
        return kernel[:, picks].max(1).sum()

    found = coverage(medoid_picks(x, 10, seed=4, squared_width=0.1))
    assert found > coverage(start)
    assert found > 0.95 * coverage(herding_picks(x, 10, squared_width=0.1))


def test_blocks_change_no_medoid(monkeypatch):
    x = features("grid", 300, 3)
    expected = medoid_picks(x, 20, seed=0).tolist()
    monkeypatch.setattr("usl.selectors.maxherding.SIDE", 16)
    monkeypatch.setattr(pairs_module, "SIDE", 7)
    assert medoid_picks(x, 20, seed=0).tolist() == expected


@pytest.mark.parametrize("kind", ["sphere", "outlier", "far"])
@pytest.mark.parametrize("budget", [1, 7, 30, 150])
def test_hierarchical_picks_come_from_clusters_of_clusters(kind, budget):
    x = features(kind, 150, 3)
    sizes = rivals.levels(150, budget)
    assert level_sizes(150, budget) == sizes
    for seed in range(2):
        expected = rivals.hierarchical(x, budget, seed=seed, sizes=sizes)
        assert hierarchical_picks(x, budget, seed=seed).tolist() == expected


@pytest.mark.parametrize(("large", "references"), [(10, 8192), (1000, 8192), (10, 100)])
def test_three_levels_and_a_lowest_without_resampling(large, references, monkeypatch):
    """Also where starts are drawn from evenly spaced images."""
    monkeypatch.setattr(pairs_module, "REFERENCES", references)
    monkeypatch.setattr(hierarchical, "MOST", 4)
    monkeypatch.setattr(hierarchical, "IMAGES", 5)
    monkeypatch.setattr(hierarchical, "LARGE", large)
    x = features("sphere", 300, 4)
    assert level_sizes(300, 5) == [60, 17, 5]
    settings = {"large": large, "references": references}
    expected = rivals.hierarchical(x, 5, seed=3, sizes=[60, 17, 5], **settings)
    assert hierarchical_picks(x, 5, seed=3).tolist() == expected


def test_hierarchical_by_hand():
    # Sixteen images in four groups, of which one has most; as many picks from each.
    groups = [(0, 10), (100, 2), (200, 2), (300, 2)]
    x = np.array([[middle + 0.01 * i] for middle, size in groups for i in range(size)])
    assert level_sizes(16, 4) == [4, 1]
    picks = hierarchical_picks(x, 4, seed=0).tolist()
    assert sorted(np.digitize(x[picks, 0], [50, 150, 250])) == [0, 1, 2, 3]
    # Of the large group one of the two in the middle.
    assert {4, 5} & set(picks)


def test_the_sizes_of_levels():
    assert level_sizes(60_000, 100) == [810, 100]
    assert level_sizes(60_000, 400) == [1600, 400]
    assert level_sizes(60_000, 10) == [810, 90, 10]
    assert level_sizes(1437, 40) == [160, 40]
    assert level_sizes(1, 1) == [1, 1]


def test_shares_are_even_as_far_as_there_is_room():
    assert shares(torch.tensor([5, 1, 9, 0, 3]), 11).tolist() == [4, 1, 3, 0, 3]
    assert shares(torch.tensor([2, 2]), 4).tolist() == [2, 2]
    assert shares(torch.tensor([7, 7, 7]), 2).tolist() == [1, 1, 0]


@pytest.mark.parametrize("choose", [medoid_picks, hierarchical_picks])
def test_what_cannot_be_chosen(choose):
    with pytest.raises(InputError, match="a budget of 4 picks from 3 images; choose 1 to 3"):
        choose(torch.zeros(3, 2), 4, seed=0)
    with pytest.raises(InputError, match=r"NaN or infinite values in 1 of 2 rows \(1\)"):
        choose(np.array([[0.0], [np.nan]]), 1, seed=0)
