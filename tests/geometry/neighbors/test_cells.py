"""Neighbours among nearby cells: how many are missed, and that the rest is exact."""

import logging

import numpy as np
import pytest
import torch
from helpers import features

from usl.geometry.neighbors import cells
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points, squared_distances


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cells, "POINTS", 40)
    monkeypatch.setattr(cells, "SEARCHED", 4)


@pytest.mark.usefixtures("small")
def test_what_is_missed_is_measured(caplog):
    x = features("sphere", 900, 6)
    expected = find_neighbors(x, 30)
    with caplog.at_level(logging.WARNING, "usl"):
        found = find_neighbors(x, 30, backend="cells")
    pairs = zip(found.indices.tolist(), expected.indices.tolist(), strict=True)
    shares = np.array([len(set(a) & set(b)) / 30 for a, b in pairs])
    assert 0.3 < shares.mean() < 1 and found.recall == pytest.approx(shares.mean())
    assert found.margin == pytest.approx(1.96 * shares.std() / 30)
    said = f"it found {100 * shares.mean():.2f} ± {100 * found.margin:.2f} % of the neighbours"
    assert said in caplog.text
    # What it gives are exact distances to those it found, itself first.
    apart = squared_distances(torch.from_numpy(x)[:, None], torch.from_numpy(x)[found.indices])
    assert torch.equal(found.distances, apart.float())
    assert found.indices[:, 0].tolist() == list(range(900))
    assert (found.distances >= expected.distances).all()


@pytest.mark.usefixtures("small")
def test_enough_cells_are_searched_for_many_neighbours():
    x = features("sphere", 300, 6)
    expected = find_neighbors(x, 290)
    found = find_neighbors(x, 290, backend="cells")
    assert found.recall > 0.95 and found.indices.shape == expected.indices.shape
    # Of so few points all are in cells that are searched.
    few = find_neighbors(x[:60], 50, backend="cells")
    assert torch.equal(few.indices, find_neighbors(x[:60], 50).indices)
    assert few.recall == 1 and few.margin == 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["grid", "duplicates"])
def test_equal_points_are_found(kind):
    x = features(kind, 500, 3)
    expected, found = (find_neighbors(x, 9, backend=name) for name in ("torch", "cells"))
    # Equal distances are as good as each other.
    assert (found.distances >= expected.distances).all()
    assert found.recall == pytest.approx(
        float((found.distances <= expected.distances[:, -1:]).double().mean())
    )
    assert found.recall > 0.5
    for row in found.indices.tolist():
        assert len(set(row)) == 9


@pytest.mark.usefixtures("small")
def test_copies_are_found_as_their_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "TOGETHER", 5)
    x = features("sphere", 900, 6).repeat(4, axis=0)
    copied = find_neighbors(x, 120, backend="cells", shards=tmp_path / "s")
    assert 0.3 < copied.recall < 1 and copied.indices.shape == (3600, 120)
    # Every copy is found with its first, and what was searched is kept.
    assert (copied.distances[:, :4] == 0).all() and list((tmp_path / "s").glob("0*.json"))


@pytest.mark.usefixtures("small")
def test_cells_are_the_same_for_other_blocks(monkeypatch):
    x = features("sphere", 900, 6)
    one = cells.cells_of(Points(x))
    monkeypatch.setattr("usl.geometry.jit.works", lambda: False)
    other = cells.cells_of(Points(x))
    assert [m.tolist() for m in one.members] == [m.tolist() for m in other.members]
    assert torch.equal(one.centroids, other.centroids)
    # From each outwards: first its own points.
    apart = squared_distances(one.centroids, one.centroids[3]).argsort().tolist()
    _, [(rows, _, count)], _, _ = one.task(Points(x), range(3, 4), 9, None)
    assert count == len(one.members[3]) and apart[0] == 3
    assert rows.tolist() == torch.cat([one.members[cell] for cell in apart[:4]]).tolist()
    assert sorted(torch.cat(one.members).tolist()) == list(range(900))
