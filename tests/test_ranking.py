"""Means, ranks and paired differences of selectors."""

import itertools

import numpy as np
import pandas as pd
import pytest

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
    seconds = rows.assign(seconds=[0.01234, 123.4, np.nan, np.nan])
    found = summarize(seconds, measure="seconds", form=".3g")
    assert found[10].tolist() == ["61.7 ± 87.2", "–"]
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
    assert found.loc["flat", "random"] == pytest.approx(-1)
    # Both ends have 1 of 27, more than 2.5 %, so the percentiles of many draws are the extremes.
    ends = found.loc["flat", ["random_low", "random_high"]]
    assert ends.tolist() == pytest.approx([ahead.min(), ahead.max()])
    # The best is the best of what was measured, and behind itself by nothing in any draw.
    assert found["rank"].tolist() == [1, 2] and list(found.index) == ["random", "flat"]
    assert found.loc["random", ["leader_low", "leader_high"]].tolist() == [0, 0]


def test_seeds_are_drawn_once_for_all_pairs():
    """What a selector draws for one budget goes on in the next: two pairs alike are as one."""
    values = np.random.RandomState(0).randn(2, 10)
    one = table(values, ["random", "x"])
    alone, both = rank_table(one), rank_table(pd.concat([one, one.assign(budget=20)]))
    pd.testing.assert_frame_equal(both, alone)
    # Two that go against each other leave nothing to chance.
    other = table(-values, ["random", "x"], budget=20)
    found = rank_table(pd.concat([one, other])).loc["x", ["random_low", "random_high"]]
    assert found.tolist() == pytest.approx([0, 0])


def test_one_seed_has_no_interval():
    found = rank_table(table([[50.0], [60.0]], ["random", "x"]))
    assert found.loc["x"].tolist() == [1, 0, 0, 0, 10, 10, 10]
