"""USL as a query strategy of scikit-activeml, for loops that are written for its strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
from skactiveml.base import SingleAnnotatorPoolQueryStrategy
from skactiveml.utils import MISSING_LABEL, check_scalar, is_labeled

from usl.selectors.regularizer import Regularizer
from usl.selectors.select import select


class USLQueryStrategy(SingleAnnotatorPoolQueryStrategy):  # type: ignore[misc]
    """Query the samples that :func:`usl.select` chooses beside those that are labelled.

    Needs the extra ``activeml``.

    Parameters
    ----------
    k : int
        Neighbours that make the density, the sample itself included; of fewer samples, all.
    iterations : int
        Limit of k-means.
    regularizer : Regularizer, optional
        How picks are kept apart.
    missing_label : scalar or None
        What ``y`` has for samples without a label.
    random_state : int or RandomState, optional
        Of the first k-means centroids.
    """

    def __init__(
        self,
        *,
        k: int = 20,
        iterations: int = 200,
        regularizer: Regularizer | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.k = k
        self.iterations = iterations
        self.regularizer = regularizer

    def query(
        self,
        X: Any,
        y: Any,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Choose ``batch_size`` samples to label next.

        Parameters
        ----------
        X : array (N, D)
        y : array (N,)
            Labels, or ``missing_label``.
        candidates : array of int, optional
            Rows to choose from; default those without a label. Others are not looked at, unless
            they are labelled.
        batch_size : int
            Of fewer candidates, all, with a warning.
        return_utilities : bool

        Returns
        -------
        indices : ndarray (batch_size,), int64
        utilities : ndarray (batch_size, N), float64
            If asked for. For each pick the scores of its cluster, density minus the regulariser;
            negative infinity for candidates of other clusters, and NaN for earlier picks and for
            what is no candidate.

        Raises
        ------
        ValueError, TypeError
            Input that scikit-activeml refuses; options out of range; nothing left to label.
        MappingError
            Candidates that are features, not rows of ``X``.
        """
        X, y, candidates, batch_size, return_utilities = self._validate_data(
            X, y, candidates, batch_size, return_utilities, reset=True
        )
        _, mapping = self._transform_candidates(candidates, X, y, enforce_mapping=True)
        check_scalar(self.k, "k", int, min_val=1)
        check_scalar(self.iterations, "iterations", int, min_val=1)
        if not isinstance(self.regularizer, Regularizer | None):
            raise TypeError(f"`regularizer` is {self.regularizer!r}; give a usl.Regularizer")
        if not len(mapping) or mapping.min() < 0:
            raise ValueError("no candidates, or rows below 0; give rows of `X` without a label")
        known = np.setdiff1d(
            np.flatnonzero(is_labeled(y, missing_label=self.missing_label)), mapping
        )
        # Sorted: what is equal is decided by the order of the rows, not of the candidates.
        pool = np.union1d(mapping, known)
        chosen = select(
            X[pool],
            batch_size,
            seed=int(self.random_state_.randint(2**31 - 1)),
            k=min(self.k, len(pool)),
            iterations=self.iterations,
            regularizer=self.regularizer,
            labelled=np.searchsorted(pool, known).tolist(),
        )
        picks = chosen.picks.numpy()
        indices = pool[picks]
        if not return_utilities:
            return indices
        clusters = chosen.clusters.numpy()
        utilities = np.full((batch_size, len(X)), np.nan)
        for number, pick in enumerate(picks):
            scores = np.where(clusters == clusters[pick], chosen.scores.numpy(), -np.inf)
            utilities[number, pool] = scores
            utilities[number, known] = np.nan
            utilities[number, indices[:number]] = np.nan
        return indices, utilities
