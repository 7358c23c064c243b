"""Fine-tuning of SimCLRv2 on labelled images: settings, flags and method of ``fine_tune.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from usl.cli import Call, choose_device
from usl.config.flags import Flag
from usl.config.parse import CfgNode
from usl.data.datasets import AnyDataset
from usl.distributed import check_node, launch, launched
from usl.encoders.registry import SIMCLRV2, SMALL, pretrained_simclrv2
from usl.encoders.simclrv2 import size_of
from usl.errors import InputError
from usl.models.classifier import Classifier
from usl.models.simclrv2 import FineTuned, SimclrEncoder
from usl.stages.evaluation import Method, Trial
from usl.stages.finetune import labelled_defaults, steps_of
from usl.stages.inputs import backbone_of, preprocess_of, request_of
from usl.stages.training import moco_transform
from usl.training.lars import Lars
from usl.training.layouts import Layout, simclrv2_layout

# Bytes of a name that files of checkpoints have in theirs.
LONGEST = 200


def simclrv2_defaults() -> CfgNode:
    """Settings of ``semisup-simclrv2/fine_tune.py``."""
    c = labelled_defaults()
    c.DATASET.NAME = "imagenet"
    c.DATALOADER.BATCH_SIZE = 256
    # SimCLRv2, or any encoder, without the first block of a head between it and the classifier.
    c.MODEL.ARCH = SIMCLRV2
    # Outputs of the classifier; 0: the classes of the images.
    c.MODEL.NUM_CLASSES = 0
    # Compute what is inside the blocks of SimCLRv2 again when it is needed: less memory.
    c.MODEL.RECOMPUTE = False
    # Batch norm over the batches of all processes.
    c.MODEL.SYNC_BN = True
    c.EPOCHS = 60
    c.SCHEDULE = "epoch-cosine"
    # LARS; there is no other.
    c.OPTIMIZER.WEIGHT_DECAY = 0.0
    c.FINETUNE.FREEZE_BACKBONE = False
    c.FINETUNE.REPEAT_DATA = 1
    # Processes, one a GPU, that this script starts itself, as the original does; torchrun does it
    # better.
    c.DIST = CfgNode()
    # Start one for each GPU of this machine.
    c.DIST.SPAWN = False
    # Machines, and which of them this is, from 0.
    c.DIST.NODES = 1
    c.DIST.NODE = 0
    # Of the first machine, with a free port.
    c.DIST.URL = "tcp://localhost:10001"
    # nccl or gloo; empty: nccl with GPUs, else gloo.
    c.DIST.BACKEND = ""
    return c


# Those of the original.
FLAGS = (
    Flag(names=("data",), key="DATASET.ROOT_DIR", text="folder with train and val"),
    Flag(names=("--trainindex_x",), key="FINETUNE.LABELED_INDICES_PATH", text="labelled images"),
    Flag(names=("--pretrain",), key="MODEL.PRETRAIN_PATH", text="such as r50_1x_sk0.pth"),
    Flag(names=("--name-to-save",), key="RUN_NAME"),
    Flag(names=("-j", "--workers"), key="DATALOADER.WORKERS", kind=int),
    Flag(names=("-b", "--batch-size"), key="DATALOADER.BATCH_SIZE", kind=int),
    Flag(names=("--epochs",), key="EPOCHS", kind=int),
    Flag(names=("--max-steps",), key="MAX_STEPS", kind=int, text="for trials"),
    Flag(names=("--start-epoch",), key="START_EPOCH", kind=int),
    Flag(names=("--warmup-epochs",), key="WARMUP_EPOCHS", kind=int),
    Flag(names=("--eval-freq",), key="EVALUATE_EVERY", kind=int),
    Flag(names=("-p", "--print-freq"), key="PRINT_FREQ", kind=int),
    Flag(names=("--lr", "--learning-rate"), key="OPTIMIZER.LR", kind=float),
    Flag(names=("--no-lr-decay",), key="SCHEDULE", value="constant"),
    Flag(names=("--momentum",), key="OPTIMIZER.MOMENTUM", kind=float),
    Flag(names=("--wd", "--weight-decay"), key="OPTIMIZER.WEIGHT_DECAY", kind=float),
    Flag(names=("--seed",), key="FINETUNE.SEEDS", kind=int, to=lambda seed: [seed]),
    Flag(names=("--roll-data",), key="FINETUNE.REPEAT_DATA", kind=int),
    Flag(names=("--freeze-backbone",), key="FINETUNE.FREEZE_BACKBONE", value=True),
    Flag(names=("--num-classes",), key="MODEL.NUM_CLASSES", kind=int),
    Flag(names=("--use-checkpoint",), key="MODEL.RECOMPUTE", value=True),
    Flag(names=("--no-syncbn",), key="MODEL.SYNC_BN", value=True, to=lambda value: not value),
    Flag(
        names=("--amp-opt-level",),
        key="PRECISION",
        choices={"O0": "float32", "O1": "auto", "O2": "auto"},
    ),
    Flag(names=("-e", "--evaluate"), key="EVAL_ONLY", value=True, text="test only"),
    Flag(names=("--resume",), key="RESUME", to=lambda path: path or "auto"),
    Flag(names=("--skip-save",), key="SKIP_SAVE", value=True),
    Flag(names=("--multiprocessing-distributed",), key="DIST.SPAWN", value=True),
    Flag(names=("--world-size",), key="DIST.NODES", kind=int, text="machines"),
    Flag(names=("--rank",), key="DIST.NODE", kind=int, text="which of them this is"),
    Flag(names=("--dist-url",), key="DIST.URL"),
    Flag(names=("--dist-backend",), key="DIST.BACKEND"),
    Flag(names=("--gpu",), key="DEVICE", kind=int, to=lambda number: f"cuda:{number}"),
    Flag(names=("--nesterov",), value=True, text="of the original's SGD, not of LARS"),
    Flag(names=("--multi-epochs-data-loader",), value=True, text="threads decode all along"),
    Flag(names=("--use-persistent-workers",), value=True, text="threads decode all along"),
)


def spread(cfg: CfgNode, call: Call) -> bool:
    """Run the script in the processes that the DIST settings ask for; whether that was needed."""
    dist = cfg.DIST
    spawned = dist.SPAWN and choose_device(cfg.DEVICE).type == "cuda"
    per_node = torch.cuda.device_count() if spawned else 1
    check_node(dist.NODE, dist.NODES)
    if launched() or dist.NODES * per_node == 1:
        return False
    launch(call.words, address=dist.URL, nodes=dist.NODES, node=dist.NODE, per_node=per_node)
    return True


def classes_of(cfg: CfgNode, images: AnyDataset) -> int:
    """Outputs of the classifier.

    Raises
    ------
    InputError
        Fewer than the images have classes.
    """
    known, wanted = len(images.classes), cfg.MODEL.NUM_CLASSES
    if wanted and wanted < known:
        raise InputError(
            f"MODEL.NUM_CLASSES is {wanted}, and {images.name} in {cfg.DATASET.ROOT_DIR} has "
            f"{known} classes, with labels up to {known - 1}; choose at least {known}, or 0 for "
            "as many as there are"
        )
    return int(wanted or known)


def network_of(
    cfg: CfgNode, images: AnyDataset
) -> tuple[Callable[[], Classifier | FineTuned], dict[str, str]]:
    """What builds the network of the MODEL settings anew for each seed, and where it comes from."""
    model, classes = cfg.MODEL, classes_of(cfg, images)
    if model.ARCH != SIMCLRV2:
        backbone, dim, source = backbone_of(cfg, images)
        return lambda: Classifier(copy.deepcopy(backbone), dim, classes), source
    if not model.PRETRAIN_PATH:
        if not model.SIZE:
            raise InputError(
                "MODEL.PRETRAIN_PATH is empty; give a checkpoint such as r50_1x_sk0.pth, or to "
                "start untrained a MODEL.SIZE"
            )
        size = size_of(model.SIZE)
        small = preprocess_of(cfg, images).side <= SMALL
        untrained = {"architecture": SIMCLRV2, "size": str(size)}
        return lambda: FineTuned(SimclrEncoder(size, small_images=small), classes), untrained
    pretrained, source = pretrained_simclrv2(request_of(cfg, images))
    return lambda: FineTuned(copy.deepcopy(pretrained), classes), source


def method_of(cfg: CfgNode, images: AnyDataset) -> tuple[Method, dict[str, str]]:
    """Fine-tuning as the settings describe it, and where its network comes from."""
    name = "_" + (cfg.RUN_NAME or Path(cfg.RUN_DIR).name).replace("/", "-")
    if len(name.encode()) > LONGEST:
        raise InputError(f"RUN_NAME is {len(name) - 1} characters long; choose a shorter one")
    if cfg.MODEL.RECOMPUTE and cfg.MODEL.ARCH != SIMCLRV2:
        raise InputError(
            f"MODEL.RECOMPUTE is of MODEL.ARCH {SIMCLRV2}, and that is {cfg.MODEL.ARCH}; set it "
            "False"
        )
    build, source = network_of(cfg, images)

    def network() -> nn.Module:
        built = build()
        if cfg.FINETUNE.FREEZE_BACKBONE:
            built.freeze_backbone()
        elif cfg.MODEL.RECOMPUTE and isinstance(built, FineTuned):
            built.model.recompute = True
        return built

    def optimizer(network: nn.Module) -> Lars:
        return Lars(
            network.parameters(),
            lr=cfg.OPTIMIZER.LR,
            momentum=cfg.OPTIMIZER.MOMENTUM,
            weight_decay=cfg.OPTIMIZER.WEIGHT_DECAY,
        )

    # So that an impossible optimizer is an error before anything is written.
    optimizer(nn.Linear(1, 1))
    method = Method(
        network=network,
        step=steps_of(moco_transform(cfg.AUGMENT, preprocess_of(cfg, images).side)),
        optimizer=optimizer,
        test_batch=cfg.DATALOADER.BATCH_SIZE,
        top5=True,
        whole=True,
        layout=lambda trial: layout_of(cfg, trial, classes_of(cfg, images)),
        name=name,
    )
    return method, source


def layout_of(cfg: CfgNode, trial: Trial, classes: int) -> Layout:
    """The original's checkpoint, with the options of its command line by their names there."""
    return simclrv2_layout(
        {
            "data": cfg.DATASET.ROOT_DIR,
            "trainindex_x": trial.labelled.name,
            "name_to_save": cfg.RUN_NAME,
            "seed": trial.seed,
            "pretrain": cfg.MODEL.PRETRAIN_PATH,
            "num_classes": classes,
            "freeze_backbone": cfg.FINETUNE.FREEZE_BACKBONE,
            "roll_data": cfg.FINETUNE.REPEAT_DATA,
            "batch_size": cfg.DATALOADER.BATCH_SIZE,
            "epochs": cfg.EPOCHS,
            "lr": cfg.OPTIMIZER.LR,
            "momentum": cfg.OPTIMIZER.MOMENTUM,
            "weight_decay": cfg.OPTIMIZER.WEIGHT_DECAY,
            "no_lr_decay": cfg.SCHEDULE == "constant",
            # Of apex, which had states of its own.
            "amp_opt_level": "O0",
        }
    )
