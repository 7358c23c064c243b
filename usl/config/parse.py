"""Settings of the stages: defaults, YAML files that inherit, options of the command line, paths.

The only module that knows YACS. A stage's settings are its defaults, changed by the file that
``BASE`` names, by the file of ``--cfg`` and by ``--opts``, in this order, then frozen.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yacs.config import CfgNode as CfgNode

from usl.errors import InputError

STAGE_FOLDERS = (
    "selective_labeling",
    "usl-t_pretraining",
    "semisup-fixmatch-cifar",
    "semisup-simclrv2-cld",
    "semisup-simclrv2",
    "selfsup-simclr-cld",
)
PATH_KEYS = (
    "SAVE_DIR",
    "RUN_DIR",
    "DATASET.ROOT_DIR",
    "MODEL.PRETRAIN_PATH",
    "FEATURES.PATH",
    "SIMCLR.TOPK_NEIGHBORS_PATH",
    "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH",
    "USLT.LABELS_PATH",
    "FINETUNE.LABELED_INDICES_PATH",
    "FIXMATCH.LABELED_INDICES_PATH",
    "COMPARE.LIST",
)
# Lists of labelled images. The published ones are meant by released/NAME, wherever that stands;
# slice1, slice2, … are no files but draws of as many images from each class.
LIST_KEYS = (
    "FINETUNE.LABELED_INDICES_PATH",
    "FIXMATCH.LABELED_INDICES_PATH",
    "COMPARE.LIST",
    "USLT.LABELS_PATH",
)
SLICE = re.compile(r"slice(\d+|\{seed\})")
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text, in quotes"}


def _run_defaults() -> CfgNode:
    c = CfgNode()
    # A YAML whose values this one starts from; relative to the file that names it.
    c.BASE = ""
    # Results go to RUN_DIR, or where that is empty to SAVE_DIR/RUN_NAME.
    c.RUN_NAME = ""
    c.SAVE_DIR = "saved"
    c.RUN_DIR = ""
    # False: stop if the run's folder is there already.
    c.SAVE_DIR_EXIST_OK = True
    # Write nothing, only print.
    c.SKIP_SAVE = False
    # Append the options of the command line to RUN_NAME.
    c.OPTS_IN_RUN_NAME = False
    # auto takes CUDA if there is one; or cpu, cuda, cuda:1, …
    c.DEVICE = "auto"
    return c


def _selection_defaults() -> CfgNode:
    c = _run_defaults()
    # Compute everything anew, though a finished run left it here. An unfinished run goes on.
    c.RECOMPUTE_ALL = True
    # The same for what depends on the budget: clusters and picks.
    c.RECOMPUTE_NUM_DEP = True
    return c


def _add_images(c: CfgNode) -> CfgNode:
    c.DATASET = CfgNode()
    # cifar10, cifar100, fashion-mnist or digits.
    c.DATASET.NAME = ""
    c.DATASET.ROOT_DIR = "../data"
    # Mean and standard deviation for networks, by name: usl/data/transforms.py.
    c.DATASET.TRANSFORM_NAME = ""
    c.DATALOADER = CfgNode()
    c.DATALOADER.BATCH_SIZE = 128
    # Threads that decode image files; data sets that stay in memory need none.
    c.DATALOADER.WORKERS = 2
    c.MODEL = CfgNode()
    c.MODEL.ARCH = "ResNet18"
    return c


def _add_images_in_files(c: CfgNode) -> CfgNode:
    # Also imagenet, imagenet100 or folder: files below ROOT_DIR/train and ROOT_DIR/val. Side of
    # what networks see, in pixels, after a resize to 256 / 224 of it.
    c.DATASET.IMAGE_SIZE = 224
    return c


def _image_defaults() -> CfgNode:
    c = _add_images(_selection_defaults())
    # ARCH: ResNet18 or SmallResNet, with a CLD, SCAN-pretext or USL-T checkpoint, or pixels, which
    # needs none.
    c.MODEL.PRETRAIN_PATH = ""
    # Width of the network before its head; checked against the network.
    c.MODEL.BACKBONE_DIM = 512
    # head: what the encoder's head makes, as in the paper; backbone: what the head sees, scaled to
    # length 1, which is often better.
    c.MODEL.FEATURES = "head"
    # Load a checkpoint that holds more than tensors. It can then run any code: only your own files.
    c.MODEL.TRUST_CHECKPOINT = False
    return c


def _add_usl(c: CfgNode) -> CfgNode:
    c.USL = CfgNode()
    # The budget: how many images can be labelled.
    c.USL.NUM_SELECTED_SAMPLES = 40
    # Neighbours that make the density, the image itself included.
    c.USL.KNN_K = 400
    # Limit; k-means stops when no image changes its cluster.
    c.USL.K_MEANS_NITERS = 200
    # One selection for each.
    c.USL.SEEDS = [1, 2, 3, 4, 5]
    c.USL.REG = CfgNode()
    # Rounds of picking; 1: no regulariser, the densest image of each cluster.
    c.USL.REG.NITERS = 10
    # Weight of the regulariser.
    c.USL.REG.W = 0.5
    c.USL.REG.MOMENTUM = 0.9
    # dist: picks nearer than HORIZON_DIST repel. num: the HORIZON_NUM nearest picks repel.
    c.USL.REG.HORIZON = "dist"
    # A squared distance.
    c.USL.REG.HORIZON_DIST = 4.0
    # A pick at squared distance d² repels with 1 / d²^ALPHA.
    c.USL.REG.ALPHA = 0.5
    c.USL.REG.HORIZON_NUM = 128
    # With HORIZON num: leave out the own cluster's pick instead of picks at distance 0.
    c.USL.REG.EXCLUDE_SAME_CLUSTER = False
    c.KNN = CfgNode()
    # Who searches neighbours: auto, torch. All find the same ones.
    c.KNN.BACKEND = "auto"
    return c


def usl_defaults() -> CfgNode:
    """Settings of ``usl-cifar.py``."""
    return _add_usl(_image_defaults())


def features_defaults() -> CfgNode:
    """Settings of ``usl-features.py``."""
    c = _add_usl(_selection_defaults())
    c.FEATURES = CfgNode()
    # A .npy file, (images, dimensions).
    c.FEATURES.PATH = ""
    # Divide every row by its length first. HORIZON_DIST 4 is meant for rows of length 1.
    c.FEATURES.NORMALIZE = False
    return c


def mine_defaults() -> CfgNode:
    """Settings of ``mine-neighbors.py``."""
    c = _add_images_in_files(_image_defaults())
    # Features to use instead of those of MODEL: a .npy file, (images, dimensions).
    c.FEATURES = CfgNode()
    c.FEATURES.PATH = ""
    # Divide every row of that file by its length first.
    c.FEATURES.NORMALIZE = False
    c.KNN = CfgNode()
    c.KNN.BACKEND = "auto"
    # Beside the image itself.
    c.NUM_NEIGHBORS = 20
    return c


def random_defaults() -> CfgNode:
    """Settings of ``random-cifar.py``."""
    c = _image_defaults()
    c.RANDOM = CfgNode()
    c.RANDOM.SEEDS = [1, 2, 3, 4, 5]
    # The budget: how many images can be labelled.
    c.RANDOM.NUM_SELECTED_SAMPLES = 40
    return c


def compare_defaults() -> CfgNode:
    """Settings of ``compare.py``."""
    c = _add_usl(_image_defaults())
    c.COMPARE = CfgNode()
    # Budgets to compare at; USL.NUM_SELECTED_SAMPLES is not used.
    c.COMPARE.BUDGETS = [40]
    # Picks from elsewhere to compare too, .npy or .csv; {budget} and {seed} stand for each.
    c.COMPARE.LIST = ""
    return c


def _add_training(c: CfgNode) -> CfgNode:
    """What every training has: how long, how exactly, how often it is looked at."""
    c.SEED = 0
    # auto: go on from RUN_DIR/checkpoint.pth if it is there; none: begin anew.
    c.RESUME = "auto"
    c.EPOCHS = 200
    # Steps instead of epochs, if above 0.
    c.STEPS = 0
    # cosine, constant, or fixmatch (7/16 of a half-turn), after a linear warm-up.
    c.SCHEDULE = "constant"
    c.WARMUP_EPOCHS = 0
    # Parts of a batch, one after the other, to save memory. Each part is compared within itself.
    c.ACCUMULATE = 1
    # float32, bfloat16 or float16.
    c.PRECISION = "float32"
    # Steps between checkpoints; 0: one after each epoch.
    c.CHECKPOINT_STEPS = 0
    # Epochs between evaluations.
    c.EVALUATE_EVERY = 1
    c.OPTIMIZER = CfgNode()
    return c


def _add_moco_chain(c: CfgNode) -> CfgNode:
    # The MoCo v2 chain; see usl/data/augment.py. (fine_tune.py: only FLIP and BACKEND where
    # TRANSFORM_NAME is FixMatch-… or SCAN-…, whose view is SCAN's.)
    c.AUGMENT = CfgNode()
    # batched, on the device; pil, image by image; auto: the faster one, which is batched. Image
    # files are always cropped by PIL, and the rest is batched.
    c.AUGMENT.BACKEND = "auto"
    # Smallest share of the area that a crop keeps.
    c.AUGMENT.CROP = 0.2
    # Probabilities.
    c.AUGMENT.FLIP = 0.5
    c.AUGMENT.JITTER = 0.8
    c.AUGMENT.GREY = 0.2
    c.AUGMENT.BLUR = 0.5
    return c


def pretrain_defaults() -> CfgNode:
    """Settings of ``pretrain.py``."""
    c = _add_moco_chain(_add_training(_add_images_in_files(_add_images(_run_defaults()))))
    # Decoded images to keep in memory, of each process.
    c.DATALOADER.CACHE_GB = 8.0
    c.DATALOADER.BATCH_SIZE = 512
    # ARCH: ResNet18 or SmallResNet. Channels of the first stage, and layers (10, 18, 26, …), of
    # SmallResNet.
    c.MODEL.WIDTH = 16
    c.MODEL.DEPTH = 10
    c.SCHEDULE = "cosine"
    c.WARMUP_EPOCHS = 5
    c.EVALUATE_EVERY = 5
    # Decay of the weight average that is evaluated and kept; 0: the weights themselves.
    c.EMA_DECAY = 0.0
    # Write encoder.pth in half precision: half the size, to pass on.
    c.HALF_ENCODER = False
    # SGD.
    c.OPTIMIZER.LR = 0.12
    c.OPTIMIZER.MOMENTUM = 0.9
    c.OPTIMIZER.NESTEROV = True
    c.OPTIMIZER.WEIGHT_DECAY = 5e-4
    c.SIMCLR = CfgNode()
    c.SIMCLR.TEMPERATURE = 0.2
    # From mine-neighbors.py: the second view is then of the image itself or of one of its
    # NUM_NEIGHBORS nearest.
    c.SIMCLR.TOPK_NEIGHBORS_PATH = ""
    c.SIMCLR.NUM_NEIGHBORS = 5
    # Cross-level discrimination beside NT-Xent: a second head, grouped by k-means in the batch.
    c.CLD = False
    c.GROUP = CfgNode()
    c.GROUP.COUNT = 32
    c.GROUP.TEMPERATURE = 0.2
    # Weight of the cross-level loss.
    c.GROUP.WEIGHT = 0.25
    return c


def uslt_pretrain_defaults() -> CfgNode:
    """Settings of ``usl-t-cifar-pretrain.py``."""
    c = _add_training(_image_defaults())
    # The heads see what the method says.
    del c.MODEL["FEATURES"]
    c.SEED = 42
    c.DATALOADER.BATCH_SIZE = 1024
    # Do not train; print how the heads of RUN_DIR/checkpoint.pth are doing.
    c.EVAL_ONLY = False
    # Accepted for configs of the original: the record of a run has its versions instead; all images
    # are used; and a training is continued or not by RESUME (so RECOMPUTE_* are ignored too).
    c.BACKUP_PYTHON_FILE = True
    c.DATASET.SUBSET = ""
    c.OPTIMIZER.NAME = "Adam"
    c.OPTIMIZER.LR = 1e-4
    c.OPTIMIZER.WEIGHT_DECAY = 1e-4
    c.AUGMENT = CfgNode()
    # batched, on the device; pil, image by image; auto: the faster one, which is batched. Image
    # files are always cropped by PIL, and the rest is batched.
    c.AUGMENT.BACKEND = "auto"
    # Probability of a mirrored view.
    c.AUGMENT.FLIP = 0.5
    c.USLT_PRETRAIN = CfgNode()
    # Train the heads alone, the backbone in eval mode.
    c.USLT_PRETRAIN.UPDATE_HEAD_ONLY = False
    # topk-train-neighbors.npy, from mine-neighbors.py; NUM_NEIGHBORS of its columns are used.
    c.USLT_PRETRAIN.TOPK_NEIGHBORS_PATH = ""
    c.USLT_PRETRAIN.NUM_NEIGHBORS = 20
    # Outputs of each head: clusters, one for every image that can be labelled.
    c.USLT_PRETRAIN.NUM_SELECTED_SAMPLES = 40
    # Local loss: weight of log p̄ in the logits, and temperature of the sharpening.
    c.USLT_PRETRAIN.ADJUSTMENT_WEIGHT = 5.0
    c.USLT_PRETRAIN.SHARPEN_TEMPERATURE = 0.25
    c.USLT_PRETRAIN.LOCAL_LOSS_SCALE = 5.0
    # Epochs, counted from 0: the local loss is off from this one on, the global one on.
    c.USLT_PRETRAIN.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH = float("inf")
    c.USLT_PRETRAIN.GLOBAL_START_EPOCH = 0
    # Global loss: which images count, how clusters are weighted, what the sum is divided by.
    c.USLT_PRETRAIN.CONFIDENCE_THRESHOLD = 0.95
    c.USLT_PRETRAIN.REWEIGHT = True
    c.USLT_PRETRAIN.REWEIGHT_RENORM = False
    c.USLT_PRETRAIN.MEAN_OUTSIDE_MASK = False
    # Decay of the weight average; 0: none.
    c.USLT_PRETRAIN.EMA_DECAY = 0.999
    # ImageNet form only: after so many steps, a cluster with fewer images on average than MIN takes
    # half of one with more than MAX.
    c.USLT_PRETRAIN.REASSIGN_AFTER_STEPS = 300
    c.USLT_PRETRAIN.COUNT_EMA_MIN_TH = 100
    c.USLT_PRETRAIN.COUNT_EMA_MAX_TH = 1000
    return c


def uslt_imagenet_pretrain_defaults() -> CfgNode:
    """Settings of ``usl-t-imagenet-pretrain.py``."""
    c = _add_images_in_files(uslt_pretrain_defaults())
    # Decoded images to keep in memory, of each process.
    c.DATALOADER.CACHE_GB = 8.0
    return c


def uslt_defaults() -> CfgNode:
    """Settings of ``usl-t-cifar.py``."""
    c = _image_defaults()
    c.USLT = CfgNode()
    # The budget; 0: one image for each cluster of the checkpoint.
    c.USLT.NUM_SELECTED_SAMPLES = 0
    # 0: whatever the checkpoint has; another number must be the checkpoint's.
    c.USLT.NUM_CLUSTERS = 0
    # The head whose argmax makes the clusters.
    c.USLT.HEAD_IN_USE = 0
    # CIFAR form: confidence is the mean over heads of each one's largest probability, not this
    # head's alone.
    c.USLT.USE_MEAN_PROB = True
    # ImageNet form only, whose picks are the densest images, not the most confident ones:
    # neighbours that make the density, the image itself included,
    c.USLT.KNN_K = 20
    # and the densest images of a cluster that get the label of its pick.
    c.USLT.NUM_PSEUDO_LABELS_PER_CLUSTER = 20
    return c


def uslt_imagenet_defaults() -> CfgNode:
    """Settings of ``usl-t-imagenet.py``."""
    c = _add_images_in_files(uslt_defaults())
    # A CSV of the answers, Index,Label, where the data set has no labels or others are wanted.
    c.USLT.LABELS_PATH = ""
    c.KNN = CfgNode()
    c.KNN.BACKEND = "auto"
    return c


def finetune_defaults() -> CfgNode:
    """Settings of ``fine_tune.py``, the evaluation of CIFAR picks.

    RECOMPUTE_ALL and RECOMPUTE_NUM_DEP are accepted for configs of the original and ignored.
    """
    c = _add_moco_chain(_add_training(_image_defaults()))
    # FINETUNE.SEEDS instead; and the linear layer sees what is before any head.
    del c["SEED"], c.MODEL["FEATURES"]
    c.DATALOADER.WORKERS = 8
    # The logits are the output of a linear layer with columns of length 1, itself scaled to length
    # 1, as in the CLD network; False: those of a plain linear layer, for SimCLR weights.
    c.MODEL.USE_CLD = True
    c.EPOCHS = 5
    # SGD; there is no other.
    c.OPTIMIZER.NAME = "SGD"
    c.OPTIMIZER.LR = 0.01
    c.OPTIMIZER.MOMENTUM = 0.9
    c.OPTIMIZER.NESTEROV = True
    c.OPTIMIZER.WEIGHT_DECAY = 1e-4
    c.FINETUNE = CfgNode()
    _add_labels(c.FINETUNE)
    # Train the linear layer only; the running statistics of batch norm still move.
    c.FINETUNE.FREEZE_BACKBONE = True
    # How often an epoch visits each labelled image; more often where that fills no batch.
    c.FINETUNE.REPEAT_DATA = 100
    return c


def _add_labels(c: CfgNode) -> None:
    # Which images are labelled: .npy of indices; .csv with Index, or with Index,Label, whose labels
    # replace the data set's; a published list, released/NAME.csv; or slice1, slice2, … to draw as
    # many from each class. {seed} stands for each of SEEDS.
    c.LABELED_INDICES_PATH = ""
    # How many a slice has.
    c.NUM_LABELED = 40
    # One training for each.
    c.SEEDS = [0]


def fixmatch_defaults() -> CfgNode:
    """Settings of ``train.py``, FixMatch on CIFAR picks."""
    c = _add_training(_add_images(_run_defaults()))
    # FIXMATCH.SEEDS instead; a part of a batch would be a batch of its own; and there is no epoch
    # but what lies between two tests.
    for key in ("SEED", "ACCUMULATE", "EPOCHS", "EVALUATE_EVERY", "WARMUP_EPOCHS"):
        del c[key]
    # Labelled images of a step.
    c.DATALOADER.BATCH_SIZE = 64
    # WideResNet, of DEPTH 28 and WIDTH 2 or others; ResNet18, or SmallResNet of DEPTH and WIDTH,
    # which can start from a self-supervised checkpoint of any layout.
    c.MODEL.ARCH = "WideResNet"
    c.MODEL.DEPTH = 28
    c.MODEL.WIDTH = 2
    c.MODEL.PRETRAIN_PATH = ""
    # Load a checkpoint that holds more than tensors. It can then run any code: only your own files.
    c.MODEL.TRUST_CHECKPOINT = False
    c.STEPS = 2**20
    c.SCHEDULE = "fixmatch"
    c.EMA_DECAY = 0.999
    # SGD; no decay for biases and batch norm.
    c.OPTIMIZER.LR = 0.03
    c.OPTIMIZER.MOMENTUM = 0.9
    c.OPTIMIZER.NESTEROV = True
    c.OPTIMIZER.WEIGHT_DECAY = 5e-4
    c.AUGMENT = CfgNode()
    # batched, on the device; pil, image by image; auto: the faster one, which is batched. Image
    # files are always cropped by PIL, and the rest is batched.
    c.AUGMENT.BACKEND = "auto"
    # Probability of a mirrored view.
    c.AUGMENT.FLIP = 0.5
    c.FIXMATCH = CfgNode()
    _add_labels(c.FIXMATCH)
    # Unlabelled images for each labelled one; those with a probability of at least THRESHOLD count.
    c.FIXMATCH.MU = 7
    c.FIXMATCH.THRESHOLD = 0.95
    c.FIXMATCH.TEMPERATURE = 1.0
    # Weight of the unlabelled loss; 0 trains on the labels alone.
    c.FIXMATCH.LAMBDA_U = 1.0
    # Steps between tests, each with a checkpoint.
    c.FIXMATCH.EVAL_STEPS = 1024
    # Stop after so many steps, with the schedule of STEPS; 0: after STEPS.
    c.FIXMATCH.EARLY_STOP = 0
    # torch.compile: a minute at the start, faster steps after it.
    c.FIXMATCH.COMPILE = False
    return c


STAGES: dict[str, Callable[[], CfgNode]] = {
    "usl-cifar.py": usl_defaults,
    "usl-features.py": features_defaults,
    "random-cifar.py": random_defaults,
    "compare.py": compare_defaults,
    "pretrain.py": pretrain_defaults,
    "mine-neighbors.py": mine_defaults,
    "usl-t-cifar-pretrain.py": uslt_pretrain_defaults,
    "usl-t-imagenet-pretrain.py": uslt_imagenet_pretrain_defaults,
    "usl-t-cifar.py": uslt_defaults,
    "usl-t-imagenet.py": uslt_imagenet_defaults,
    "fine_tune.py": finetune_defaults,
    "train.py": fixmatch_defaults,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(
    defaults: CfgNode, argv: Sequence[str] | None = None, *, script: str, doc: str | None = None
) -> CfgNode:
    """Read the command line of a stage script.

    Parameters
    ----------
    defaults : CfgNode
        A fresh tree of the stage's defaults; it is changed.
    argv : sequence of str, optional
        Arguments; default those of the process.
    script : str
        ``__file__`` of the script. Its folder is where relative paths of defaults and YAML start.
    doc : str, optional
        ``__doc__`` of the script, for ``--help``.

    Returns
    -------
    CfgNode
        Frozen, with absolute paths.

    Raises
    ------
    InputError
        An unknown key, a key of another stage, a value of the wrong kind, a file not there, …
    """
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", metavar="FILE", help="a YAML, here, at the root or in configs/")
    parser.add_argument(
        "--opts",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings that override the file",
    )
    arguments = parser.parse_args(argv)
    stage = Path(script).resolve().parent
    cfg = defaults
    for key in PATH_KEYS:
        _resolve(cfg, key, stage, stage)
    if arguments.cfg is not None:
        for path in _inheritance(find_config(arguments.cfg, stage)):
            tree = _read_yaml(path)
            merge(cfg, tree, source=str(path))
            for key in PATH_KEYS:
                if _has(tree, key):
                    _resolve(cfg, key, stage, stage)
    # What is dumped beside the outputs stands alone.
    cfg.BASE = ""
    opts = arguments.opts
    if len(opts) % 2:
        raise InputError(f"--opts {' '.join(opts)}: give pairs of KEY VALUE")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        if key == "BASE":
            raise InputError("--opts: BASE belongs in a YAML; choose another with --cfg")
        # A text is taken as it stands: YAML would make 8 of 010.
        value = text if isinstance(_get(cfg, key), str) else _value(text)
        merge(cfg, _nested(key, value), source="--opts")
        if key in PATH_KEYS:
            _resolve(cfg, key, Path.cwd(), stage)
    if cfg.OPTS_IN_RUN_NAME and opts:
        cfg.RUN_NAME += "_" + "_".join(part.replace("/", "-") for part in opts)
    if not cfg.RUN_DIR:
        cfg.RUN_DIR = str(Path(cfg.SAVE_DIR) / (cfg.RUN_NAME or Path(script).stem))
    cfg.freeze()
    return cfg


def merge(cfg: CfgNode, tree: dict[str, Any], *, source: str, prefix: str = "") -> None:
    """Put the values of a nested dict into settings; every key must be there, with its kind.

    Raises
    ------
    InputError
        Names the key, and ``source``, where it comes from.
    """
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            raise InputError(f"{source}: {_unknown(cfg, str(key), name)}")
        if name == "SEED" and value is None:
            # As the original's files have it where nobody chose one.
            continue
        if isinstance(cfg[key], CfgNode):
            if not isinstance(value, dict):
                raise InputError(f"{source}: {name} is a section; give it keys")
            merge(cfg[key], value, source=source, prefix=f"{name}.")
        else:
            cfg[key] = _converted(cfg[key], value, name, source)


def dump(cfg: CfgNode) -> str:
    """Settings as YAML, which ``--cfg`` reads again."""
    return str(cfg.dump(sort_keys=False))


def as_dict(cfg: CfgNode) -> dict[str, Any]:
    """Settings as nested dicts of plain values."""
    return {k: as_dict(v) if isinstance(v, CfgNode) else v for k, v in cfg.items()}


def find_config(name: str, stage: Path) -> Path:
    """Look for a YAML as given, then from the repository root, then in the stage's ``configs``."""
    places = [Path(name), stage.parent / name, stage / "configs" / name]
    for place in places:
        if _is_file(place):
            return place.resolve()
    tried = ", ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise InputError(f"there is no config {name}; tried {tried}")


