"""The picks and pseudo-labels of USL-T once more, slowly."""

import math

import numpy as np
from oracles import selection as oracle


def slow_picks(clusters, score, budget, by_size=False):
    """Best of each non-empty cluster by its index; then the next best of the largest in turn."""
    members = {}
    for i in sorted(range(len(clusters)), key=lambda i: (-score[i], i)):
        members.setdefault(clusters[i], []).append(i)
    by_population = sorted(members, key=lambda c: (-len(members[c]), c))
    rounds = []
    for turn in range(len(clusters)):
        rounds += [(turn, c, members[c][turn]) for c in by_population if turn < len(members[c])]
    chosen = rounds[:budget]
    if not by_size:
        chosen = sorted(chosen, key=lambda row: row[1] if row[0] == 0 else math.inf)
    return [image for _, _, image in chosen]


def slow_pseudo_labels(clusters, distances, picks, labels, count):
    given = [-1] * len(clusters)
    for pick, label in zip(reversed(picks), reversed(labels), strict=True):
        members = [i for i in range(len(clusters)) if clusters[i] == clusters[pick]]
        for i in sorted(members, key=lambda i: (distances[i], i))[:count]:
            given[i] = label
    for pick, label in zip(picks, labels, strict=True):
        given[pick] = label
    return given


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_hand(features, model, *, head, mean, budget):
    """Picks of the CIFAR form from features and the weights of linear heads, in float64."""
    p = []
    for h in range(3):
        weight, bias = (model[f"cluster_head.{h}.{k}"].double().numpy() for k in ("weight", "bias"))
        p.append(softmax(features.astype(np.float64) @ weight.T + bias))
    tops = [x.max(axis=1) for x in p]
    clusters = p[head].argmax(axis=1).tolist()
    return slow_picks(clusters, sum(tops) / 3 if mean else tops[head], budget)


def cosine_by_hand(features, model, head, budget):
    """Clusters, distances and picks of the ImageNet form, in float64."""
    x = features.astype(np.float64)
    weight = model[f"cluster_head.{head}.weight"].double().numpy()
    cosines = (x @ weight.T) / np.linalg.norm(weight, axis=1) / np.linalg.norm(x, axis=1)[:, None]
    clusters = cosines.argmax(axis=1)
    distances = oracle.neighbors(features, 20)[0].mean(axis=1)
    return clusters, distances, slow_picks(clusters.tolist(), -distances, budget, by_size=True)
