"""What selectors are worth beside each other: means, ranks and paired differences over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

# Draws of seeds, and the ends of an interval in percent.
RESAMPLES, ENDS = 2000, (2.5, 97.5)
RIVAL = "random"


def summarize(
    results: pd.DataFrame, *, measure: str = "accuracy", form: str = ".1f"
) -> pd.DataFrame:
    """Mean ± standard deviation of a measure over seeds, as texts.

    Parameters
    ----------
    results : DataFrame
        With columns ``selector``, ``budget``, ``seed`` and ``measure``.
    measure : str
    form : str
        Of numbers.

    Returns
    -------
    DataFrame
        Selectors, in the order in which they come, by budgets; a dash where nothing was measured.
    """

    def text(a: pd.Series[float]) -> str:
        if a.isna().all():
            return "–"
        spread = f" ± {a.std():{form}}" if len(a) > 1 else ""
        return f"{a.mean():{form}}{spread}"

    texts = results.groupby(["selector", "budget"], sort=False)[measure].agg(text)
    return texts.unstack("budget").reindex(results["selector"].unique())


def rank_table(results: pd.DataFrame) -> pd.DataFrame:
    """Rank selectors over all data sets and budgets.

    In every pair of data set and budget selectors are ranked by their mean over seeds, 1 the best,
    equal ones sharing the mean of their ranks. Intervals of the differences hold 95 % of what comes
    out when seeds are drawn anew, with replacement, the same for all selectors and pairs: what a
    selector draws for one budget may go on from what it draws for another (paired percentile
    bootstrap, 2000 draws; Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3).
    They are about the draws of selectors, not about other data sets: rules that draw nothing give
    the same for all seeds. The best is the best of what was measured, also in every draw.

    Parameters
    ----------
    results : DataFrame
        With columns ``dataset``, ``selector``, ``budget``, ``seed`` and ``accuracy``, of which more
        is better; every selector has the same seeds in all pairs.

    Returns
    -------
    DataFrame
        By selector, the best first: ``rank``, its mean over the pairs; ``leader``, by how much the
        accuracy is behind the best one's, and ``random``, by how much it is ahead of that selector,
        if it is there: means over the pairs, with ``…_low`` and ``…_high``.
    """
    names, seeds = list(results["selector"].unique()), results["seed"].nunique()
    # What was measured comes first, then the draws.
    drawn = np.random.RandomState(0).randint(seeds, size=(RESAMPLES, seeds))
    drawn = np.vstack([np.arange(seeds), drawn])
    pairs = []
    for _, rows in results.groupby(["dataset", "budget"], sort=False):
        values = rows.pivot(index="selector", columns="seed", values="accuracy").loc[names]
        pairs.append(values.to_numpy()[:, drawn].mean(axis=2))
    found = np.stack(pairs)
    # Rounding must not part what is equal.
    ranks = pd.DataFrame(-found[:, :, 0].T.round(9)).rank().mean(axis=1).to_numpy()
    means = found.mean(axis=0)
    columns = {"leader": means[np.argmin(ranks)] - means}
    if RIVAL in names:
        columns["random"] = means - means[names.index(RIVAL)]
    table = {"rank": ranks}
    for name, column in columns.items():
        low, high = np.percentile(column[:, 1:], ENDS, axis=1)
        table |= {name: column[:, 0], f"{name}_low": low, f"{name}_high": high}
    index = pd.Index(names, name="selector")
    return pd.DataFrame(table, index=index).sort_values("rank", kind="stable")
