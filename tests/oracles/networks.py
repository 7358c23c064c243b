"""Forward passes in training mode, from the structure as published, without modules."""

import torch
from torch.nn import functional as F


def wide_resnet_logits(weights, x, blocks):
    """The forward pass in training mode, from the structure as published, without modules."""

    def norm(x, name):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]
        return torch.where(x > 0, x, 0.1 * x)

    x = F.conv2d(x, weights["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for number in range(blocks):
            name = f"block{stage}.layer.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            into, out = weights[f"{name}.conv1.weight"].shape[1::-1]
            if into == out:
                shortcut, seen = x, norm(x, f"{name}.bn1")
            else:
                # Activated before the shortcut in the first stage, not at all in the others.
                seen = norm(x, f"{name}.bn1") if stage == 1 else x
                shortcut = F.conv2d(seen, weights[f"{name}.convShortcut.weight"], stride=stride)
            seen = F.conv2d(seen, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            seen = norm(seen, f"{name}.bn2")
            x = shortcut + F.conv2d(seen, weights[f"{name}.conv2.weight"], padding=1)
    x = norm(x, "bn1").mean((2, 3))
    return x @ weights["fc.weight"].T + weights["fc.bias"]


def small_resnet_features(weights, x):
    """The small ResNet in training mode, from its structure, without modules."""

    def norm(x, name):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        scale, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return x * scale + shift

    x = norm(F.conv2d(x, weights["conv1.weight"], stride=2, padding=1), "bn1").clamp_min(0)
    for stage in (1, 2, 3, 4):
        name, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        out = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
        out = norm(out, f"{name}.bn1").clamp_min(0)
        out = norm(F.conv2d(out, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stage > 1:
            x = F.conv2d(x, weights[f"{name}.shortcut.0.weight"], stride=stride)
            x = norm(x, f"{name}.shortcut.1")
        x = (out + x).clamp_min(0)
    # 2×2 positions, each kept.
    return x.flatten(1).numpy()


def simclr_logits(weights, x, blocks, *, selective, small, training=True):
    """Fine-tuning's SimCLRv2 network from its structure as published, without modules.

    ``weights`` of ``model``, ``head`` and ``linear``; statistics of the batch, or the running ones.
    """

    def norm(x, name):
        dims = (0, *range(2, x.ndim))
        mean, variance = x.mean(dims), x.var(dims, unbiased=False)
        if not training:
            mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        parts = (mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"])
        mean, variance, scale, shift = (part.view(-1, *[1] * (x.ndim - 2)) for part in parts)
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def conv(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def mixed(x, name, stride):
        x = norm(conv(x, f"{name}.main_conv.0", stride), f"{name}.main_conv.1.0").relu()
        one, two = x.chunk(2, dim=1)
        mean = (one + two).mean((2, 3), keepdim=True)
        mean = norm(conv(mean, f"{name}.mixing_conv.0"), f"{name}.mixing_conv.1.0").relu()
        first, second = conv(mean, f"{name}.mixing_conv.2").chunk(2, dim=1)
        share = torch.sigmoid(first - second)
        return one * share + two * (1 - share)

    if small:
        x = norm(conv(x, "model.net.0.0"), "model.net.0.1.0").relu()
    elif selective:
        for number, stride in ((0, 2), (2, 1), (4, 1)):
            x = conv(x, f"model.net.0.{number}", stride)
            x = norm(x, f"model.net.0.{number + 1}.0").relu()
    else:
        x = norm(conv(x, "model.net.0.0", 2), "model.net.0.1.0").relu()
    if not small:
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2)
    for stage, count in enumerate(blocks, start=1):
        for number in range(count):
            name = f"model.net.{stage}.blocks.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            shortcut = x
            if number == 0 and selective:
                # Zeros to the right and below count in the mean of four.
                padded = F.pad(x, (0, 1, 0, 1))
                corners = [padded[..., i:, j:][..., : x.shape[2], : x.shape[3]]
                           for i in (0, 1) for j in (0, 1)]  # fmt: skip
                shortcut = (sum(corners) / 4)[..., ::stride, ::stride]
                shortcut = conv(shortcut, f"{name}.projection.shortcut.2")
            elif number == 0:
                shortcut = conv(x, f"{name}.projection.shortcut", stride)
            if number == 0:
                shortcut = norm(shortcut, f"{name}.projection.bn.0")
            out = norm(conv(x, f"{name}.net.0"), f"{name}.net.1.0").relu()
            if selective:
                out = mixed(out, f"{name}.net.2", stride)
                last = 3
            else:
                out = norm(conv(out, f"{name}.net.2", stride), f"{name}.net.3.0").relu()
                last = 4
            out = norm(conv(out, f"{name}.net.{last}"), f"{name}.net.{last + 1}.0")
            x = (shortcut + out).relu()
    x = norm(x.mean((2, 3)) @ weights["head.layers.0.weight"].T, "head.layers.1").relu()
    return x @ weights["linear.weight"].T + weights["linear.bias"]
