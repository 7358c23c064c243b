"""The losses of USL-T against a slow oracle."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import close
from oracles.uslt_losses import PUBLISHED, Setting, Slow, global_options

from usl.training.uslt_losses import (
    GlobalCriterion,
    GlobalOptions,
    LocalCriterion,
    global_loss,
    local_loss,
)


@pytest.fixture
def double():
    """Everything is float64, so that the comparison can be strict."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def logits(seed, n=14, clusters=5):
    """Logits of three heads: sure, hardly sure, and sure of few clusters."""
    x = torch.randn(n, 3, clusters, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([4.0, 1.0, 6.0])[:, None]


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_gradients_and_averages_equal_the_oracle(double, name):
    setting = PUBLISHED[name]
    slow = Slow(3, 5, 1000, setting)
    whole = GlobalCriterion(3, 5, setting.options(), images=1000)
    local = LocalCriterion(3, 5, adjustment=setting.adjustment, temperature=setting.temperature)
    for step in range(5):
        w, s, n = (logits(10 * step + view).requires_grad_() for view in range(3))
        if step == 2:
            # Nothing is confident in this step, of any head.
            w = (w.detach() * 1e-3).requires_grad_()
        for fast, other in (
            (whole(w, s), slow.whole(w, s)),
            (setting.scale * local(s, n), setting.scale * slow.local(s, n)),
        ):
            close(fast, other)
            ours = torch.autograd.grad(fast, [s, w, n], allow_unused=True)
            assert ours[1] is None and ours[2] is None
            close(ours[0], torch.autograd.grad(other, s)[0])
        if step == 2 and setting.threshold:
            assert whole(w, s) == 0
            whole.num_counts -= 1
        close(local.prob_ema, slow.prob)
        close(whole.count_ema, slow.count)
        assert whole.num_counts.tolist() == [step + 1]


@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("threshold", [0, 0.4, 0.95, 0.999999])
def test_every_form_of_the_global_loss(double, reweight, renormalise, outside, threshold):
    setting = Setting(1, 0, 1, threshold, reweight, renormalise, outside)
    for head in range(3):
        w, s = logits(0)[:, head], logits(1)[:, head].requires_grad_()
        slow = Slow(1, 5, 1, setting)
        fast, counts = global_loss(w, s, setting.options())
        close(fast, slow.whole(w[:, None], s[:, None]))
        confidence = w.softmax(dim=1).amax(dim=1)
        assert counts.sum() == (confidence > threshold).sum()


def test_global_loss_by_hand(double):
    # Two images of cluster 0, one of cluster 1, one that is not confident; none of cluster 2.
    w = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0.1, 0, 0]]) * 2
    s = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [5, 0, 0]])
    z = math.log(math.e + 2)
    a, b, c = z - 1, z, z
    for options, expected in (
        ((False, False, False), (a + b + c) / 3),
        ((False, False, True), (a + b + c) / 4),
        ((True, False, False), (1.5 * (a + b) + 3 * c) / 6),
        ((True, False, True), (1.5 * (a + b) + 3 * c) / 4),
        ((False, True, True), (0.75 * (a + b) + 1.5 * c) / 4),
        ((True, True, False), (0.75 * (a + b) + 1.5 * c) / 3),
    ):
        loss, counts = global_loss(w, s, global_options(0.95, *options))
        close(loss, expected)
        assert counts.tolist() == [2, 1, 0]
    # Above the threshold, not at it.
    even = torch.zeros(3, 2)
    assert global_loss(even, torch.randn(3, 2), GlobalOptions(threshold=0.5))[1].tolist() == [0, 0]
    assert global_loss(even, torch.randn(3, 2), GlobalOptions(threshold=0.49))[1].sum() == 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_loss_falls_under_plain_gradient_steps(name):
    setting = PUBLISHED[name]

    def fall(loss):
        s, values = logits(1)[:, 0].requires_grad_(), []
        for _ in range(30):
            value = loss(s)
            values.append(value.item())
            s.data -= 0.3 * torch.autograd.grad(value, s)[0]
        return values

    prob = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    for values in (
        fall(lambda s: global_loss(logits(0)[:, 0], s, setting.options())[0]),
        fall(
            lambda s: local_loss(
                s,
                logits(2)[:, 0],
                prob,
                adjustment=setting.adjustment,
                temperature=setting.temperature,
            )
        ),
    ):
        assert values[0] > 0.1 and all(b < a for a, b in pairwise(values))


def test_a_cluster_that_nobody_predicts_any_more_gives_no_nan():
    local = LocalCriterion(3, 5, adjustment=5, temperature=0.25)
    local.prob_ema[:, 0] = 0
    s = logits(0).requires_grad_()
    loss = local(s, logits(1))
    (gradient,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert torch.isfinite(local.prob_ema).all()
