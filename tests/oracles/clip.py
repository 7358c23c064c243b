"""The image tower of CLIP by hand, from the names of OpenAI's weights (Radford et al., 2021)."""

import torch
from torch.nn import functional as F


def _norm(x, weights, name):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def _linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _block(x, weights, name, heads):
    n, tokens, width = x.shape
    y = _norm(x, weights, f"{name}.ln_1")
    joint = y @ weights[f"{name}.attn.in_proj_weight"].T + weights[f"{name}.attn.in_proj_bias"]
    q, k, v = (part.view(n, tokens, heads, -1).transpose(1, 2) for part in joint.chunk(3, dim=-1))
    share = (q @ k.transpose(-1, -2) / (width / heads) ** 0.5).softmax(dim=-1)
    y = (share @ v).transpose(1, 2).reshape(n, tokens, width)
    x = x + _linear(y, weights, f"{name}.attn.out_proj")
    y = _linear(_norm(x, weights, f"{name}.ln_2"), weights, f"{name}.mlp.c_fc")
    y = y * torch.sigmoid(1.702 * y)
    return x + _linear(y, weights, f"{name}.mlp.c_proj")


def embed(images, weights, *, heads, projected=True):
    """Images (n, 3, 224, 224), normalised, to features (n, 512) or (n, width)."""
    x = F.conv2d(images, weights["conv1.weight"], stride=weights["conv1.weight"].shape[-1])
    x = x.flatten(2).transpose(1, 2)
    first = weights["class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + weights["positional_embedding"]
    x = _norm(x, weights, "ln_pre")
    depth = len({name.split(".")[2] for name in weights if ".resblocks." in name})
    for number in range(depth):
        x = _block(x, weights, f"transformer.resblocks.{number}", heads)
    x = _norm(x[:, 0], weights, "ln_post")
    return x @ weights["proj"] if projected else x


def made_up(width=768, depth=12, patch=32, out=512, seed=0):
    """Random weights of the size of ViT-B/32, under OpenAI's names."""
    key = torch.Generator().manual_seed(seed)

    def random(*shape, scale=0.02):
        return torch.randn(*shape, generator=key) * scale

    weights = {
        "class_embedding": random(width),
        "positional_embedding": random((224 // patch) ** 2 + 1, width),
        "proj": random(width, out, scale=0.05),
        "conv1.weight": random(width, 3, patch, patch),
    }
    for name in ("ln_pre", "ln_post"):
        weights |= {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}
    for number in range(depth):
        block = f"transformer.resblocks.{number}"
        weights |= {
            f"{block}.attn.in_proj_weight": random(3 * width, width),
            f"{block}.attn.in_proj_bias": random(3 * width),
            f"{block}.attn.out_proj.weight": random(width, width),
            f"{block}.attn.out_proj.bias": random(width),
            f"{block}.mlp.c_fc.weight": random(4 * width, width),
            f"{block}.mlp.c_fc.bias": random(4 * width),
            f"{block}.mlp.c_proj.weight": random(width, 4 * width),
            f"{block}.mlp.c_proj.bias": random(width),
        }
        for name in ("ln_1", "ln_2"):
            weights |= {
                f"{block}.{name}.weight": 1 + random(width),
                f"{block}.{name}.bias": random(width),
            }
    return weights
