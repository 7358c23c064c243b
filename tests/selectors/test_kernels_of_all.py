"""MaxHerding, RDSS and ProbCover: against slow forms from the papers and scikit-activeml's."""

import numpy as np
import pytest
import torch
from helpers import features
from skactiveml.pool import MaxHerding, ProbCover
from skactiveml.utils import MISSING_LABEL

from usl import InputError
from usl.geometry import pairs as pairs_module
from usl.geometry.kmeans import kmeans
from usl.geometry.pairs import Gaussian, Pairs
from usl.geometry.points import Points, squared_distances
from usl.selectors.maxherding import herding_picks
from usl.selectors.probcover import cover_picks, pure_radius
from usl.selectors.rdss import rdss_picks
from usl.selectors.registry import SELECTORS, Context

KINDS = ["sphere", "grid", "duplicates", "constant", "outlier"]


def distances(x):
    x = np.asarray(x, dtype=np.float64)
    return ((x[:, None] - x[None]) ** 2).sum(axis=2)


def first_best(scores, picks, tolerance=1e-10):
    """The best of those that are no picks; the lowest of the equally good."""
    scores = scores.copy()
    scores[picks] = -np.inf
    return int(np.flatnonzero(scores >= scores.max() - tolerance)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 15, 60])
def test_rdss_is_the_papers_rule(kind, budget):
    x = features(kind, 60, 3)
    kernel = np.exp(-distances(x) / 2)
    mean, near, picks = kernel.mean(axis=1), np.zeros(60), []
    for number in range(1, budget + 1):
        alpha = 1 - 1 / np.sqrt(budget) if picks else 1.0
        picks.append(first_best(alpha * mean - near, picks))
        near = near * (1 - 1 / number) + kernel[picks[-1]] / number
    assert rdss_picks(x, budget, squared_width=1.0).tolist() == picks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 15, 60])
def test_maxherding_is_the_papers_rule(kind, budget):
    x = features(kind, 60, 3)
    kernel = np.exp(-distances(x) / 2)
    covered, picks = np.zeros(60), []
    for _ in range(budget):
        picks.append(first_best(np.maximum(kernel - covered, 0).sum(axis=1), picks))
        covered = np.maximum(covered, kernel[picks[-1]])
    assert herding_picks(x, budget, squared_width=1.0).tolist() == picks


def test_maxherding_is_scikit_activemls():
    x = features("sphere", 300, 5).astype(np.float64)
    theirs = MaxHerding(normalize_samples=False, metric_dict={"gamma": 2.0}, random_state=0)
    expected = theirs.query(x, np.full(300, MISSING_LABEL), batch_size=25)
    assert herding_picks(x, 25, squared_width=0.25).tolist() == expected.tolist()


def test_of_many_images_evenly_spaced_ones_are_to_be_covered(monkeypatch):
    monkeypatch.setattr(pairs_module, "REFERENCES", 30)
    x = features("sphere", 100, 4)
    kernel = np.exp(-distances(x)[:, ::3] / 2)
    covered, picks = np.zeros(34), []
    for _ in range(12):
        picks.append(first_best(np.maximum(kernel - covered, 0).sum(axis=1), picks))
        covered = np.maximum(covered, kernel[picks[-1]])
    assert herding_picks(x, 12, squared_width=1.0).tolist() == picks


def test_lazy_evaluation_changes_nothing(monkeypatch):
    x = features("sphere", 200, 4)
    expected = herding_picks(x, 30).tolist()
    monkeypatch.setattr("usl.selectors.maxherding.BATCH", 3)
    monkeypatch.setattr("usl.selectors.maxherding.SIDE", 16)
    monkeypatch.setattr(pairs_module, "SIDE", 7)
    assert herding_picks(x, 30).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("budget", "step"), [(1, 1), (12, 1), (60, 1), (20, 3)])
