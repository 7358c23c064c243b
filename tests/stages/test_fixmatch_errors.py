"""Bad settings of FixMatch."""

import pytest
import torch
from commands import FIXMATCH, fixmatching

from usl import InputError

LIST, NUMBER = "FIXMATCH.LABELED_INDICES_PATH", "FIXMATCH.NUM_LABELED"
SMALL = ("MODEL.ARCH", "SmallResNet")
BAD = {
    (LIST, ""): "FIXMATCH.LABELED_INDICES_PATH is empty; give a .npy or .csv of labelled images",
    (LIST, "slice"): "there is no list of labelled images",
    (LIST, "x.csv"): "there is no list of labelled images (FIXMATCH.LABELED_INDICES_PATH)",
    (LIST, "released/x.csv"): "or choose one of those there: cifar100_random",
    (LIST, "released/cifar10_usl-t.csv"): "and cifar10 has the images 0 to 199; give a list of",
    (LIST, "{range}"): "has the index -1, 200, and cifar10 has the images 0 to 199",
    (LIST, "{twice}"): "has the index 3 more than once; keep each once",
    (LIST, "{class}"): "line 2: the label '10' is no class; give 0 to 9 or a name",
    (LIST, "{nothing}"): "lists no image; give at least one index",
    (NUMBER, 201): "a budget of 201 picks from 200 images",
    ("FIXMATCH.SEEDS", "[]"): "FIXMATCH.SEEDS is empty; give at least one seed",
    ("FIXMATCH.SEEDS", "[1, 1]"): "FIXMATCH.SEEDS has a seed twice",
    ("FIXMATCH.THRESHOLD", 1.01): "FIXMATCH.THRESHOLD is 1.01; choose 0 to 1",
    ("FIXMATCH.THRESHOLD", -0.1): "FIXMATCH.THRESHOLD is -0.1",
    ("FIXMATCH.THRESHOLD", "nan"): "FIXMATCH.THRESHOLD is nan",
    ("FIXMATCH.TEMPERATURE", 0): "FIXMATCH.TEMPERATURE is 0.0; choose above 0",
    ("FIXMATCH.TEMPERATURE", "nan"): "FIXMATCH.TEMPERATURE is nan",
    ("FIXMATCH.LAMBDA_U", -1): "FIXMATCH.LAMBDA_U is -1.0; choose 0 or more",
    ("FIXMATCH.LAMBDA_U", "nan"): "FIXMATCH.LAMBDA_U is nan",
    ("FIXMATCH.LAMBDA_U", "inf"): "FIXMATCH.LAMBDA_U is inf",
    ("FIXMATCH.MU", 0): "; choose at least 1 for both",
    ("DATALOADER.BATCH_SIZE", 0): "; choose at least 1 for both",
    ("FIXMATCH.EVAL_STEPS", 0): "FIXMATCH.EVAL_STEPS 0; choose at least 1",
    ("FIXMATCH.EARLY_STOP", -1): "FIXMATCH.EARLY_STOP is -1; choose 0, for none, or more",
    ("STEPS", 0): "STEPS is 0 and FIXMATCH.EVAL_STEPS 2; choose at least 1",
    ("STEPS", -3): "STEPS is -3",
    ("SCHEDULE", "zigzag"): "unknown SCHEDULE 'zigzag'; choose one of cosine, epoch-cosine",
    ("PRECISION", "int4"): "unknown PRECISION 'int4'",
    ("EMA_DECAY", 1): "EMA_DECAY is 1.0; choose 0 to below 1",
    ("RESUME", "maybe"): "there is no checkpoint (RESUME); put maybe in one of the places tried",
    ("OPTIMIZER.LR", 0): "OPTIMIZER.LR is 0.0; choose a positive number",
    ("OPTIMIZER.MOMENTUM", 0): "OPTIMIZER.NESTEROV needs a MOMENTUM",
    ("OPTIMIZER.WEIGHT_DECAY", "nan"): "OPTIMIZER.WEIGHT_DECAY is nan; choose 0 or more",
    ("AUGMENT.FLIP", 2): "AUGMENT.FLIP is 2.0; choose 0 to 1",
    ("DATASET.TRANSFORM_NAME", "x"): "unknown DATASET.TRANSFORM_NAME 'x'",
    ("DATASET.NAME", "mnist"): "unknown DATASET.NAME 'mnist'",
    (
        "MODEL.ARCH",
        "AlexNet",
    ): "unknown MODEL.ARCH 'AlexNet' without MODEL.PRETRAIN_PATH; choose one of",
    ("MODEL.DEPTH", 12): "MODEL.DEPTH is 12; choose 10, 16, 28 or another 4 + 6 · blocks",
    ("MODEL.WIDTH", 0): "MODEL.WIDTH is 0; choose at least 1",
    (*SMALL, "MODEL.DEPTH", 28): "MODEL.DEPTH is 28; choose 10, 18, 26 or another 2 + 8 · blocks",
    (*SMALL, "MODEL.WIDTH", 0): "MODEL.WIDTH is 0; choose at least 1",
    ("MODEL.PRETRAIN_PATH", "{encoder}"): "MODEL.PRETRAIN_PATH is set, and no WideResNet is pre",
    (*SMALL, "MODEL.PRETRAIN_PATH", "x.pth"): "there is no checkpoint (MODEL.PRETRAIN_PATH)",
    (*SMALL, "MODEL.PRETRAIN_PATH", "{other}"): "other.pth is of another network; missing: conv1.",
    ("MODEL.ARCH", "ResNet18", "MODEL.PRETRAIN_PATH", "{encoder}"): "is of another network",
    ("DEVICE", "abacus"): "DEVICE abacus is not on this machine",
    ("FIXMATCH.MU", 1, "DATALOADER.BATCH_SIZE", 1): "DATALOADER.BATCH_SIZE is 1; choose 2 to",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(map(str, options)))
def test_bad_settings(cifar, encoder, script, tmp_path, options):
    paths = {"encoder": encoder, "other": tmp_path / "other.pth"}
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, paths["other"])
    lists = {
        "range": "Index\n5\n-1\n200\n",
        "twice": "Index\n3\n4\n3\n",
        "class": "Index,Label\n3,10\n",
        "nothing": "Index\n",
    }
    for name, text in lists.items():
        paths[name] = tmp_path / f"{name}.csv"
        paths[name].write_text(text)
    given = [str(option) for option in options]
    given = [str(paths[g[1:-1]]) if g[1:-1] in paths and g[0] == "{" else g for g in given]
    with pytest.raises(InputError) as error:
        script(FIXMATCH, *fixmatching(cifar, tmp_path / "run", *given))
    assert BAD[options] in str(error.value) and "\n" not in str(error.value)
    # Nothing is written before all is known to be possible.
    assert not (tmp_path / "run").exists()
