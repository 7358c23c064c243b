"""Scripts by their folders, and command lines that let them run on little in little time."""

CIFAR = "selective_labeling/usl-cifar.py"
FEATURES = "selective_labeling/usl-features.py"
IMAGES = "selective_labeling/usl-images.py"
RANDOM = "selective_labeling/random-cifar.py"
IMAGENET = "selective_labeling/usl-imagenet.py"
IMAGENET_RANDOM = "selective_labeling/random-imagenet.py"
COMPARE = "selective_labeling/compare.py"
MINE = "usl-t_pretraining/mine-neighbors.py"
PRETRAIN = "usl-t_pretraining/usl-t-cifar-pretrain.py"
SELECT = "selective_labeling/usl-t-cifar.py"
FOLDER_PRETRAIN = "usl-t_pretraining/usl-t-imagenet-pretrain.py"
FOLDER_SELECT = "selective_labeling/usl-t-imagenet.py"
SIMCLR = "selfsup-simclr-cld/pretrain.py"
FINETUNE = "semisup-simclrv2-cld/fine_tune.py"
FIXMATCH = "semisup-fixmatch-cifar/train.py"
SIMCLRV2 = "semisup-simclrv2/fine_tune.py"

CLUSTERS = 6
TINY = ("MODEL.ARCH", "SmallResNet", "MODEL.BACKBONE_DIM", 64)
FOLDER = ("DATASET.NAME", "folder", "DATASET.IMAGE_SIZE", 32, *TINY)


def pretraining(root, neighbors, folder):
    return (
        "--cfg", "configs/cifar10_usl-t_pretrain.yaml", "--opts", *TINY,
        "DATASET.ROOT_DIR", root, "MODEL.PRETRAIN_PATH", root / "pretext.pth.tar",
        "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH", neighbors, "RUN_DIR", folder,
        "USLT_PRETRAIN.NUM_SELECTED_SAMPLES", CLUSTERS, "USLT_PRETRAIN.CONFIDENCE_THRESHOLD", 0.2,
        "EPOCHS", 2, "DATALOADER.BATCH_SIZE", 16, "OPTIMIZER.LR", 1e-3,
    )  # fmt: skip


def selection(root, checkpoint, folder):
    return (
        "--cfg", "configs/cifar10_usl-t.yaml", "--opts", *TINY, "DATASET.ROOT_DIR", root,
        "MODEL.PRETRAIN_PATH", checkpoint, "RUN_DIR", folder, "USLT.NUM_SELECTED_SAMPLES", 0,
        "USLT.NUM_CLUSTERS", 0, "DATALOADER.BATCH_SIZE", 16,
    )  # fmt: skip


def folder_pretraining(root, run):
    return (
        "--cfg", "configs/ImageNet100_usl-t_pretrain.yaml", "--opts", *FOLDER,
        "DATASET.ROOT_DIR", root, "MODEL.PRETRAIN_PATH", root / "pretext.pth.tar", "RUN_DIR", run,
        "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH", root / "n.npy", "USLT_PRETRAIN.NUM_NEIGHBORS", 5,
        "USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 5, "USLT_PRETRAIN.REASSIGN_AFTER_STEPS", 2,
        "USLT_PRETRAIN.COUNT_EMA_MIN_TH", 3, "USLT_PRETRAIN.COUNT_EMA_MAX_TH", 5,
        "EPOCHS", 3, "DATALOADER.BATCH_SIZE", 12, "OPTIMIZER.LR", 1e-3, "DATALOADER.WORKERS", 1,
    )  # fmt: skip


def folder_selection(root, checkpoint, run):
    return (
        "--cfg", "configs/ImageNet100_usl-t_0.3.yaml", "--opts", *FOLDER, "RUN_NAME", "mine",
        "DATASET.ROOT_DIR", root, "MODEL.PRETRAIN_PATH", checkpoint, "RUN_DIR", run,
        "USLT.NUM_PSEUDO_LABELS_PER_CLUSTER", 2, "USLT.NUM_CLUSTERS", 0,
        "DATALOADER.BATCH_SIZE", 16, "DATALOADER.WORKERS", 1,
    )  # fmt: skip


def finetuning(encoder, run, *options):
    return (
        "--cfg", "configs/digits_usl_finetune.yaml", "--opts", "MODEL.PRETRAIN_PATH", encoder,
        "MODEL.BACKBONE_DIM", 64, "RUN_DIR", run, "FINETUNE.REPEAT_DATA", 7, "EPOCHS", 3,
        "FINETUNE.SEEDS", "[1, 2]",
        "FINETUNE.LABELED_INDICES_PATH", "slice{seed}", *options,
    )  # fmt: skip


def fixmatching(root, run, *options):
    return (
        "--cfg", "configs/cifar10_usl_fixmatch.yaml", "--opts", "DATASET.ROOT_DIR", root,
        "RUN_DIR", run, "MODEL.DEPTH", 10, "MODEL.WIDTH", 1, "DATALOADER.BATCH_SIZE", 4,
        "FIXMATCH.MU", 2, "STEPS", 4, "FIXMATCH.EVAL_STEPS", 2, "FIXMATCH.SEEDS", "[1]",
        "FIXMATCH.NUM_LABELED", 20, "FIXMATCH.LABELED_INDICES_PATH", "slice{seed}", *options,
    )  # fmt: skip


def imagenet_selection(root, weights, run, *options):
    return (
        "--cfg", "configs/ImageNet_usl_moco_0.2.yaml", "--opts", "DATASET.NAME", "folder",
        "DATASET.TRANSFORM_NAME", "", "DATASET.ROOT_DIR", root, "DATASET.IMAGE_SIZE", 32,
        "MODEL.ARCH", "timm/test_resnet", "MODEL.PRETRAIN_PATH", weights, "RUN_DIR", run,
        "RUN_NAME", "mine", "RECOMPUTE_ALL", True, "USL.NUM_SELECTED_SAMPLES", 4, "USL.KNN_K", 5,
        "USL.REG.HORIZON_NUM", 3, "DATALOADER.BATCH_SIZE", 16, "DATALOADER.WORKERS", 2, *options,
    )  # fmt: skip


def own_images(root, run, *more):
    return (
        "--cfg", "configs/images_usl.yaml", "--opts", "DATASET.ROOT_DIR", root, "RUN_DIR", run,
        "MODEL.ARCH", "pixels", "DATASET.IMAGE_SIZE", 16, "USL.NUM_SELECTED_SAMPLES", 8, *more,
    )  # fmt: skip


def simclrv2(root, run, *more):
    """With the flags of the original, and two settings that make it small."""
    words = [str(word) for word in more]
    opts = words.index("--opts") if "--opts" in words else len(words)
    return (
        "--lr", 1.5, "--seed", 3, "--name-to-save", "mine", "--trainindex_x", root / "split.csv",
        "-j", 1, "--batch-size", 6, "--eval-freq", 2, "--epochs", 4, "--weight-decay", 1e-4,
        "--pretrain", root / "r14_0.125x_sk0.pth", "--roll-data", 2, *words[:opts], root, "--opts",
        "DATASET.NAME", "folder", "DATASET.IMAGE_SIZE", 32, "RUN_DIR", run, *words[opts + 1 :],
    )  # fmt: skip
