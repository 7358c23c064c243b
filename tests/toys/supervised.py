"""A small supervised training, and tests whose answers are known."""

from dataclasses import replace

import numpy as np
import torch
from helpers import CPU, labelled, preprocess, small_backbone, tiny_images

from usl.augment.moco import MocoTransform
from usl.augment.views import Views
from usl.data.datasets import ImageDataset
from usl.encoders.preprocess import Preprocess
from usl.models.classifier import Classifier
from usl.training.loop import Plan, fit
from usl.training.supervised import AccuracyEvaluator, LabelledViews, supervised_step


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


class Fixed(torch.nn.Module):
    """Logits that do not depend on the image but on its first pixel, which is its number."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits[(x[:, 0, 0, 0] * 255).round().long()]


def numbered(count):
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 32, 32, 3)
    )
    return ImageDataset("numbered", "test", images.copy(), np.zeros(count, np.int64), ("a",))


def plain_preprocess(data):
    return Preprocess(data.side, data.side)


def accuracy_in_parts(*counts):
    """What each process knows of so many test images, of which it saw its part."""
    return [_accuracy_in_parts(count) for count in counts]


def _accuracy_in_parts(count):
    data = replace(numbered(count), labels=np.arange(count) % 3, classes=tuple("abc"))
    evaluator = AccuracyEvaluator(data, plain_preprocess(data), batch_size=4, device=CPU)
    found = evaluator(Fixed(np.eye(3, dtype=np.float32)[np.arange(count) // 2 % 3]))
    return found["accuracy"], evaluator.by_class(None).tolist(), len(evaluator.test)
