"""Hierarchical k-means: shares, and what every clustering has to be."""

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError
from usl.geometry import hierarchy
from usl.geometry.coarse import coarse_clusters
from usl.geometry.hierarchy import hierarchical_kmeans, proportional
from usl.geometry.kmeans import assigned_distances, kmeans
from usl.geometry.points import Points


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ([10, 10], 5, [3, 2]),
        ([1, 98, 1], 10, [1, 8, 1]),
        ([50, 30, 20], 10, [5, 3, 2]),
        ([7, 7, 7], 21, [7, 7, 7]),
        ([1, 1, 1, 97], 4, [1, 1, 1, 1]),
        ([2, 100], 101, [2, 99]),
        ([5], 3, [3]),
    ],
)
def test_shares_are_proportional_at_least_one_and_at_most_all(sizes, total, shares):
    assert proportional(torch.tensor(sizes), total).tolist() == shares


def test_shares_add_up_whatever_the_sizes():
    draw = np.random.RandomState(0)
    for _ in range(300):
        sizes = torch.from_numpy(
            draw.randint(1, draw.choice([3, 50, 5000]), size=draw.randint(1, 40))
        )
        total = draw.randint(len(sizes), int(sizes.sum()) + 1)
        shares = proportional(sizes, total)
        assert int(shares.sum()) == total and (shares >= 1).all() and (shares <= sizes).all()
        # As near to the exact share as the bounds allow.
        exact = (sizes * (total / int(sizes.sum()))).clamp_min(1)
        assert (shares - exact).abs().max() <= max(1, int((exact <= 1).sum()))


@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates"])
@pytest.mark.parametrize("count", [1, 2, 90, 1500, 1511])
def test_all_clusters_have_members_and_centroids_are_their_means(kind, count):
    x = features(kind, 1511, 6)
    found = hierarchical_kmeans(x, count, seed=3)
    assert found.sizes.min() >= 1 and len(found.sizes) == count == len(found.centroids)
    if kind == "sphere":
        for cluster in range(0, count, 97):
            mean = torch.as_tensor(x)[found.labels == cluster].double().mean(dim=0)
            torch.testing.assert_close(found.centroids[cluster], mean)


def test_each_part_is_the_kmeans_of_its_points():
    x, count = features("sphere", 900, 5), 36
    found = hierarchical_kmeans(x, count, seed=2, iterations=7)
    points, first = Points(x), 0
    parts = coarse_clusters(points, 6, seed=2).members
    shares = proportional(torch.tensor(list(map(len, parts))), count).tolist()
    for rows, share in zip(parts, shares, strict=True):
        own = kmeans(torch.as_tensor(x)[rows], share, seed=2, iterations=7, nonempty=share)
        assert torch.equal(found.labels[rows], own.labels + first)
        assert torch.equal(found.centroids[first : first + share], own.centroids)
        first += share
    assert first == count


def test_picks_are_not_spent_on_copies():
    x = np.concatenate([np.tile(features("sphere", 1, 5), (1000, 1)), features("sphere", 999, 5)])
    found = hierarchical_kmeans(x, 100, seed=0)
    of_copies = found.labels[:1000].unique()
    assert found.sizes.min() >= 1 and len(of_copies) == 1
    # But where there is nothing else.
    assert hierarchical_kmeans(x[:1200], 400, seed=0).sizes.min() >= 1


def test_it_is_almost_as_tight_as_lloyd():
    x = features("sphere", 3000, 8)
    points = Points(x)

    def spread(found):
        return float(assigned_distances(points, found.centroids, found.labels).sum())

    lloyd = spread(kmeans(points, 100, seed=0))
    assert 0.9 * lloyd < spread(hierarchical_kmeans(points, 100, seed=0)) < 1.15 * lloyd


def test_stopped_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(hierarchy, "TOGETHER", 200)
    x, calls, whole = features("sphere", 900, 5), [], hierarchy.kmeans
    expected = hierarchical_kmeans(x, 49, seed=0)

    def counted(*given, **options):
        if len(calls) == 5:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(0)
        return whole(*given, **options)

    monkeypatch.setattr(hierarchy, "kmeans", counted)
    with pytest.raises(KeyboardInterrupt):
        hierarchical_kmeans(x, 49, seed=0, shards=tmp_path / "s")
    found = hierarchical_kmeans(x, 49, seed=0, shards=tmp_path / "s")
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.centroids, expected.centroids)
    # Seven clusters of clusters; those of finished tasks are not clustered again.
    assert 7 + 1 <= len(calls) < 7 + 6


def test_options_out_of_range():
    x = features("sphere", 50, 3)
    for options, message in (
        ({"clusters": 0}, "`clusters` is 0; choose 1 to 50, the images"),
        ({"clusters": 51}, "`clusters` is 51; choose 1 to 50"),
        ({"clusters": 5, "iterations": 0}, "`iterations` is 0; choose at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            hierarchical_kmeans(x, seed=0, **options)
