"""USL in the manner of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from usl.selectors.regularizer import Regularizer
from usl.selectors.select import select


class USL(BaseEstimator):  # type: ignore[misc]
    """Choose the rows of a table that are most worth labelling, with :func:`usl.select`.

    Parameters
    ----------
    budget : int
        Rows to choose, at most N.
    k : int
        Neighbours that make the density, the row itself included; of fewer rows, all.
    seed : int
        Of the first k-means centroids.
    iterations : int
        Limit of k-means.
    regularizer : Regularizer, optional
        How picks are kept apart.

    Attributes
    ----------
    indices_ : ndarray (budget,), int64
        The rows chosen, clusters in index order.
    labels_ : ndarray (N,), int64
        Cluster of every row.
    density_ : ndarray (N,), float64
        1 / mean squared distance to the k nearest neighbours.
    scores_ : ndarray (N,), float64
        Density minus the regulariser, in the last round.
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from usl import USL
    >>> X = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.3]])
    >>> USL(budget=2, k=3).fit(X).indices_.tolist()
    [1, 4]
    """

    def __init__(
        self,
        budget: int = 10,
        *,
        k: int = 20,
        seed: int = 0,
        iterations: int = 200,
        regularizer: Regularizer | None = None,
    ) -> None:
        self.budget = budget
        self.k = k
        self.seed = seed
        self.iterations = iterations
        self.regularizer = regularizer

    def fit(self, X: Any, y: Any = None) -> USL:
        """Choose from the rows of ``X``.

        Parameters
        ----------
        X : array, DataFrame, shape (N, D)
        y : ignored
            Labels play no part.

        Returns
        -------
        USL

        Raises
        ------
        ValueError
            No finite table of numbers, or parameters out of range.
        """
        rows = validate_data(self, X, dtype=[np.float64, np.float32])
        chosen = select(
            rows,
            self.budget,
            seed=self.seed,
            k=min(self.k, len(rows)),
            iterations=self.iterations,
            regularizer=self.regularizer,
        )
        self.indices_ = chosen.picks.numpy()
        self.labels_ = chosen.clusters.numpy()
        self.density_ = chosen.density.numpy()
        self.scores_ = chosen.scores.numpy()
        return self
