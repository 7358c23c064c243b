"""Self-supervised losses: SimCLR's NT-Xent and cross-level discrimination (CLD)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from usl import distributed

# Of k-means in a batch.
ITERATIONS = 20


def nt_xent(z: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views (SimCLR, ICML 2020, Eq. 1).

    Each of the 2n embeddings must find its other view among the 2n - 1 others.

    Parameters
    ----------
    z, other : Tensor (n, D), rows of length 1
    temperature : float

    Returns
    -------
    Tensor, scalar
        Mean over the 2n embeddings.
    """
    both = torch.cat([z, other])
    similarity = both @ both.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    n = len(z)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


def groups(z: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Group the embeddings of a batch, view by view, by k-means in float32 on their device.

    The main process groups for all: each sees the same labels, whatever its device rounds to.

    Parameters
    ----------
    z : Tensor (v, n, D), rows of length 1
        Of v views.
    count : int
        Groups of each view.
    seed : int
        Of the first centroids, which are embeddings.

    Returns
    -------
    labels : Tensor (v, n), int64
    centroids : Tensor (v, count, D)
        Of length 1, without gradient. A group that empties keeps the centroid it had.
    """
    z = z.detach().float()
    first = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(seed))[:count]
    centroids = z[:, first.to(z.device)]
    labels = z.new_zeros(z.shape[:2], dtype=torch.int64)
    if distributed.rank() == 0:
        for _ in range(ITERATIONS):
            labels = _nearest(z, centroids)
            members = F.one_hot(labels, count).to(z)
            sizes = members.sum(dim=1)[..., None]
            means = members.transpose(1, 2) @ z / sizes.clamp_min(1)
            centroids = torch.where(sizes > 0, means, centroids)
        labels = _nearest(z, centroids)
        centroids = F.normalize(centroids, dim=2).contiguous()
    distributed.from_main(labels, centroids)
    return labels, centroids


def _nearest(z: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each embedding, view by view, (v, n)."""
    lengths = centroids.pow(2).sum(dim=2)[:, None]
    return (lengths - 2 * z @ centroids.transpose(1, 2)).argmin(dim=2)


def cross_level(
    z: Tensor,
    other: Tensor,
    grouped: tuple[Tensor, Tensor],
    *,
    temperature: float,
) -> Tensor:
    """Cross-level discrimination: each view must find the groups of the other.

    Wang, Liu and Yu, "Unsupervised Feature Learning by Cross-Level Instance-Group
    Discrimination", CVPR 2021, Eq. 3: the embedding of an image in one view is compared with the
    centroids of the groups in the other view, and must be nearest to that of its own image's group.

    Parameters
    ----------
    z, other : Tensor (n, D), rows of length 1
        Group features of the two views.
    grouped : (labels, centroids)
        Of ``z`` and ``other``, (2, n) and (2, count, D), from :func:`groups`.
    temperature : float

    Returns
    -------
    Tensor, scalar
        Mean over the images and the two directions.
    """
    (labels, other_labels), (centroids, other_centroids) = grouped
    forth = F.cross_entropy(z @ other_centroids.T / temperature, other_labels)
    back = F.cross_entropy(other @ centroids.T / temperature, labels)
    return (forth + back) / 2