def find_input(path: str, what: str, *, advice: str = "") -> Path:
    """Look for an input file where people of the original have it.

    As given; then, for a path below a stage's ``pretrained``, in every stage's ``pretrained`` and
    at the repository root, where the original's ``tar`` commands leave it.

    Parameters
    ----------
    path : str
        Absolute, as in parsed settings.
    what : str
        For the error, such as "checkpoint (MODEL.PRETRAIN_PATH)".
    advice : str
        For the error: what else can be done, beginning with "or".

    Raises
    ------
    InputError
        It is nowhere; every place tried is listed.
    """
    given = Path(path)
    places = [given]
    for folder in given.parents:
        if folder.name == "pretrained":
            root, rest = folder.parent, given.relative_to(folder)
            root = root.parent if root.name in STAGE_FOLDERS else root
            for same in _same_names(rest):
                places += [root / stage / "pretrained" / same for stage in STAGE_FOLDERS]
                places.append(root / same)
    for place in places:
        if _is_file(place):
            return place
    tried = ", ".join(dict.fromkeys(map(str, places)))
    maker = next((f.parent.name for f in given.parents if f.name == "saved"), "")
    if maker in STAGE_FOLDERS and not advice:
        advice = f"or run the script in {maker} that makes it"
    if given.parent.name.startswith("pretrained_kNN_"):
        advice = f"or unpack {given.parent.name}.tgz there{advice and f', {advice}'}"
    raise InputError(
        f"there is no {what}; put {given.name} in one of the places tried: {tried}"
        f"{advice and f', {advice}'}"
    )


