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
    dead = np.zeros(clusters, bool)
    for _ in range(iterations):
        d = distances(x, centroids)
        d[:, dead] = np.inf
        labels = d.argmin(1)
        for c in range(clusters):
            members = x[labels == c]
            dead[c] = len(members) == 0
            if len(members):
                centroids[c] = members.mean(0)
    return labels, centroids


def fill(x, labels, centroids, alive):
    labels = labels.copy()
    for c in range(len(centroids)):
        if len(np.unique(labels)) >= alive:
            break
        if (labels == c).any():
            continue
        best, taken = -1.0, None
        for i in range(len(x)):
            if (labels == labels[i]).sum() > 1:
                away = ((np.float64(x[i]) - centroids[labels[i]]) ** 2).sum()
                if away > best:
                    best, taken = away, i
        labels[taken] = c
        centroids[c] = x[taken]
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
):
    x = np.asarray(x, np.float64)
    d, _ = neighbors(x, k)
    density = 1.0 / np.maximum(d.mean(1), SMALLEST)
    labels, centroids = kmeans(x, budget, seed, iterations)
    labels = fill(x, labels, centroids, budget)
    r = np.zeros(len(x))
    for round_ in range(max(1, rounds)):
        score = density - weight * r
        picks = []
        for c in range(budget):
            members = np.flatnonzero(labels == c)
            picks.append(members[score[members].argmax()])
        if round_ < rounds - 1:
            new = penalty(x, picks, labels, form, alpha, horizon, exclude_own)
            r = momentum * r + (1 - momentum) * new
    return np.array(picks), labels, density
