"""USL as scikit-activeml's strategies are: what its template of tests asks, and more."""

import numpy as np
import pytest
from helpers import features
from sklearn.base import clone

import usl
from usl import Regularizer

pytest.importorskip("skactiveml")
from skactiveml.exceptions import MappingError
from skactiveml.utils import MISSING_LABEL

from usl.selectors.activeml import USLQueryStrategy

X = features("sphere", 40, 5)


def labels(*rows, n=40, missing=MISSING_LABEL):
    y = np.full(n, missing, dtype=float if missing is MISSING_LABEL else object)
    y[list(rows)] = 1
    return y


def strategy(**options):
    return USLQueryStrategy(**({"k": 5, "random_state": 1} | options))


@pytest.mark.parametrize("known", [(), (3, 7, 30)])
def test_it_chooses_what_select_chooses(monkeypatch, known):
    seeds = []

    def select(*args, seed, **options):
        seeds.append(seed)
        return usl.select(*args, seed=seed, **options)

    monkeypatch.setattr("usl.selectors.activeml.select", select)
    reg = Regularizer(horizon="num", horizon_num=4)
    found = strategy(regularizer=reg).query(X, labels(*known), batch_size=6)
    expected = usl.select(X, 6, k=5, seed=seeds[0], regularizer=reg, labelled=known).picks
    assert found.tolist() == expected.tolist() and not set(found) & set(known)


def test_utilities_lead_to_the_picks():
    picks, utilities = strategy().query(X, labels(0, 1), batch_size=5, return_utilities=True)
    assert utilities.shape == (5, 40) and len(set(picks)) == 5
    for number, (pick, row) in enumerate(zip(picks, utilities, strict=True)):
        assert np.nanargmax(row) == pick
        assert np.flatnonzero(np.isnan(row)).tolist() == sorted({0, 1, *picks[:number]})


def test_candidates():
    y = labels(0, 1)
    rest = np.arange(2, 40)
    picks, utilities = strategy().query(X, y, return_utilities=True)
    same, again = strategy().query(X, y, candidates=rest, return_utilities=True)
    assert np.array_equal(picks, same)
    np.testing.assert_allclose(utilities, again)
    shuffled = strategy().query(X, y, candidates=rest[::-1].copy())
    assert np.array_equal(picks, shuffled)
    few, utilities = strategy().query(X, y, candidates=[9, 4], batch_size=2, return_utilities=True)
    assert sorted(few) == [4, 9]
    assert np.flatnonzero(~np.isnan(utilities[0])).tolist() == [4, 9]
    with pytest.raises(MappingError):
        strategy().query(X, y, candidates=X[5:9])


def test_more_than_there_are():
    with pytest.warns(Warning, match="batch_size"):
        picks = strategy().query(X, labels(*range(37)), batch_size=9)
    assert sorted(picks) == [37, 38, 39]


@pytest.mark.parametrize("known", [0, 1, 39])
def test_a_loop_of_queries(known):
    y = labels(*range(known))
    query = strategy()
    for _ in range(min(3, 40 - known)):
        (pick,) = query.query(X, y)
        assert np.isnan(y[pick])
        y[pick] = 0


def test_the_same_state_gives_the_same_picks():
    query = strategy(random_state=np.random.RandomState(0))
    first, again = (query.query(X, labels(), batch_size=4) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(first, clone(query).query(X, labels(), batch_size=4))
    assert not np.array_equal(first, strategy(random_state=5).query(X, labels(), batch_size=4))


@pytest.mark.parametrize(
    ("missing", "kind"), [(np.nan, float), (0, int), (None, object), ("", str)]
)
def test_labels_of_every_kind(missing, kind):
    y = np.full(40, missing, dtype=kind)
    y[:2] = ["A", "B"] if kind in (object, str) else [1, 2]
    picks = strategy(missing_label=missing).query(X, y, batch_size=3)
    assert len(set(picks)) == 3 and not {0, 1} & set(picks)


@pytest.mark.parametrize(
    ("init", "query", "error"),
    [
        ({"random_state": "state"}, {}, ValueError),
        ({"random_state": np.nan}, {}, ValueError),
        ({"missing_label": dict}, {}, TypeError),
        ({"k": 0}, {}, ValueError),
        ({"k": 1.5}, {}, TypeError),
        ({"iterations": 0}, {}, ValueError),
        ({"regularizer": 0.5}, {}, TypeError),
        ({}, {"X": "string"}, (ValueError, TypeError)),
        ({}, {"X": np.vstack([X, X])}, ValueError),
        ({}, {"y": np.nan}, TypeError),
        ({}, {"y": np.vstack([labels(), labels()])}, ValueError),
        ({}, {"candidates": np.nan}, ValueError),
        ({}, {"candidates": dict}, TypeError),
        ({}, {"batch_size": 0}, ValueError),
        ({}, {"batch_size": 1.2}, TypeError),
        ({}, {"return_utilities": "yes"}, TypeError),
    ],
)
def test_bad_input(init, query, error):
    with pytest.raises(error):
        strategy(**init).query(**({"X": X, "y": labels()} | query))
