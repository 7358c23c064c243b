"""Nearest neighbours against a slow float64 oracle."""

import numpy as np
import torch
from helpers import features
from oracles import selection as oracle

from usl.geometry.neighbors import torch as torch_backend
from usl.geometry.neighbors.exact import find_neighbors, itself_first


def test_neighbours_equal_the_oracle_through_every_tile(monkeypatch):
    monkeypatch.setattr(torch_backend, "TILE_COLUMNS", 50)
    for kind in ("sphere", "grid", "duplicates"):
        x = features(kind, 230, 5)
        d, indices = oracle.neighbors(x, 21)
        found = find_neighbors(x, 21, backend="torch", memory=1 << 12)
        assert found.indices.tolist() == indices.tolist()
        np.testing.assert_array_equal(found.distances.numpy(), d.astype(np.float32))


def test_equal_vectors_keep_the_lowest_index_as_neighbour():
    x = torch.zeros(50, 3)
    x[49] = 1.0
    found = find_neighbors(x, 4)
    assert found.indices[:49].tolist() == [[0, 1, 2, 3]] * 49
    assert found.indices[49].tolist() == [49, 0, 1, 2]


def test_every_image_is_its_own_first_neighbour():
    indices = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 3], [2, 0, 3]])
    expected = [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 2, 0]]
    assert itself_first(indices).tolist() == expected
    # Ten copies of one point and some others: among the five nearest by index a copy may lack
    # itself.
    points = torch.cat([torch.zeros(10, 3), torch.randn(6, 3).add(5)])
    found = itself_first(find_neighbors(points, 5).indices)
    assert found[:, 0].tolist() == list(range(16))
    assert all(len(set(row)) == 5 for row in found.tolist())
    assert (found[:10] < 10).all()
