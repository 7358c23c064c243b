"""A small contrastive pretraining."""

import torch
from helpers import CPU, disturbed, preprocess, tiny_images

from usl.augment.moco import MocoTransform
from usl.augment.views import Views
from usl.encoders.registry import new_network
from usl.training.loop import Plan, fit
from usl.training.pretraining import Contrast, PretrainingEvaluator, contrastive_step


def pretrain(folder, *, cld=False, die_at=None, epochs=2, precision="float32"):
    data = tiny_images(48, seed=0)
    torch.manual_seed(0)
    network = new_network("SmallResNet", 2, 10, cld=cld)
    views, transform = Views(data, preprocess(data), device=CPU), MocoTransform()
    make = contrastive_step(views, transform, Contrast(cld=cld, groups=4), seed=5)
    return fit(
        network, disturbed(make, die_at=die_at),
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        Plan(epochs=epochs, batch_size=16, lr=0.1, seed=5, precision=precision),
        images=48, device=CPU, folder=folder,
        evaluate=PretrainingEvaluator(data, data, views, transform, seed=5, batch_size=16),
    )  # fmt: skip


def outcome(cld):
    """Losses, and the first of all weights, after an epoch."""
    trained = pretrain(None, cld=cld, epochs=1)
    state = trained.network.state_dict()
    weights = {k: v.double().flatten()[:50].tolist() for k, v in state.items()}
    return [trained.metrics["loss"].tolist(), weights]
