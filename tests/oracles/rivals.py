"""Other selectors once more, slowly, in plain NumPy float64, from their descriptions alone."""

import math

import numpy as np
from oracles.selection import distances


def plusplus(x, count, random):
    """Rows drawn as k-means++ begins, from a generator of NumPy."""
    picks = [random.randint(len(x))]
    while len(picks) < count:
        weights = distances(x, x[picks]).min(1)
        weights[picks] = 0
        reached = weights.cumsum()
        if reached[-1] > 0:
            picks.append(
                int(np.searchsorted(reached, random.random_sample() * reached[-1], "right"))
            )
        else:
            picks.append(min(set(range(len(x))) - set(picks)))
    return picks


def medoids(x, budget, *, seed, squared_width, rounds=100, step=1):
    """Picks, and the coverage before each round and in the end."""
    kernel = np.exp(-distances(x, x) / (2 * squared_width))
    away = distances(x, x)
    picks = plusplus(np.float64(x), budget, np.random.RandomState(seed))
    coverage = [kernel[::step, picks].max(1).sum()]
    for _ in range(rounds):
        own = away[:, picks].argmin(1)
        own[picks] = range(budget)
        before = list(picks)
        for group in range(budget):
            members = np.flatnonzero(own == group)
            covered = members[members % step == 0]
            if len(covered):
                sums = kernel[np.ix_(members, covered)].sum(1)
                picks[group] = int(members[sums >= sums.max() - 1e-10][0])
        coverage.append(kernel[::step, picks].max(1).sum())
        if picks == before:
            break
    return picks, coverage


def lloyd(x, centroids, iterations):
    """Centroids, of which the empty are never chosen again, and the label of each row."""
    centroids, empty = centroids.copy(), np.zeros(len(centroids), bool)
    for _ in range(iterations):
        away = distances(x, centroids)
        away[:, empty] = np.inf
        labels = away.argmin(1)
        for c in range(len(centroids)):
            empty[c] = not (labels == c).any()
            if not empty[c]:
                centroids[c] = x[labels == c].mean(0)
    return centroids, labels


def members_of(x, centroids, labels):
    """Rows of each cluster, the nearest to its centroid first."""
    away = distances(x, centroids)
    found = [np.flatnonzero(labels == c) for c in range(len(centroids))]
    return [
        sorted(rows.tolist(), key=lambda i, c=c: (away[i, c], i)) for c, rows in enumerate(found)
    ]


def hierarchical(x, budget, *, seed, sizes, large=16384, references=8192):
    random = np.random.RandomState(seed)

    def cluster(rows, count):
        draws = np.random.RandomState(random.randint(2**31))
        step = min(max(1, len(rows) // references), len(rows) // count)
        return lloyd(rows, rows[::step][plusplus(rows[::step], count, draws)], 50)

    rows, nodes = np.float64(x), [[i] for i in range(len(x))]
    images = [1] * len(x)
    trees = list(range(len(x)))
    for level, size in enumerate(sizes):
        count = min(size, len(rows))
        centroids, labels = cluster(rows, count)
        near = len(rows) // (2 * count)
        if near > 1 and (level or len(x) <= large):
            for _ in range(10):
                nodes = members_of(rows, centroids, labels)
                kept = sorted(i for node in nodes for i in node[:near])
                centroids, _ = cluster(rows[kept], min(count, len(kept)))
                labels = distances(rows, centroids).argmin(1)
        nodes = members_of(rows, centroids, labels)
        full = [c for c, node in enumerate(nodes) if node]
        # A tree is an image, or a list of trees.
        trees = [[trees[i] for i in nodes[c]] for c in full]
        images = [sum(images[i] for i in nodes[c]) for c in full]
        rows = centroids[full]
    return spread(sorted(trees, key=lambda tree: -count_of(tree)), budget)


def count_of(tree):
    return 1 if isinstance(tree, int) else sum(map(count_of, tree))


def spread(trees, budget):
    """Images of trees, by shares that are as even as the trees' sizes let them be."""
    room = [count_of(tree) for tree in trees]
    even = max(n for n in range(budget + 1) if sum(min(n, r) for r in room) <= budget)
    given = [min(even, r) for r in room]
    for i, r in enumerate(room):
        given[i] += sum(given) < budget and r > even
    return [
        image
        for tree, share in zip(trees, given, strict=True)
        if share
        for image in ([tree] if isinstance(tree, int) else spread(tree, share))
    ]


def levels(images, budget):
    """The rule for the number of clusters of each level."""
    bottom = max(images // 74, min(4 * budget, images // 4), 1)
    top = max(1, min(budget, bottom // 4))
    return [bottom, math.isqrt(bottom * top), top] if bottom > 64 * top else [bottom, top]
