"""k-centre greedy and D² sampling: against slow forms, and where nothing is far."""

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError
from usl.selectors.farthest import farthest_picks, spread_picks, squared_distance_picks


def distances(x):
    x = np.asarray(x, dtype=np.float64)
    return ((x[:, None] - x[None]) ** 2).sum(axis=2)


@pytest.mark.parametrize("kind", ["sphere", "grid", "outlier", "duplicates"])
def test_the_farthest_image_comes_next(kind):
    x = features(kind, 60, 3)
    d2 = distances(x)
    picks = [int(((x.astype(np.float64) - x.astype(np.float64).mean(0)) ** 2).sum(1).argmin())]
    while len(picks) < 20:
        far = d2[:, picks].min(axis=1)
        far[picks] = -1
        picks.append(int(far.argmax()))
    assert farthest_picks(x, 20).tolist() == picks


def test_the_middle_then_both_ends():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.1], [9.0]])
    # Their mean is 3.02. Rows 0 and 2 are then as far from what is there; the lowest comes first.
    assert farthest_picks(x, 5).tolist() == [3, 4, 0, 2, 1]


def test_images_are_drawn_by_their_squared_distance():
    x = features("sphere", 40, 3)
    d2 = distances(x)
    for seed in range(5):
        random = np.random.RandomState(seed)
        picks = [random.randint(40)]
        while len(picks) < 12:
            weights = d2[:, picks].min(axis=1)
            u, reached = random.random_sample() * weights.sum(), 0.0
            for row in range(40):
                reached += weights[row]
                if reached > u:
                    picks.append(row)
                    break
        assert squared_distance_picks(x, 12, seed=seed).tolist() == picks
    # Of 0, 1 and 3, after 0, the last is drawn nine times as often as the other.
    line = torch.tensor([[0.0], [1.0], [3.0]])
    drawn = [squared_distance_picks(line, 2, seed=seed).tolist() for seed in range(600)]
    second = [two for one, two in drawn if one == 0]
    assert len(second) > 150 and 0.83 < second.count(2) / len(second) < 0.97


def test_of_some_that_are_drawn_the_best_is_taken():
    x = features("sphere", 40, 3)
    d2 = distances(x)
    for seed in range(5):
        random = np.random.RandomState(seed)
        picks = [random.randint(40)]
        while len(picks) < 12:
            reached = np.cumsum(d2[:, picks].min(axis=1))
            # Of 2 + ln 12.
            drawn = np.searchsorted(reached, random.random_sample(4) * reached[-1], "right")
            left = [d2[:, [*picks, row]].min(axis=1).sum() for row in drawn]
            picks.append(int(drawn[np.argmin(left)]))
        assert spread_picks(x, 12, seed=seed).tolist() == picks
    # Spread is what they are: nearer to all images than drawn ones.
    sums = [
        [d2[:, choose(x, 8, seed=seed)].min(axis=1).sum() for seed in range(20)]
        for choose in (spread_picks, squared_distance_picks)
    ]
    assert np.mean(sums[0]) < 0.9 * np.mean(sums[1])


def test_copies_come_last():
    x = np.repeat(features("sphere", 5, 3), 4, axis=0)
    for picks in (
        farthest_picks(x, 20), squared_distance_picks(x, 20, seed=1), spread_picks(x, 20, seed=1),
    ):  # fmt: skip
        assert len({index // 4 for index in picks[:5].tolist()}) == 5
        assert len(set(picks.tolist())) == 20
        rest = picks[5:].tolist()
        assert rest == sorted(rest)


def test_a_budget_out_of_range():
    for choose in (farthest_picks, lambda x, b: squared_distance_picks(x, b, seed=0)):
        with pytest.raises(InputError, match="a budget of 4 picks from 3 images; choose 1 to 3"):
            choose(torch.zeros(3, 2), 4)
