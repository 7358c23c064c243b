"""Selectors by name: from what is known of a pool to the images worth labelling.

To add one, write its rule in a file of this folder and enter it in ``SELECTORS``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from usl.errors import InputError
from usl.geometry.assignment import nearest_centroids
from usl.geometry.kmeans import Clusters, kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points, check_budget
from usl.selectors.activeft import trained_picks
from usl.selectors.by_cluster import best_clusters, central_picks, stratified_picks
from usl.selectors.farthest import farthest_picks, squared_distance_picks
from usl.selectors.hierarchical import hierarchical_picks
from usl.selectors.maxherding import herding_picks
from usl.selectors.medoids import medoid_picks
from usl.selectors.probcover import cover_picks, pure_radius
from usl.selectors.random import random_picks
from usl.selectors.rdss import rdss_picks
from usl.selectors.regularizer import Regularizer
from usl.selectors.typiclust import CLUSTERS, typical_picks
from usl.selectors.usl import Picks, pick


@dataclass
class Shared:
    """Things that several selectors need, each computed once.

    Attributes
    ----------
    borrowed : float
        Seconds that things had taken, which were there already when they were asked for.
    """

    things: dict[Any, Any] = field(default_factory=dict)
    seconds: dict[Any, float] = field(default_factory=dict)
    borrowed: float = 0.0

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returned, the first time that something was asked for by this key."""
        if key in self.things:
            self.borrowed += self.seconds[key]
        else:
            begin = time.perf_counter()
            self.things[key] = compute()
            self.seconds[key] = time.perf_counter() - begin
        return self.things[key]


@dataclass
class Context:
    """What selectors may look at; what several of them need is computed once.

    Attributes
    ----------
    points : Points
        Features of the pool, N of them.
    density : Tensor (N,), float64, optional
        1 / mean kNN distance; default that of the 20 nearest neighbours.
    cluster : callable, optional
        Given budget and seed, returns the clustering for them; default k-means.
    regularizer : Regularizer
        Of USL.
    iterations : int
        Limit of k-means.
    labels : Tensor (N,), int64, optional
        Given to selectors marked ``uses_labels`` only.
    classes : int
        How many there are thought to be; of ProbCover, whose radius is found by as many clusters.
    shared : Shared
    """

    points: Points
    density: Tensor | None = None
    cluster: Callable[[int, int], Clusters] | None = None
    regularizer: Regularizer = field(default_factory=Regularizer)
    iterations: int = 200
    labels: Tensor | None = None
    classes: int = 10
    shared: Shared = field(default_factory=Shared)

    def clusters(self, budget: int, seed: int) -> Clusters:
        """As many non-empty clusters as the budget, or more."""

        def compute() -> Clusters:
            if self.cluster is not None:
                return self.cluster(budget, seed)
            return kmeans(
                self.points, budget, seed=seed, iterations=self.iterations, nonempty=budget,
                quiet=True,
            )  # fmt: skip

        found: Clusters = self.shared.once((budget, seed), compute)
        return found

    def tightest(self, budget: int, seed: int) -> Clusters:
        """As many clusters as the budget: the tightest of eight k-means with spread starts."""

        def compute() -> Clusters:
            return best_clusters(
                self.points, budget, seed=seed, iterations=self.iterations, nonempty=budget,
                spread=True,
            )  # fmt: skip

        found: Clusters = self.shared.once(("tightest", budget, seed), compute)
        return found

    def densities(self) -> Tensor:
        """``density``, computed where it was not given."""
        if self.density is not None:
            return self.density
        near = min(20, len(self.points))

        def compute() -> Tensor:
            return find_neighbors(self.points, near).density

        found: Tensor = self.shared.once("density", compute)
        return found

    def picks(self, budget: int, clusters: Clusters, regularizer: Regularizer) -> Picks:
        """From each cluster a dense image, kept apart from the others by ``regularizer``."""
        return pick(self.points, self.densities(), clusters.labels, budget, regularizer)


@dataclass(frozen=True)
class Selector:
    """A rule that chooses images.

    Attributes
    ----------
    title : str
        For tables.
    choose : callable
        ``choose(context, budget, *, seed)`` returns (B,) int64: exactly ``budget`` distinct rows,
        the same for the same arguments.
    uses_labels : bool
        It needs the labels of the whole pool, so it is a comparison, not a way to choose.
    seeded : bool
        Another seed gives other picks.
    version : int
        Raised whenever its picks change: comparisons then choose anew what they have kept.
    """

    title: str
    choose: Callable[..., Tensor]
    uses_labels: bool = False
    seeded: bool = True
    version: int = 1

    def __call__(self, context: Context, budget: int, *, seed: int) -> Tensor:
        """Choose ``budget`` images; see ``choose``.

        Raises
        ------
        InputError
            Budget or seed are out of range, or there are no labels for a rule that uses them.
        """
        self.check(budget, len(context.points), seed=seed)
        if self.uses_labels and context.labels is None:
            raise InputError(f"selector {self.title} needs the labels of the whole pool; give them")
        seen = context if self.uses_labels else replace(context, labels=None)
        return self.choose(seen, budget, seed=seed)

    def check(self, budget: int, images: int, *, seed: int) -> None:
        """Raise InputError unless so many of the images can be chosen with this seed."""
        check_budget(budget, images)
        if not 0 <= seed < 2**32:
            raise InputError(f"`seed` is {seed}; choose 0 to {2**32 - 1}")


def selectors_named(names: Sequence[str]) -> list[Selector]:
    """The selectors of these names, in their order.

    Raises
    ------
    InputError
        Names that are none, or come twice; the known ones are listed.
    """
    unknown = [name for name in names if name not in SELECTORS]
    if unknown:
        raise InputError(
            f"unknown `selector` {unknown[0]!r}; choose some of {', '.join(SELECTORS)}"
        )
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"`selector` is {list(names)}; choose some of {', '.join(SELECTORS)}, each once"
        )
    return [SELECTORS[name] for name in names]


