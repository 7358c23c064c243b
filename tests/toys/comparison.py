"""What a comparison of selectors leaves, for its report."""

import itertools

import pandas as pd

from usl.ranking import rank_table
from usl.report.comparison import write_comparison_report

EVIL = "<b>'& a_$x^_$"


def compared():
    """Two data sets, one with a name that is hard to show, two selectors, budgets and seeds."""
    rows = [
        (name, selector, budget, seed, 50.0 + seed + 5 * (selector == "USL"), 40.0, 9, 0.25)
        for name, selector, budget, seed in itertools.product(
            ("digits", EVIL), ("random", "USL"), (10, 40), (1, 2)
        )
    ]
    columns = ["dataset", "selector", "budget", "seed", "accuracy", "knn", "classes", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def write_comparison(path):
    """The report of it, with trainings."""
    found = compared()
    trainings = found[["dataset", "selector", "budget", "seed", "accuracy"]]
    write_comparison_report(
        path,
        found,
        rank_table(found),
        trainings=trainings.assign(training="FixMatch"),
        title="Worth",
        facts={"Data sets": EVIL},
        command="python x.py",
        timings={"features": 1.2},
    )
