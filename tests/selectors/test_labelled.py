"""Going on from labels: against the slow oracle, and what cannot be gone on from."""

import numpy as np
import pytest
import torch
from helpers import features
from oracles import selection as oracle
from oracles.forms import FORMS

from usl import InputError, Regularizer, select


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "constant", "outlier"])
def test_new_picks_equal_the_oracle(kind, form):
    slow, fast = FORMS[form]
    random = np.random.RandomState(3)
    for d, budget, count in [(1, 5, 3), (5, 20, 30), (33, 13, 1), (8, 60, 30)]:
        x = features(kind, 90, d, seed=2)
        labelled = random.choice(90, count, replace=False)
        options = {"weight": 0.7, "alpha": 0.5, "momentum": 0.6, "rounds": 4}
        expected, labels, _ = oracle.usl(
            x, budget, seed=2, k=9, labelled=labelled.tolist(), **options, **slow
        )
        reg = Regularizer(**options, **fast)
        found = select(x, budget, seed=2, k=9, iterations=50, regularizer=reg, labelled=labelled)
        assert found.clusters.tolist() == labels.tolist()
        assert found.picks.tolist() == expected.tolist()
        assert len(set(found.picks.tolist())) == budget
        assert not set(found.picks.tolist()) & set(labelled.tolist())


def test_rounds_cover_what_is_left():
    x = features("sphere", 60, 6)
    known = []
    for _ in range(6):
        new = select(x, 10, k=5, seed=1, labelled=known).picks.tolist()
        assert not set(new) & set(known)
        known += new
    assert sorted(known) == list(range(60))
    with pytest.raises(InputError, match="a budget of 1 picks from 0 images without a label"):
        select(x, 1, k=5, labelled=known)


def test_labelled_rows_in_any_order_and_form_are_the_same():
    x = features("sphere", 80, 6)
    expected = select(x, 7, k=5, labelled=[3, 50, 11]).picks.tolist()
    for rows in (np.array([50, 3, 11]), torch.tensor([11, 50, 3]), (3, 3, 11, 50)):
        assert select(x, 7, k=5, labelled=rows).picks.tolist() == expected
    assert select(x, 7, k=5, labelled=[]).picks.tolist() == select(x, 7, k=5).picks.tolist()


@pytest.mark.parametrize(
    ("labelled", "options", "message"),
    [
        ([80], {}, "`labelled` has row 80; give rows from 0 to 79"),
        ([1.0, 2.5], {}, "`labelled` holds float32 values; give the numbers of rows"),
        ([False, True], {}, "`labelled` holds bool values; give the numbers of rows"),
        ([-1], {}, "`labelled` has row -1; give rows from 0 to 79"),
        (range(75), {}, "a budget of 7 picks from 5 images without a label; choose 1 to 5"),
        (
            [1, 2],
            {"clusters": 8},
            "`clusters` is 8; choose at least 9, the budget and the",
        ),
    ],
)
def test_labels_that_do_not_fit(labelled, options, message):
    with pytest.raises(InputError, match=message):
        select(features("sphere", 80, 6), 7, k=5, labelled=list(labelled), **options)
