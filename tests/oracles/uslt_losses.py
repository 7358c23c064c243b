"""The losses of USL-T once more, slowly, image by image and cluster by cluster."""

import math
from dataclasses import dataclass

import torch

from usl.training.uslt_losses import GlobalOptions


def global_options(threshold, reweight, renormalise, outside):
    """Options of the global loss in the order of the table."""
    return GlobalOptions(
        threshold=threshold,
        reweight=reweight,
        renormalise=renormalise,
        mean_outside_mask=outside,
    )


@dataclass(frozen=True)
class Setting:
    """A column of the table of method.md, section 5."""

    scale: float
    adjustment: float
    temperature: float
    threshold: float
    reweight: bool
    renormalise: bool
    outside: bool

    def options(self):
        return global_options(self.threshold, self.reweight, self.renormalise, self.outside)


PUBLISHED = {
    "cifar10": Setting(5, 5, 0.25, 0.95, True, False, False),
    "cifar100": Setting(5, 5, 0.25, 0.95, True, False, True),
    "imagenet100": Setting(0.5, 2.5, 0.5, 0, False, True, True),
    "imagenet": Setting(0.5, 2.5, 0.5, 0, False, False, True),
}


def slow_softmax(row):
    powers = [math.exp(x) for x in row]
    return [p / sum(powers) for p in powers]


def slow_log_softmax(row, c):
    return row[c] - torch.log(sum(torch.exp(x) for x in row))


class Slow:
    """Both losses and their averages, image by image and cluster by cluster, in float64."""

    def __init__(self, heads, clusters, images, setting):
        self.images, self.setting = images, setting
        self.prob = [[1 / clusters] * clusters for _ in range(heads)]
        self.count = [[1 / clusters] * clusters for _ in range(heads)]

    def whole(self, w, s):
        """(n, H, C) twice; the sum over heads."""
        total = 0.0 * s.sum()
        for head in range(len(self.count)):
            total = total + self._whole(w[:, head].tolist(), s[:, head], head)
        return total

    def _whole(self, w, s, head):
        clusters, chosen = s.shape[1], []
        for i, row in enumerate(w):
            p = slow_softmax(row)
            if max(p) > self.setting.threshold:
                chosen.append((i, p.index(max(p))))
        if not chosen:
            return 0.0
        counts = [sum(t == c for _, t in chosen) for c in range(clusters)]
        present = sum(count > 0 for count in counts)
        weights = [1.0] * clusters
        for c, count in enumerate(counts):
            if count and self.setting.renormalise:
                weights[c] = len(chosen) / (present * count)
            elif count and self.setting.reweight:
                weights[c] = len(chosen) / count
        for c, count in enumerate(counts):
            share = count / len(chosen) * self.images
            self.count[head][c] = 0.9 * self.count[head][c] + 0.1 * share
        summed = sum(-weights[t] * slow_log_softmax(s[i], t) for i, t in chosen)
        return summed / (len(w) if self.setting.outside else sum(weights[t] for _, t in chosen))

    def local(self, s, n):
        """(n, H, C) twice; the sum over heads."""
        return sum(
            self._local(s[:, head], n[:, head].tolist(), head) for head in range(len(self.prob))
        )

    def _local(self, s, n, head):
        prob, total = self.prob[head], 0.0
        for i, row in enumerate(n):
            logs = [math.log(p) for p in prob]
            q = slow_softmax(
                [x - self.setting.adjustment * log for x, log in zip(row, logs, strict=True)]
            )
            sharp = [x ** (1 / self.setting.temperature) for x in q]
            for c, x in enumerate(sharp):
                if x > 0:
                    t = x / sum(sharp)
                    total = total + t * (math.log(t) - slow_log_softmax(s[i], c))
        predictions = [slow_softmax(row) for row in n]
        now = [sum(p[c] for p in predictions) / len(n) for c in range(len(prob))]
        mixed = [0.5 * a + 0.5 * b for a, b in zip(prob, now, strict=True)]
        self.prob[head] = [x / sum(mixed) for x in mixed]
        return total / len(n)
