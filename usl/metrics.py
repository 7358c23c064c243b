"""What picks are worth."""

from __future__ import annotations

import numpy as np
import pandas as pd


def class_counts(labels: np.ndarray, picks: np.ndarray, classes: int) -> np.ndarray:
    """How many picks each class has, (classes,), int64."""
    return np.bincount(labels[picks], minlength=classes)


def linear_probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    """Accuracy of a linear classifier trained on a few labelled features.

    Multinomial logistic regression of scikit-learn with L2 penalty, C = 10: on features of length 1
    the default of 1 leaves the classifier close to the class frequencies of the picks.

    Parameters
    ----------
    train : ndarray (B, D)
        Features of the picks.
    labels : ndarray (B,), int
    test : ndarray (M, D)
    test_labels : ndarray (M,), int

    Returns
    -------
    float
        Percent correct. With labels of one class only, that class is the answer to everything.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) == 1:
        return 100.0 * float(np.mean(test_labels == labels[0]))
    probe = LogisticRegression(C=10.0, max_iter=1000).fit(train, labels)
    return 100.0 * float(probe.score(test, test_labels))


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Mean ± standard deviation of ``accuracy`` over seeds, as texts.

    Parameters
    ----------
    results : DataFrame
        With columns ``selector``, ``budget``, ``seed``, ``accuracy``.

    Returns
    -------
    DataFrame
        Selectors, in the order in which they come, by budgets.
    """
    groups = results.groupby(["selector", "budget"], sort=False)["accuracy"]
    texts = groups.agg(
        lambda a: f"{a.mean():.1f} ± {a.std():.1f}" if len(a) > 1 else f"{a.mean():.1f}"
    )
    return texts.unstack("budget").reindex(results["selector"].unique())