def _same_names(path: Path) -> list[Path]:
    """A path below ``pretrained``, and the other name of its folder: the original has two."""
    first, *rest = path.parts
    names = [first]
    for one, two in (("pretext_", "pretrained_kNN_"), ("pretrained_kNN_", "pretext_")):
        if first.startswith(one):
            names.append(two + first.removeprefix(one))
    return [Path(name, *rest) for name in names]


def _inheritance(path: Path) -> list[Path]:
    chain = [path]
    while base := _read_yaml(chain[0]).get("BASE"):
        if not isinstance(base, str):
            raise InputError(f"{chain[0]}: BASE is {base!r}; give the path of a YAML")
        parent = (chain[0].parent / base).resolve()
        if parent in chain:
            raise InputError(f"{chain[0]}: BASE {base} leads back to itself")
        if not _is_file(parent):
            raise InputError(f"{chain[0]}: BASE {base} is not there; tried {parent}")
        chain.insert(0, parent)
    return chain


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where} is not YAML: {getattr(error, 'problem', error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no KEY: VALUE pairs")
    return tree


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _converted(default: Any, value: Any, name: str, source: str) -> Any:
    if isinstance(default, list):
        if not isinstance(value, list):
            raise InputError(f"{source}: {name} is {value!r}; give a list")
        kind = default[0] if default else 0
        return [_converted(kind, v, f"{name}[{i}]", source) for i, v in enumerate(value)]
    kind = type(default)
    if kind is float and not isinstance(value, bool):
        try:
            # YAML takes 1e-4 for a text; a number was meant.
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    if type(value) is not kind:
        raise InputError(f"{source}: {name} is {value!r}; give {KINDS[kind]}")
    return value


def _unknown(cfg: CfgNode, key: str, name: str) -> str:
    owners = [s for s, defaults in STAGES.items() if _has(defaults(), name)]
    if owners:
        return f"{name} is a setting of another stage ({', '.join(owners)}); remove it"
    close = [leaf for leaf in _leaves(cfg) if leaf.split(".")[-1] == key][:1]
    if not close:
        close = difflib.get_close_matches(name, [name[: -len(key)] + k for k in cfg], n=1)
    meant = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(cfg)}"
    return f"unknown key {name}{meant}"


def _leaves(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _get(tree: Any, key: str) -> Any:
    """What stands at a dotted key of nested dicts; None if there is nothing."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _has(tree: Any, key: str) -> bool:
    return _get(tree, key) is not None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # Such as a name that is too long.
        return False


def _resolve(cfg: CfgNode, key: str, folder: Path, stage: Path) -> None:
    """Make a path absolute; an empty one stays empty, and so does what is none."""
    if not _has(cfg, key) or (key in LIST_KEYS and SLICE.fullmatch(_get(cfg, key))):
        return
    *sections, last = key.split(".")
    for section in sections:
        cfg = cfg[section]
    if key in LIST_KEYS and Path(cfg[last]).parts[:1] == ("released",):
        folder = stage.parent / "selective_labeling"
    if cfg[last]:
        # normpath rather than resolve: a linked data folder keeps the name people gave it.
        cfg[last] = os.path.normpath(folder / os.path.expanduser(cfg[last]))
