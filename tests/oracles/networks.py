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
