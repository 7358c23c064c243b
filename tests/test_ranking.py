"""Means, ranks and paired differences of selectors."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from usl.ranking import rank_table, summarize


def table(values, names, *, dataset="a", budget=10):
    rows = [
        (dataset, name, budget, seed, value)
        for name, row in zip(names, values, strict=True)
        for seed, value in enumerate(row, start=1)
    ]
    return pd.DataFrame(rows, columns=["dataset", "selector", "budget", "seed", "accuracy"])


def test_summaries_keep_the_order_of_selectors():
    rows = table([[1.0, 3.0], [2.0, 2.0]], ["usl", "random"])
    found = summarize(
        pd.concat([rows, table([[5.0, 6.0], [1.0, 1.5]], ["usl", "random"], budget=4)])
    )
    assert list(found.index) == ["usl", "random"]
    assert found.loc["usl", 10] == "2.0 ± 1.4" and found.loc["random", 4] == "1.2 ± 0.4"
    assert summarize(rows[rows["seed"] == 1]).loc["usl", 10] == "1.0"
    assert summarize(rows.rename(columns={"accuracy": "knn"}), measure="knn").loc["usl", 10]


def test_ranks_by_hand():
    one = table([[50, 60], [80, 90], [80, 90]], ["random", "x", "y"])
    two = table([[40, 40], [30, 30], [20, 20]], ["random", "x", "y"], dataset="b")
    found = rank_table(pd.concat([one, two]))
    # x and y share ranks 1 and 2 of the first.
    assert list(found.index) == ["x", "random", "y"]
    assert found["rank"].tolist() == [1.75, 2.0, 2.25]
    # Means over both: random 47.5, x 57.5, y 52.5.
    assert found["leader"].tolist() == [0, 10, 5] and found["random"].tolist() == [10, 0, 5]
    # Whatever seeds are drawn, the differences are the same: that is what paired means.
    for name in ("leader", "random"):
        for end in ("low", "high"):
            assert found[f"{name}_{end}"].tolist() == pytest.approx(found[name].tolist())
    assert "random" not in rank_table(one[one["selector"] != "random"])


def test_intervals_are_those_of_all_draws():
    """With three seeds there are 27 draws, all alike likely."""
    values = np.array([[1.0, 5.0, 9.0], [4.0, 4.0, 4.0]])
    found = rank_table(table(values, ["random", "flat"]))
    draws = [values[:, list(rows)].mean(axis=1) for rows in itertools.product(range(3), repeat=3)]
    ahead = np.array([flat - random for random, flat in draws])
    ranks = np.array([rankdata(-draw) for draw in draws])
    assert found.loc["flat", "random"] == pytest.approx(-1)
    # Both ends have 1 of 27, more than 2.5 %, so the percentiles of many draws are the extremes.
    ends = found.loc["flat", ["random_low", "random_high"]]
    assert ends.tolist() == pytest.approx([ahead.min(), ahead.max()])
    assert found.loc["flat", "rank_low"] == ranks[:, 1].min() == 1
    assert found.loc["flat", "rank_high"] == ranks[:, 1].max() == 2


def test_seeds_are_drawn_anew_for_each_data_set():
    """Two of the same: their mean spreads less than one does."""
    values = np.random.RandomState(0).randn(2, 10)
    one = table(values, ["random", "x"])
    both = rank_table(pd.concat([one, one.assign(dataset="b")]))
    alone = rank_table(one)

    def width(found):
        return found.loc["x", "random_high"] - found.loc["x", "random_low"]

    assert both.loc["x", "random"] == pytest.approx(alone.loc["x", "random"])
    assert width(both) / width(alone) == pytest.approx(2**-0.5, abs=0.06)


def test_one_seed_has_no_interval():
    found = rank_table(table([[50.0], [60.0]], ["random", "x"]))
    assert found.loc["x"].tolist() == [1, 1, 1, 0, 0, 0, 10, 10, 10]