def test_probcover_is_the_papers_rule(kind, budget, step, monkeypatch):
    """Also where every third image is to be covered only."""
    monkeypatch.setattr(pairs_module, "REFERENCES", 60 // step)
    x = features(kind, 60, 3)
    radius = 1.0 if kind == "grid" else 0.4
    within = (distances(x) < radius)[:, ::step]
    covered, picks = np.zeros(60 // step, bool), []
    for _ in range(budget):
        counts = (within & ~covered).sum(axis=1)
        counts[picks] = -1
        if counts.max() == 0:
            covered[:] = False
            counts = within.sum(axis=1)
            counts[picks] = -1
        picks.append(int(counts.argmax()))
        covered |= within[picks[-1]]
    assert cover_picks(x, budget, radius).tolist() == picks


def test_probcover_is_scikit_activemls():
    x = features("sphere", 300, 5).astype(np.float64)
    theirs = ProbCover(n_classes=3, deltas=[0.5], random_state=0)
    expected = theirs.query(x, np.full(300, MISSING_LABEL), batch_size=15)
    ours = cover_picks(x, 15, 0.25)
    # Equal counts they decide at random: as many are covered by each number of picks.
    within = distances(x) < 0.25
    covered = [
        [within[list(p)[:n]].any(axis=0).sum() for n in range(1, 16)] for p in (ours, expected)
    ]
    np.testing.assert_allclose(*covered, rtol=0.05)


@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates"])
def test_the_radius_at_which_most_balls_are_pure(kind, monkeypatch):
    x = features(kind, 100, 3)
    labels = torch.from_numpy((x[:, 0] > np.median(x[:, 0])).astype(np.int64))
    other = np.where(labels[:, None] == labels[None], np.inf, distances(x)).min(axis=1)
    found = pure_radius(x, labels)
    assert found == pytest.approx(np.sort(other)[5])
    # Balls are open: that of the image which decides does not reach the other label.
    assert (other >= found).mean() >= 0.95
    monkeypatch.setattr("usl.selectors.probcover.SIDE", 9)
    assert pure_radius(x, labels) == found
    monkeypatch.setattr(pairs_module, "REFERENCES", 50)
    assert pure_radius(x, labels) == pytest.approx(np.sort(other[::2])[2])
    monkeypatch.undo()
    assert pure_radius(x, torch.zeros(100, dtype=torch.int64)) == float("inf")


def test_the_radius_is_that_of_as_many_clusters_as_classes_whatever_the_budget():
    x = features("sphere", 300, 5)
    context = Context(Points(x), classes=4)
    labels = kmeans(x, 4, seed=7, nonempty=4, quiet=True).labels
    expected = cover_picks(x, 30, pure_radius(x, labels)).tolist()
    for budget in (1, 4, 30):
        assert SELECTORS["probcover"](context, budget, seed=7).tolist() == expected[:budget]
    other = SELECTORS["probcover"](Context(Points(x), classes=40), 30, seed=7)
    assert other.tolist() != expected


def test_distances_of_copies_are_computed_once(monkeypatch):
    """What all images being equal leaves in doubt, which is every pair, is one distance."""
    computed = []

    def counted(a, b):
        computed.append(len(a))
        return squared_distances(a, b)

    monkeypatch.setattr(pairs_module, "squared_distances", counted)
    x = np.repeat(features("sphere", 1, 5), 500, axis=0)
    assert cover_picks(x, 3, pure_radius(x, torch.arange(500) % 2)).tolist() == [0, 1, 2]
    assert sum(computed) < 100


def test_means_of_a_kernel(monkeypatch):
    x = features("sphere", 150, 6)
    pairs = Pairs(Points(x))
    kernel = Gaussian(pairs, 0.3)
    expected = np.exp(-distances(x) / 0.6)
    np.testing.assert_allclose(kernel.means().numpy(), expected.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(kernel.row(17).numpy(), expected[17], rtol=1e-13)
    above = distances(x)[np.triu_indices(150, 1)]
    assert pairs.median() == pytest.approx(np.sort(above)[(len(above) - 1) // 2])
    monkeypatch.setattr(pairs_module, "SIDE", 32)
    np.testing.assert_allclose(kernel.means().numpy(), expected.mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("size", [1e-150, 1e-155, 1e-160, 1e-162, 1e-200])
@pytest.mark.parametrize("name", ["rdss", "maxherding", "k-medoids"])
def test_features_whose_distances_float64_cannot_hold(name, size):
    x = features("sphere", 40, 3).astype(np.float64)
    picks = SELECTORS[name](Context(Points(x * size)), 5, seed=0).tolist()
    assert len(set(picks)) == 5
    if size == 1e-150:
        assert picks == SELECTORS[name](Context(Points(x)), 5, seed=0).tolist()


def test_what_cannot_be_chosen():
    x = torch.zeros(3, 2)
    for choose in (rdss_picks, herding_picks, lambda x, b: cover_picks(x, b, 1.0)):
        with pytest.raises(InputError, match="a budget of 4 picks from 3 images; choose 1 to 3"):
            choose(x, 4)
    with pytest.raises(InputError, match="`radius` is nan; choose 0 or more"):
        cover_picks(x, 2, float("nan"))
