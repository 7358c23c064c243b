"""What every backend of neighbours must do, whatever the features."""

import numpy as np
import pytest
import torch
from helpers import features
from oracles import selection as oracle

from usl import InputError
from usl.geometry.neighbors.exact import BACKENDS, backend_of, find_neighbors
from usl.geometry.points import Points, squared_distances


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "constant", "far", "outlier"])
def test_neighbours_are_those_of_the_oracle(name, kind):
    x = features(kind, 90, 5)
    distances, indices = oracle.neighbors(x, 12)
    for tile_bytes in (1 << 10, 1 << 26):
        found = find_neighbors(x, 12, backend=name, tile_bytes=tile_bytes)
        assert np.array_equal(found.indices.numpy(), indices)
        np.testing.assert_allclose(found.mean_distances, distances.mean(1), rtol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["sphere", "far", "outlier", "tiny"])
def test_proposals_are_within_their_error_and_leave_out_nothing_nearer(name, kind):
    points = Points(features(kind, 200, 16))
    rows = torch.arange(50, 90)
    values, candidates = BACKENDS[name](points, rows, 20, 1 << 12)
    assert values.shape == candidates.shape == (40, 20)
    lengths = points.norms.double().sqrt()
    exact = squared_distances(points.fast[rows, None], points.fast[None])
    bound = points.error * (lengths[rows, None] + lengths) ** 2
    for row in range(40):
        assert len(set(candidates[row].tolist())) == 20
        gap = (values[row].double() - exact[row, candidates[row]]).abs()
        assert (gap <= bound[row, candidates[row]]).all()
        left = torch.ones(200, dtype=torch.bool)
        left[candidates[row]] = False
        nearest = (exact[row] + bound[row])[left].min()
        assert values[row].max() <= nearest + bound[row].max()


def test_names():
    assert backend_of("auto") in BACKENDS.values()
    with pytest.raises(InputError, match="unknown `backend` 'abacus'; choose one of auto, torch"):
        backend_of("abacus")