def timed(selector: Selector, context: Context, budget: int, *, seed: int) -> tuple[Tensor, float]:
    """Choose, and the seconds that this takes where nothing is shared with other selectors.

    Raises
    ------
    InputError
        As :class:`Selector` when it is called.
    """
    begin, borrowed = time.perf_counter(), context.shared.borrowed
    picks = selector(context, budget, seed=seed)
    return picks, time.perf_counter() - begin + context.shared.borrowed - borrowed


def chosen_by(
    selector: Selector, context: Context, budget: int, *, seed: int
) -> tuple[Clusters, Picks]:
    """Choose, and say which images each pick stands for: those that are nearest to it.

    Returns
    -------
    clusters : Clusters
        As many as picks, in their order, with the picks as centroids.
    picks : Picks
        Their scores are the densities.

    Raises
    ------
    InputError
        As :class:`Selector` when it is called.
    """
    indices = selector(context, budget, seed=seed)
    centroids = context.points.host[indices].double()
    labels = nearest_centroids(context.points, centroids)
    # Of copies every pick stands for itself.
    labels[indices] = torch.arange(budget)
    return Clusters(labels, centroids), Picks(indices, torch.arange(budget), context.densities())


def _random(context: Context, budget: int, *, seed: int) -> Tensor:
    return random_picks(len(context.points), budget, seed=seed)


def _stratified(context: Context, budget: int, *, seed: int) -> Tensor:
    assert context.labels is not None
    return stratified_picks(context.labels, budget, seed=seed)


def _centres(context: Context, budget: int, *, seed: int) -> Tensor:
    return central_picks(context.points, context.clusters(budget, seed))[:budget]


def _plusplus(context: Context, budget: int, *, seed: int) -> Tensor:
    start = squared_distance_picks(context.points, budget, seed=seed)
    grouped = kmeans(
        context.points, budget, seed=seed, iterations=context.iterations, nonempty=budget,
        start=start, quiet=True,
    )  # fmt: skip
    return central_picks(context.points, grouped)[:budget]


def _best_centres(context: Context, budget: int, *, seed: int) -> Tensor:
    grouped = best_clusters(
        context.points, budget, seed=seed, iterations=context.iterations, nonempty=budget
    )
    return central_picks(context.points, grouped)[:budget]


def _typiclust(context: Context, budget: int, *, seed: int) -> Tensor:
    return typical_picks(context.points, context.clusters(min(budget, CLUSTERS), seed), budget)


def _probcover(context: Context, budget: int, *, seed: int) -> Tensor:
    pseudo_classes = min(context.classes, len(context.points))
    radius = pure_radius(context.points, context.clusters(pseudo_classes, seed).labels)
    return cover_picks(context.points, budget, radius)


def _maxherding(context: Context, budget: int, *, seed: int) -> Tensor:
    return herding_picks(context.points, budget)


def _medoids(context: Context, budget: int, *, seed: int) -> Tensor:
    return medoid_picks(context.points, budget, seed=seed)


def _rdss(context: Context, budget: int, *, seed: int) -> Tensor:
    return rdss_picks(context.points, budget)


def _activeft(context: Context, budget: int, *, seed: int) -> Tensor:
    return trained_picks(context.points, budget, seed=seed)


def _farthest(context: Context, budget: int, *, seed: int) -> Tensor:
    return farthest_picks(context.points, budget)


def _hierarchical(context: Context, budget: int, *, seed: int) -> Tensor:
    return hierarchical_picks(context.points, budget, seed=seed)


def _squared_distance(context: Context, budget: int, *, seed: int) -> Tensor:
    return squared_distance_picks(context.points, budget, seed=seed)


def _densest(context: Context, budget: int, *, seed: int) -> Tensor:
    return context.picks(budget, context.clusters(budget, seed), Regularizer(rounds=1)).indices


def _usl(context: Context, budget: int, *, seed: int) -> Tensor:
    return context.picks(budget, context.clusters(budget, seed), context.regularizer).indices


def _tightest(context: Context, budget: int, *, seed: int) -> Tensor:
    return central_picks(context.points, context.tightest(budget, seed))[:budget]


def _usl_tightest(context: Context, budget: int, *, seed: int) -> Tensor:
    return context.picks(budget, context.tightest(budget, seed), context.regularizer).indices


SELECTORS: dict[str, Selector] = {
    "random": Selector("random", _random),
    "stratified": Selector("stratified", _stratified, uses_labels=True),
    "kmeans-centres": Selector("k-means centres", _centres),
    "kmeans-plusplus": Selector("k-means++ centres", _plusplus),
    "kmeans-best": Selector("best k-means centres", _best_centres),
    "densest": Selector("densest per cluster", _densest),
    "typiclust": Selector("TypiClust", _typiclust),
    "probcover": Selector("ProbCover", _probcover, version=2),
    "maxherding": Selector("MaxHerding", _maxherding, seeded=False),
    "k-medoids": Selector("k-medoids", _medoids),
    "rdss": Selector("RDSS", _rdss, seeded=False),
    "activeft": Selector("ActiveFT", _activeft, version=2),
    "k-centre": Selector("k-centre greedy", _farthest, seeded=False),
    "d2": Selector("D2 sampling", _squared_distance),
    "hierarchical": Selector("hierarchical k-means", _hierarchical),
    "usl": Selector("USL", _usl),
    "tightest": Selector("tightest clusters", _tightest),
    "usl-tightest": Selector("USL on tightest clusters", _usl_tightest),
}
