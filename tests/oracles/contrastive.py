"""Contrastive losses, term by term."""

import torch


def nt_xent(z, other, temperature):
    rows = [*z, *other]
    n, total = len(z), 0.0
    for i in range(2 * n):
        pair = (i + n) % (2 * n)
        below = sum(torch.exp(rows[i] @ rows[j] / temperature) for j in range(2 * n) if j != i)
        total = total - torch.log(torch.exp(rows[i] @ rows[pair] / temperature) / below)
    return total / (2 * n)


def cross_level(z, other, temperature, grouped, other_grouped):
    total = 0.0
    for mine, (labels, centroids) in ((z, other_grouped), (other, grouped)):
        for i in range(len(mine)):
            scores = [torch.exp(mine[i] @ c / temperature) for c in centroids]
            total = total - torch.log(scores[labels[i]] / sum(scores))
    return total / (2 * len(z))
