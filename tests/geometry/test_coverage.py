"""The coverage curve, by hand and against a slow oracle."""

import numpy as np
import pytest
import torch
from helpers import features

from usl.geometry.coverage import coverage_curve
from usl.geometry.points import Points

LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [20.0], [30.0], [31.0]])


def curve(x, picks, radius, **options):
    return coverage_curve(Points(x), torch.tensor(picks), radius, **options)


def test_by_hand():
    # 1 covers three, 4 covers two; 5 covers itself, and 7 both of the last.
    shares, flattens = curve(LINE, [5, 4, 1], 1.0, beyond=9)
    assert shares.tolist() == [3 / 8, 5 / 8, 6 / 8, 1.0]
    # Above the line by 1/8, 1/8, 0, 0: the first of equals.
    assert flattens == 1


def test_picks_that_cover_nothing_new_count():
    shares, _ = curve(LINE, [0, 1, 2], 1.0)
    assert shares.tolist() == [3 / 8, 3 / 8, 3 / 8]


def slow(x, picks, radius, beyond):
    near = ((x[:, None].astype(float) - x) ** 2).sum(axis=2) <= radius
    covered, shares = np.zeros(len(x), bool), []
    for columns, most in ((list(picks), len(picks)), (list(range(len(x))), beyond)):
        for _ in range(most):
            gains = [(near[:, c] & ~covered).sum() for c in columns]
            if not max(gains) and len(shares) >= len(picks):
                break
            covered |= near[:, columns[int(np.argmax(gains))]]
            shares.append(covered.mean())
    return shares


@pytest.mark.parametrize("kind", ["sphere", "duplicates", "constant"])
def test_greedy_is_the_oracles(kind):
    x = features(kind, 120, 3)
    # Between two distances, so that no rounding decides.
    apart = np.unique(((x[:, None].astype(float) - x) ** 2).sum(axis=2))
    radius = float(apart[len(apart) // 20 : len(apart) // 20 + 2].mean())
    shares, flattens = curve(x, [3, 50, 7, 99], radius, beyond=20)
    assert shares.tolist() == pytest.approx(slow(x, [3, 50, 7, 99], radius, 20))
    assert 1 <= flattens <= len(shares)


def test_a_point_covers_itself_and_its_copies_at_radius_0():
    x = features("sphere", 300, 40)
    shares, _ = curve(np.concatenate([x, x]), list(range(40)), 0.0)
    assert shares.tolist() == pytest.approx([2 * b / 600 for b in range(1, 41)])


def test_a_sample_is_enough(monkeypatch):
    x = features("sphere", 3000, 8)
    whole, _ = curve(x, list(range(30)), 0.4)
    monkeypatch.setattr("usl.geometry.coverage.SAMPLE", 1000)
    part, _ = curve(x, list(range(30)), 0.4)
    assert np.abs(whole - part).max() < 0.05 and whole[-1] > 0.3
