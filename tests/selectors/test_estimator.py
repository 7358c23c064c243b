"""USL as scikit-learn's estimators are: its checks, and the picks of usl.select."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import features
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import usl
from usl import USL, InputError, Regularizer


@parametrize_with_checks([USL(budget=1), USL(budget=1, k=3, regularizer=Regularizer(rounds=2))])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("k", [5, 400])
def test_it_chooses_what_select_chooses(k):
    x = features("sphere", 90, 6)
    reg = Regularizer(horizon="num", horizon_num=3, rounds=3)
    found = USL(budget=7, k=k, seed=3, regularizer=reg).fit(x)
    expected = usl.select(x, 7, k=min(k, 90), seed=3, regularizer=reg)
    for mine, theirs in (
        (found.indices_, expected.picks),
        (found.labels_, expected.clusters),
        (found.density_, expected.density),
        (found.scores_, expected.scores),
    ):
        assert np.array_equal(mine, theirs.numpy())
    assert found.indices_.dtype == np.int64 and len(set(found.indices_)) == 7


def test_every_kind_of_table_gives_the_same_picks():
    x = features("sphere", 60, 4)
    expected = usl.select(x, 5, k=4).picks.tolist()
    for table in (
        pd.DataFrame(x),
        torch.from_numpy(x),
        x.tolist(),
        np.asfortranarray(x),
        x.astype(np.float64),
    ):
        assert usl.select(table, 5, k=4).picks.tolist() == expected
    frame = pd.DataFrame(x, columns=list("abcd"))
    found = clone(USL(budget=5, k=4)).fit(frame)
    assert found.indices_.tolist() == expected and list(found.feature_names_in_) == list("abcd")


def test_parameters_out_of_range_are_bad_input():
    x = features("sphere", 20, 4)
    with pytest.raises(InputError, match="a budget of 21 picks from 20 images; choose 1 to 20"):
        USL(budget=21).fit(x)
    with pytest.raises(InputError, match="`iterations` is 0"):
        USL(budget=2, iterations=0).fit(x)
    with pytest.raises(AttributeError, match="module 'usl' has no attribute 'UST'"):
        usl.UST  # noqa: B018
