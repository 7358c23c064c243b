"""USL once more, slowly, in plain NumPy float64: what the library's picks are compared with.

Written from the description of the method alone; shares no code with the library, but for torch's
generator, from which the first centroids are drawn.
"""

import numpy as np
import torch

FAR = 1e10
SMALLEST = 1e-12


def distances(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)


def neighbors(x, k):
    d = distances(x, x)
    order = np.argsort(d, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(d, order, 1), order


def kmeans(x, clusters, seed, iterations):
    x = np.asarray(x, np.float64)
    torch.manual_seed(seed)
    centroids = x[torch.randperm(len(x))[:clusters].numpy()]
    empty = np.zeros(clusters, bool)
    for _ in range(iterations):
        d = distances(x, centroids)
        d[:, empty] = np.inf
        labels = d.argmin(1)
        for c in range(clusters):
            members = x[labels == c]
            empty[c] = len(members) == 0
            if len(members):
                centroids[c] = members.mean(0)
    return labels, centroids


def fill(x, labels, centroids, nonempty):
    """Empty clusters take the pictures farthest from all centres; copies only at the end."""
    x, labels = np.float64(x), labels.copy()
    pictures = [tuple(row) for row in x + 0.0]
    centres = {i: [centroids[labels[i]]] for i in range(len(x))}
    for c in range(len(centroids)):
        if len(set(labels)) >= nonempty:
            break
        if c in labels:
            continue
        inside = [[pictures[i] for i in np.flatnonzero(labels == label)] for label in labels]
        free = [i for i in range(len(x)) if len(set(inside[i])) > 1]
        split = not free
        if split:
            free = [i for i in range(len(x)) if len(inside[i]) > 1]
        away = {i: min(distances(x[i : i + 1], np.array(centres[i]))[0]) for i in free}
        taken = min(free, key=lambda i: (-away[i], i))
        for i in range(len(x)):
            if i == taken or (not split and pictures[i] == pictures[taken]):
                labels[i] = c
            centres[i].append(x[taken])
    return labels


def penalty(x, picks, own, form, alpha, horizon, exclude_own):
    out = np.zeros(len(x))
    for i in range(len(x)):
        d = distances(x[i : i + 1], x[picks])[0]
        if form == "dist":
            left_out = (d >= horizon) | (np.arange(len(picks)) == own[i])
            d = np.where(left_out, FAR, d)
        else:
            nearest = np.argsort(d, kind="stable")[:horizon]
            left_out = nearest == own[i] if exclude_own else d[nearest] == 0
            d = np.where(left_out, FAR, d[nearest])
        out[i] = (1.0 / np.maximum(d, SMALLEST) ** alpha).sum()
    return out


def usl(
    x,
    budget,
    *,
    seed,
    k,
    iterations=50,
    weight=0.5,
    alpha=0.5,
    momentum=0.9,
    rounds=10,
    form="dist",
    horizon=4.0,
    exclude_own=False,
    labelled=(),
):
    x = np.asarray(x, np.float64)
    d, _ = neighbors(x, k)
    density = 1.0 / np.maximum(d.mean(1), SMALLEST)
    clusters = budget + len(labelled)
    labels, centroids = kmeans(x, clusters, seed, iterations)
    labels = fill(x, labels, centroids, clusters)
    # The largest clusters without a labelled image; of equal ones the first.
    free = [c for c in range(clusters) if c not in {labels[i] for i in labelled}]
    free = sorted(sorted(free, key=lambda c: (-np.sum(labels == c), c))[:budget])
    own = np.array([free.index(c) if c in free else -1 for c in labels])
    r = np.zeros(len(x))
    for round_ in range(max(1, rounds)):
        score = density - weight * r
        picks = []
        for c in free:
            members = np.flatnonzero(labels == c)
            picks.append(members[score[members].argmax()])
        if round_ < rounds - 1:
            together = [*picks, *labelled]
            new = penalty(x, together, own, form, alpha, horizon, exclude_own)
            r = momentum * r + (1 - momentum) * new
    return np.array(picks), labels, density
