"""The nearest of some points, against all their distances."""

import numpy as np
import pytest
import torch
from helpers import features

from usl.geometry import products
from usl.geometry.neighbors import among
from usl.geometry.points import Points, squared_distances
from usl.geometry.products import Float32, Int16


@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "far", "outlier", "constant"])
@pytest.mark.parametrize("product", [Float32, Int16])
@pytest.mark.parametrize("guess", [0.0, 0.5, 1.0, np.inf])
def test_they_are_exact_whatever_was_guessed(monkeypatch, kind, product, guess):
    monkeypatch.setattr(products, "products_of", product)
    monkeypatch.setattr(among, "TILES", 2)
    points = Points(features(kind, 300, 6))
    random = np.random.RandomState(0)
    others = torch.from_numpy(random.choice(300, 70, replace=False))
    wanted = torch.from_numpy(random.rand(300) < 0.6)
    ascending = others.sort().values
    exact = squared_distances(points.host[:, None], points.host[ascending])
    expected = exact.sort(dim=1, stable=True)
    distances, indices = torch.full((300, 9), -1.0).double(), torch.full((300, 9), -1)

    def use(rows, apart, whose):
        assert (indices[rows] == -1).all()
        distances[rows], indices[rows] = apart, whose

    # Between nothing and more than the truth.
    about = expected.values[:, 8] * guess if guess else torch.zeros(300).double()
    among.nearest_among(points, wanted, others, 9, about, use)
    assert torch.equal(distances[wanted], expected.values[wanted, :9])
    assert torch.equal(indices[wanted], ascending[expected.indices[wanted, :9]])
    assert (indices[~wanted] == -1).all()
