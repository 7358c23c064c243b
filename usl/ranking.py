"""What selectors are worth beside each other: means, ranks and paired differences over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

# Draws of seeds, and the ends of an interval in percent.
RESAMPLES, ENDS = 2000, (2.5, 97.5)
RIVAL = "random"


def summarize(results: pd.DataFrame, *, measure: str = "accuracy") -> pd.DataFrame:
    """Mean ± standard deviation of a measure over seeds, as texts.

    Parameters
    ----------
    results : DataFrame
        With columns ``selector``, ``budget``, ``seed`` and ``measure``.

    Returns
    -------
    DataFrame
        Selectors, in the order in which they come, by budgets.
    """
    groups = results.groupby(["selector", "budget"], sort=False)[measure]
    texts = groups.agg(
        lambda a: f"{a.mean():.1f} ± {a.std():.1f}" if len(a) > 1 else f"{a.mean():.1f}"
    )
    return texts.unstack("budget").reindex(results["selector"].unique())


def rank_table(results: pd.DataFrame, *, measure: str = "accuracy") -> pd.DataFrame:
    """Rank selectors over all data sets and budgets.

    In every pair of data set and budget selectors are ranked by their mean over seeds, 1 the best,
    equal ones sharing the mean of their ranks. Intervals hold 95 % of what comes out when the seeds
    of each pair are drawn anew, with replacement, the same for all selectors (paired percentile
    bootstrap, 2000 draws; Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3).
    Rules that draw nothing give the same for all seeds, so they add nothing to an interval.

    Parameters
    ----------
    results : DataFrame
        With columns ``dataset``, ``selector``, ``budget``, ``seed`` and ``measure``; every selector
        has the same seeds in a pair.
    measure : str
        Higher is better.

    Returns
    -------
    DataFrame
        By selector, the best first: ``rank``, its mean over the pairs; ``leader``, by how much the
        measure is behind the best one's, and ``random``, by how much it is ahead of that selector,
        if it is there: means over the pairs. Each with ``…_low`` and ``…_high``.
    """
    names = list(results["selector"].unique())
    random = np.random.RandomState(0)
    pairs = []
    for _, rows in results.groupby(["dataset", "budget"], sort=False):
        values = rows.pivot(index="selector", columns="seed", values=measure).loc[names].to_numpy()
        seeds = values.shape[1]
        # What was measured comes first, then the draws.
        drawn = np.vstack([np.arange(seeds), random.randint(seeds, size=(RESAMPLES, seeds))])
        pairs.append(values[:, drawn].mean(axis=2))
    found = np.stack(pairs)
    means = found.mean(axis=0)
    # Rounding must not part what is equal.
    ranks = np.mean([pd.DataFrame(-pair.round(9)).rank() for pair in found], axis=0)
    columns = {"rank": ranks, "leader": means[np.argmin(ranks[:, 0])] - means}
    if RIVAL in names:
        columns["random"] = means - means[names.index(RIVAL)]
    table: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        low, high = np.percentile(column[:, 1:], ENDS, axis=1)
        table |= {name: column[:, 0], f"{name}_low": low, f"{name}_high": high}
    index = pd.Index(names, name="selector")
    return pd.DataFrame(table, index=index).sort_values("rank", kind="stable")
