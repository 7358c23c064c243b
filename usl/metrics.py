"""What picks are worth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

# Similarities that are in memory at a time.
ENTRIES = 2**27


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


def weighted_knn(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of the weighted nearest-neighbour vote (Wu et al., CVPR 2018, section 3.4).

    The ``k`` training images of highest cosine similarity s vote, each with exp(s / temperature).

    Parameters
    ----------
    train : Tensor (N, D), rows of any length
    labels : Tensor (N,), int64
    test : Tensor (M, D)
    test_labels : Tensor (M,), int64
    k : int
        At most N.
    temperature : float

    Returns
    -------
    float
        Percent correct.
    """
    train, test = F.normalize(train.float()), F.normalize(test.float())
    classes = int(labels.max()) + 1
    correct = 0
    step = max(1, min(1000, ENTRIES // len(train)))
    for start in range(0, len(test), step):
        similarity, nearest = (test[start : start + step] @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(nearest), classes, device=train.device)
        votes.scatter_add_(1, labels[nearest], torch.exp(similarity / temperature))
        correct += int((votes.argmax(dim=1) == test_labels[start : start + step]).sum())
    return 100.0 * correct / len(test)


def alignment(z: Tensor, other: Tensor) -> float:
    """Mean squared distance between two views, rows of length 1 (Wang and Isola, ICML 2020)."""
    return float((z - other).pow(2).sum(dim=1).mean())


def uniformity(z: Tensor) -> float:
    """Log mean exp(-2 d²) over pairs of rows of length 1; 0 when all are one point (ibid.)."""
    return float(torch.pdist(z).pow(2).mul(-2).exp().mean().log())


def effective_rank(z: Tensor) -> float:
    """Exp of the entropy of the singular values: how many dimensions are in use.

    Roy and Vetterli, EUSIPCO 2007. 1 when all features lie on one line through the origin.
    """
    spectrum = torch.linalg.svdvals(z.double())
    share = spectrum / spectrum.sum()
    return float(torch.special.entr(share).sum().exp())


def majority_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Percent right if every cluster, (N,), were given the commonest of its labels, (N,)."""
    counts = pd.crosstab(clusters, labels)
    return 100.0 * float(counts.max(axis=1).sum()) / len(labels)


def cluster_summary(
    clusters: np.ndarray,
    confidence: np.ndarray,
    mean_prediction: np.ndarray,
    *,
    threshold: float,
    labels: np.ndarray | None = None,
) -> dict[str, float]:
    """How a clustering head is doing.

    Parameters
    ----------
    clusters : ndarray (N,), int
    confidence : ndarray (N,)
        Largest probability of every image.
    mean_prediction : ndarray (C,)
        Mean probability of every cluster.
    threshold : float
        Confidence above which an image counts in training.
    labels : ndarray (N,), int, optional
        For majority-vote accuracy (percent), normalised mutual information and adjusted Rand index
        (scikit-learn).

    Returns
    -------
    dict
        ``nonempty`` clusters, ``largest`` and ``smallest`` of all C, ``above``: the share of
        confident images, ``confidence``: its mean, ``entropy`` of the mean prediction in nats; with
        labels ``macc``, ``nmi``, ``ari``.
    """
    sizes = np.bincount(clusters, minlength=len(mean_prediction))
    share = np.asarray(mean_prediction, dtype=np.float64)
    found = {
        "nonempty": float((sizes > 0).sum()),
        "largest": float(sizes.max()),
        "smallest": float(sizes.min()),
        "above": float((confidence > threshold).mean()),
        "confidence": float(confidence.mean()),
        "entropy": float(-(share * np.log(np.maximum(share, 1e-300))).sum()),
    }
    if labels is not None:
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        found["macc"] = majority_accuracy(clusters, labels)
        found["nmi"] = float(normalized_mutual_info_score(labels, clusters))
        found["ari"] = float(adjusted_rand_score(labels, clusters))
    return found
