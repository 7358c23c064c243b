"""A small supervised training."""

import torch
from helpers import CPU, labelled, preprocess, small_backbone, tiny_images

from usl.augment.moco import MocoTransform
from usl.augment.views import Views
from usl.models.classifier import Classifier
from usl.training.loop import Plan, fit
from usl.training.supervised import LabelledViews, supervised_step


def train(network, *, epochs=2, repeats=6, data=None):
    data, chosen = data or tiny_images(40), (3, 8, 1, 30)
    views = Views(data, preprocess(data, "SCAN-cifar10"), device=CPU)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)
    plan = Plan(epochs=epochs, batch_size=8, lr=0.1, schedule="constant", seed=5)
    step = supervised_step(LabelledViews(views, MocoTransform(), labelled(data, *chosen), seed=5))
    images = repeats * len(chosen)
    return fit(network, step, optimizer, plan, images=images, device=CPU)


def outcome():
    """Losses and weights after an epoch."""
    network = Classifier(small_backbone(), 64, 3, cld=True)
    network.freeze_backbone()
    trained = train(network, epochs=1)
    weights = [w.double().flatten().tolist() for w in trained.network.state_dict().values()]
    return [trained.metrics["loss"].tolist(), weights]
