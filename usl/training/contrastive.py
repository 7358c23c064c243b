"""Self-supervised losses: SimCLR's NT-Xent and cross-level discrimination (CLD)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from usl.selection.kmeans import kmeans


def nt_xent(z: Tensor, other: Tensor, temperature: float) -> Tensor:
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
    """Group the embeddings of a batch by k-means.

    Parameters
    ----------
    z : Tensor (n, D), rows of length 1
    count : int
    seed : int
        Of the first centroids.

    Returns
    -------
    labels : Tensor (n,), int64
    centroids : Tensor (count, D)
        Of length 1, without gradient.
    """
    found = kmeans(z.detach().float(), count, seed=seed, iterations=20, alive=count, quiet=True)
    return found.labels.to(z.device), F.normalize(found.centroids).to(z)


def cross_level(
    z: Tensor,
    other: Tensor,
    temperature: float,
    grouped: tuple[Tensor, Tensor],
    other_grouped: tuple[Tensor, Tensor],
) -> Tensor:
    """Cross-level discrimination: each view must find the groups of the other.

    Wang, Liu and Yu, "Unsupervised Feature Learning by Cross-Level Instance-Group
    Discrimination", CVPR 2021, Eq. 3: the embedding of an image in one view is compared with the
    centroids of the groups in the other view, and must be nearest to that of its own image's group.

    Parameters
    ----------
    z, other : Tensor (n, D), rows of length 1
        Group features of the two views.
    temperature : float
    grouped, other_grouped : (labels, centroids)
        Of ``z`` and of ``other``, from :func:`groups`.

    Returns
    -------
    Tensor, scalar
        Mean over the images and the two directions.
    """
    (labels, centroids), (other_labels, other_centroids) = grouped, other_grouped
    forth = F.cross_entropy(z @ other_centroids.T / temperature, other_labels)
    back = F.cross_entropy(other @ centroids.T / temperature, labels)
    return (forth + back) / 2
