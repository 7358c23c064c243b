"""Every setting of a training of USL-T: the published ones, and where each goes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import CLUSTERS, FOLDER_PRETRAIN, PRETRAIN, folder_pretraining, pretraining
from helpers import preprocess, settings
from oracles.uslt_losses import PUBLISHED, Setting, global_options

from usl.augment.moco import MocoTransform
from usl.augment.randaugment import ScanTransform
from usl.augment.rng import permutation
from usl.data import datasets
from usl.encoders.preprocess import NORMALIZATION
from usl.inference import extract
from usl.models.resnet_cifar import PretextEncoder, small_resnet
from usl.training.uslt import Reassignment, Weights

pytestmark = pytest.mark.usefixtures("no_pictures")
# What a config's name begins with; epochs, batch and clusters; what reassigns.
TRAINED = {
    "cifar10": ("cifar10", (200, 1024, 40), None),
    "cifar100": ("cifar100", (200, 1024, 400), None),
    "imagenet100": ("ImageNet100", (100, 2048, 400), (124, 50, 500)),
    "imagenet": ("ImageNet", (10, 2048, 3000), (1250, 100, 1000)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configs_have_the_settings_of_the_table(name):
    stem, expected, moved = TRAINED[name]
    cfg = settings(FOLDER_PRETRAIN if moved else PRETRAIN, "--cfg", f"{stem}_usl-t_pretrain.yaml")
    u, optimizer = cfg.USLT_PRETRAIN, cfg.OPTIMIZER
    assert PUBLISHED[name] == Setting(
        u.LOCAL_LOSS_SCALE, u.ADJUSTMENT_WEIGHT, u.SHARPEN_TEMPERATURE, u.CONFIDENCE_THRESHOLD,
        u.REWEIGHT, u.REWEIGHT_RENORM, u.MEAN_OUTSIDE_MASK,
    )  # fmt: skip
    found = (cfg.EPOCHS, cfg.DATALOADER.BATCH_SIZE, u.NUM_SELECTED_SAMPLES)
    assert found == expected
    assert (optimizer.NAME, optimizer.LR, optimizer.WEIGHT_DECAY) == ("Adam", 1e-4, 1e-4)
    assert (cfg.SCHEDULE, cfg.WARMUP_EPOCHS) == ("constant", 0)
    assert (u.EMA_DECAY, cfg.SEED, u.NUM_NEIGHBORS) == (0, 42, 20)
    # Both losses from the first epoch to the last.
    assert u.GLOBAL_START_EPOCH == 0 and cfg.EPOCHS <= u.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH
    assert u.UPDATE_HEAD_ONLY is bool(moved)
    if moved:
        found = (u.REASSIGN_AFTER_STEPS, u.COUNT_EMA_MIN_TH, u.COUNT_EMA_MAX_TH)
        assert found == moved


class Stop(Exception):
    pass


@pytest.fixture
def called(monkeypatch):
    """With what the training is called, which then does not begin."""
    seen = SimpleNamespace()

    def record(name, names, result=None):
        def call(*args, **options):
            setattr(seen, name, SimpleNamespace(**dict(zip(names, args, strict=True)), **options))
            if result is None:
                raise Stop
            return result

        monkeypatch.setattr(f"usl.stages.uslt_train.{name}", call)

    record("uslt_step", ["views", "transform", "neighbors", "local", "whole", "weights"], "step")
    record("reassigning", ["network", "whole", "reassignment"], "after")
    record("fit", ["network", "step", "optimizer", "plan"])
    return seen


SETTINGS = {
    "USLT_PRETRAIN.ADJUSTMENT_WEIGHT": 1.5, "USLT_PRETRAIN.SHARPEN_TEMPERATURE": 0.75,
    "USLT_PRETRAIN.LOCAL_LOSS_SCALE": 3.5, "USLT_PRETRAIN.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH": 7.0,
    "USLT_PRETRAIN.GLOBAL_START_EPOCH": 2, "USLT_PRETRAIN.CONFIDENCE_THRESHOLD": 0.35,
    "USLT_PRETRAIN.EMA_DECAY": 0.6, "USLT_PRETRAIN.NUM_NEIGHBORS": 3, "OPTIMIZER.LR": 2e-3,
    "OPTIMIZER.WEIGHT_DECAY": 3e-3, "AUGMENT.FLIP": 0.25, "SEED": 9, "SCHEDULE": "cosine",
    "WARMUP_EPOCHS": 2, "EPOCHS": 11, "EVALUATE_EVERY": 5, "CHECKPOINT_STEPS": 4, "ACCUMULATE": 2,
    "PRECISION": "bfloat16",
}  # fmt: skip


def check_called(called, *, images, batch, options):
    """Every one of SETTINGS is where it belongs."""
    fit, step = called.fit, called.uslt_step
    assert step.weights == Weights(local=3.5, local_until=7.0, global_from=2) and step.seed == 9
    assert (step.local.adjustment, step.local.temperature) == (1.5, 0.75)
    assert step.whole.options == options and step.neighbors.shape == (images, 4)
    group = fit.optimizer.param_groups[0]
    assert (type(fit.optimizer), group["lr"], group["weight_decay"]) == (
        torch.optim.Adam,
        2e-3,
        3e-3,
    )
    trained = [p for p in fit.network.parameters() if p.requires_grad]
    assert [id(p) for p in group["params"]] == [id(p) for p in trained]
    assert fit.step == "step" and fit.resume and fit.images == images
    assert vars(fit.plan) == vars(
        replace(
            fit.plan, epochs=11, batch_size=batch, lr=2e-3, warmup=2 * (images // batch),
            schedule="cosine", accumulate=2, precision="bfloat16", ema=0.6, save_every=4,
            evaluate_every=5, seed=9, stop=0, steps=0,
        )
    )  # fmt: skip
    assert fit.extras["criterion_local"] is step.local
    assert fit.extras["criterion_global"] is step.whole
    assert fit.evaluate is fit.extras["val_predictions"] and fit.evaluate.threshold == 0.35


def test_every_setting_reaches_the_training(chained, tiny_cifar, tmp_path, script, called):
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    flags = {"REWEIGHT": False, "REWEIGHT_RENORM": True, "MEAN_OUTSIDE_MASK": False}
    changed = SETTINGS | {f"USLT_PRETRAIN.{key}": value for key, value in flags.items()}
    argv = (word for pair in changed.items() for word in pair)
    with pytest.raises(Stop):
        script(PRETRAIN, *pretraining(tiny_cifar, neighbors, tmp_path), *argv)
    check_called(called, images=80, batch=16, options=global_options(0.35, False, True, False))
    transform = called.uslt_step.transform
    assert transform == ScanTransform(flip=0.25, fill=NORMALIZATION["SCAN-cifar10"][0])
    assert called.fit.after_step is None and called.uslt_step.whole.images == 0
    # Linear heads on a backbone that is trained as well, from its checkpoint.
    network, pretext = called.fit.network, torch.load(tiny_cifar / "pretext.pth.tar")
    assert not network.frozen and all(p.requires_grad for p in network.parameters())
    assert torch.equal(network.backbone.conv1.weight, pretext["module.backbone.conv1.weight"])
    assert [head.bias.shape for head in network.cluster_head] == [(CLUSTERS,)] * 3


def test_every_setting_reaches_the_training_on_a_folder(small_folder, tmp_path, script, called):
    flags = {"REWEIGHT": True, "REWEIGHT_RENORM": False, "MEAN_OUTSIDE_MASK": True}
    moved = {"REASSIGN_AFTER_STEPS": 6, "COUNT_EMA_MIN_TH": 8, "COUNT_EMA_MAX_TH": 10}
    changed = SETTINGS | {f"USLT_PRETRAIN.{k}": v for k, v in (flags | moved).items()}
    argv = (word for pair in changed.items() for word in pair)
    with pytest.raises(Stop):
        script(FOLDER_PRETRAIN, *folder_pretraining(small_folder, tmp_path), *argv)
    check_called(called, images=36, batch=12, options=global_options(0.35, True, False, True))
    assert called.uslt_step.transform == MocoTransform(size=32, flip=0.25)
    whole, network = called.uslt_step.whole, called.fit.network
    assert called.fit.after_step == "after" and called.reassigning.seed == 9
    assert called.reassigning.reassignment == Reassignment(after=6, low=8, high=10)
    assert called.reassigning.whole is whole and whole.images == 36
    assert called.reassigning.network is network and network.frozen

    # Cosine heads start from the features of the first images that will be seen.
    images = datasets.open_dataset("folder", small_folder)
    seen = preprocess(images, "imagenet100")
    encoder = PretextEncoder(**small_resnet(2, 10)).eval()
    encoder.load_state_dict(torch.load(small_folder / "pretext.pth.tar"))
    features = extract(encoder, images, preprocess=seen, batch_size=36)
    first = features[permutation(36, seed=9, epoch=0)[:15].numpy()]
    weights = torch.cat([head.weight for head in network.cluster_head]).detach().numpy()
    np.testing.assert_allclose(weights, first, rtol=1e-4, atol=1e-5)
