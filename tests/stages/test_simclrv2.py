"""SimCLRv2 fine-tuning: its script from its folder, its files, and how it goes on."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from commands import SIMCLRV2, simclrv2
from helpers import kill_script, rows_of, run_script, settings, torchrun
from PIL import Image

from usl import InputError
from usl.checkpoints import read_checkpoint
from usl.cli import Call
from usl.data.datasets import open_dataset
from usl.encoders.simclrv2 import load_simclrv2
from usl.models.simclrv2 import FineTuned
from usl.stages.finetune import trials_of
from usl.stages.simclrv2 import method_of, spread
from usl.stages.training import precision_of

NAME = "seed3/checkpoint_mine.pth.tar"
LAYOUT = {"epoch", "state_dict", "best_acc1", "optimizer", "args", "amp"}


def weights_of(run):
    return torch.load(run / "seed3" / "checkpoint.pth")["model"]


def same(run, other, **tolerance):
    for (name, a), b in zip(weights_of(run).items(), weights_of(other).values(), strict=True):
        torch.testing.assert_close(a, b, msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def test_what_a_run_leaves(simclr_run, simclr_folder):
    (row,) = rows_of(simclr_run)
    assert (row["dataset"], row["budget"], row["seed"]) == ("folder", "7", "3")
    metrics = pd.read_csv(simclr_run / "seed3" / "metrics.csv")
    # 7 images twice, 6 in a batch: two steps an epoch. The cosine falls between epochs.
    assert metrics["step"].tolist() == [2, 4, 6, 8]
    expected = 1.5 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose(metrics["lr"], expected)
    assert metrics["accuracy"].notna().tolist() == [False, True, False, True]
    by_class = pd.read_csv(simclr_run / "per_class.csv")
    assert by_class["class"].tolist() == list("abcd")
    assert by_class["seed 3"].mean() == pytest.approx(float(row["accuracy"]), abs=1e-3)

    content = read_checkpoint(simclr_run / NAME)
    assert set(content) > LAYOUT and content["epoch"] == 4 and content["amp"] is None
    assert content["best_acc1"] == metrics["accuracy"].max()
    assert (content["args"].lr, content["args"].roll_data, content["args"].num_classes) == (
        1.5, 2, 4,
    )  # fmt: skip
    own = weights_of(simclr_run)
    assert {k.removeprefix("module."): v.tolist() for k, v in content["state_dict"].items()} == {
        k: v.tolist() for k, v in own.items()
    }
    assert {k.split(".")[0] for k in own} == {"model", "head", "linear"}
    # Whatever a training that goes on needs to be as it was.
    state = torch.load(simclr_run / "seed3" / "checkpoint.pth")
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(metrics["lr"].iloc[-1])
    assert (state["settings"]["plan"]["schedule"], state["step"]) == ("epoch-cosine", 8)
    assert state["random"].dtype == torch.uint8 and state["best"] == content["best_acc1"]
    best = metrics["epoch"][metrics["accuracy"].idxmax()]
    kept = read_checkpoint(simclr_run / "seed3" / "model_best_mine.pth.tar")
    assert kept["best_acc1"] == content["best_acc1"] and kept["epoch"] in (best, 4)
    report = (simclr_run / "report.html").read_text()
    assert "Fine-tuning with 7 pseudo-labels of folder" in report and "NaN" not in report


def test_the_split_by_its_columns_and_where_it_lies(simclr_folder, tmp_path):
    images = open_dataset("folder", simclr_folder)
    indices = [0, 3, 9, 14, 20, 26, 30]

    def trial(name, *more):
        argv = simclrv2(simclr_folder, tmp_path / "run", "--trainindex_x", name, *more)
        (found,) = trials_of(settings(SIMCLRV2, *argv), images, fill=False)
        return found

    found = trial(simclr_folder / "split.csv")
    # The folder says that image 26 is of class 2.
    assert found.labelled.labels.tolist() == [0, 0, 1, 1, 2, 3, 3] and found.images == 14
    (simclr_folder / "indexes").mkdir(exist_ok=True)
    np.save(simclr_folder / "indexes" / "picks.npy", indices)
    found = trial("picks.npy")
    assert found.labelled.labels.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert found.labelled.name == str(simclr_folder / "indexes" / "picks.npy")
    # A batch larger than all views is what there is.
    found = trial("picks.npy", "--batch-size", 512, "--roll-data", 1)
    assert (found.plan.batch_size, found.images) == (7, 7)


def test_test_only(simclr_run, simclr_folder, script, capsys, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in simclr_run.rglob("*")}
    script(SIMCLRV2, *simclrv2(simclr_folder, simclr_run, "--evaluate"))
    out = capsys.readouterr().out
    accuracy = float(rows_of(simclr_run)[0]["accuracy"])
    assert out.splitlines()[-1] == f"accuracy: {accuracy:.2f}"
    resumed = ("--evaluate", "--resume", simclr_run / NAME)
    script(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "none", *resumed))
    assert capsys.readouterr().out == out
    assert {p: p.stat().st_mtime_ns for p in simclr_run.rglob("*")} == before
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("file", ["checkpoint.pth", "checkpoint_mine.pth.tar"])
def test_going_on_from_a_checkpoint_elsewhere(simclr_run, simclr_folder, script, tmp_path, file):
    script(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "half", "--max-steps", 4))
    path = tmp_path / "half" / "seed3" / file
    assert read_checkpoint(path)["epoch"] == 2
    words = simclrv2(simclr_folder, tmp_path / "whole", "--resume", path)
    script(SIMCLRV2, *words)
    same(tmp_path / "whole", simclr_run)
    # Once more: there is nothing left to do, by its own checkpoint.
    before = (tmp_path / "whole" / "seed3" / "checkpoint.pth").stat().st_mtime_ns
    script(SIMCLRV2, *words)
    assert (tmp_path / "whole" / "seed3" / "checkpoint.pth").stat().st_mtime_ns == before


def test_going_on_from_the_originals_own_file(simclr_run, simclr_folder, script, tmp_path):
    content = read_checkpoint(simclr_run / NAME)
    # What the original's files do not hold, and an optimizer with options of its own.
    old = {key: content[key] for key in LAYOUT} | {"epoch": 2, "best_acc1": torch.tensor(99.5)}
    old["optimizer"]["param_groups"][0] |= {"trust_coefficient": 0.001, "dampening": 0}
    torch.save(old, tmp_path / "old.pth.tar")
    script(
        SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "run", "--resume", tmp_path / "old.pth.tar")
    )
    run = tmp_path / "run"
    assert pd.read_csv(run / "seed3" / "metrics.csv")["epoch"].tolist() == [3, 4]
    # What came out before was better.
    assert read_checkpoint(run / NAME)["best_acc1"] == 99.5
    assert not list(run.rglob("model_best*"))


@pytest.mark.slow
def test_killed_and_started_again(simclr_run, simclr_folder, tmp_path):
    run = tmp_path / "run"
    words = simclrv2(simclr_folder, run, "--opts", "CHECKPOINT_STEPS", 1)
    kill_script(SIMCLRV2, *words, when=lambda: (run / "seed3" / "checkpoint.pth").exists())
    step = torch.load(run / "seed3" / "checkpoint.pth")["step"]
    assert step < 8 and not (run / "results.csv").exists()
    done = run_script(SIMCLRV2, *words)
    assert done.returncode == 0, done.stderr
    assert f"training goes on from step {step}" in done.stderr
    same(run, simclr_run)


@pytest.mark.slow
def test_two_processes_train_as_one_does(simclr_folder, script, tmp_path):
    # In small steps: batch norm over six images makes much of every rounding.
    def words(run):
        return [str(w) for w in simclrv2(simclr_folder, tmp_path / run, "--lr", 0.02)]

    done = torchrun(2, SIMCLRV2, *words("two"))
    assert done.returncode == 0, done.stderr[-2000:]
    script(SIMCLRV2, *words("one"))
    same(tmp_path / "two", tmp_path / "one", rtol=1e-3, atol=1e-4)
    assert rows_of(tmp_path / "two")[0]["accuracy"] == rows_of(tmp_path / "one")[0]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--freeze-backbone", "--num-classes", "9"),
        ("--use-checkpoint", "--amp-opt-level", "O2", "--warmup-epochs", "1"),
        ("--no-lr-decay", "--start-epoch", "2", "--skip-save"),
    ],
    ids=" ".join,
)
def test_the_rest_of_the_recipe(simclr_folder, script, tmp_path, options, capsys):
    script(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "run", *options))
    assert re.fullmatch(r"accuracy: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])
    if "--skip-save" in options:
        assert not (tmp_path / "run").exists()
        return
    weights = weights_of(tmp_path / "run")
    start = FineTuned(load_simclrv2(simclr_folder / "r14_0.125x_sk0.pth"), 4).state_dict()
    moved = {
        k for k in start if not k.startswith("linear") and not torch.equal(weights[k], start[k])
    }
    frozen = "--freeze-backbone" in options
    assert weights["linear.weight"].shape == (9 if frozen else 4, 256)
    assert any(k.startswith("model.") and k.endswith("weight") for k in moved) is not frozen
    assert any(k.startswith("model.") and k.endswith("running_mean") for k in moved)
    assert "head.layers.0.weight" in moved


def test_recomputation_is_where_the_flag_asks_for_it(simclr_folder, tmp_path):
    images = open_dataset("folder", simclr_folder)
    for words, expected in (((), False), (("--use-checkpoint",), True)):
        cfg = settings(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "run", *words))
        method, _ = method_of(cfg, images)
        assert method.network().model.recompute is expected


def test_a_process_for_each_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "usl.stages.simclrv2.launch", lambda words, **options: calls.append((words, options))
    )
    monkeypatch.setattr("usl.stages.simclrv2.choose_device", lambda name: torch.device("cuda"))
    call = Call("fine_tune.py", "python fine_tune.py", ("fine_tune.py", "--spawn"))
    for flags, gpus, expected in (
        (("--multiprocessing-distributed",), 4, (1, 0, 4)),
        (("--multiprocessing-distributed", "--world-size", 2, "--rank", 1), 4, (2, 1, 4)),
        (("--multiprocessing-distributed",), 1, None),
        ((), 4, None),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        begun = spread(settings(SIMCLRV2, *flags), call)
        assert begun is (expected is not None)
        if expected:
            words, options = calls.pop()
            assert words == call.words
            assert (options["nodes"], options["node"], options["per_node"]) == expected
    assert not calls


@pytest.mark.slow
def test_an_encoder_of_any_kind_and_a_network_from_scratch(simclr_folder, script, tmp_path, capsys):
    (simclr_folder / "hidden.pth").write_bytes((simclr_folder / "r14_0.125x_sk0.pth").read_bytes())
    for name, options in {
        "timm": ("MODEL.ARCH", "timm/test_resnet", "MODEL.PRETRAIN_PATH", tmp_path / "timm.pth"),
        "hidden": ("MODEL.PRETRAIN_PATH", simclr_folder / "hidden.pth",
                   "MODEL.SIZE", "r14_0.125x_sk0"),
        "scratch": ("MODEL.PRETRAIN_PATH", "", "MODEL.SIZE", "r14_0.125x_sk1"),
    }.items():  # fmt: skip
        if name == "timm":
            import timm

            torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "timm.pth")
        words = ("--epochs", 1, "--opts", *options)
        script(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / name, *words))
        assert "accuracy: " in capsys.readouterr().out
    assert "linear.weight" in weights_of(tmp_path / "timm")
    # 32 pixels: the stem of small images.
    assert weights_of(tmp_path / "scratch")["model.net.0.0.weight"].shape == (8, 3, 3, 3)


def test_images_in_memory(cifar, simclr_folder, script, tmp_path):
    script(
        SIMCLRV2, "--pretrain", simclr_folder / "r14_0.125x_sk0.pth", "--max-steps", 2, "--seed", 1,
        cifar, "--opts", "DATASET.NAME", "cifar10", "RUN_DIR", tmp_path / "run",
        "FINETUNE.LABELED_INDICES_PATH", "slice1", "DATALOADER.BATCH_SIZE", 8,
    )  # fmt: skip
    # Ten classes: also whether the right one is among the five most probable.
    (row,) = rows_of(tmp_path / "run")
    assert float(row["top5"]) >= float(row["accuracy"])
    assert "right among the five most probable" in (tmp_path / "run" / "report.html").read_text()


def test_precision_is_what_the_device_has(monkeypatch):
    cfg = settings(SIMCLRV2, "--amp-opt-level", "O1", "--opts", "DEVICE", "cpu")
    for known, expected in (
        ({"avx512_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert precision_of(cfg) == expected
    monkeypatch.setattr("usl.stages.training.choose_device", lambda name: torch.device("cuda"))
    for native, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert precision_of(cfg) == expected
    assert precision_of(settings(SIMCLRV2, "--amp-opt-level", "O0")) == "float32"


BAD = {
    "--trainindex_x none.csv": "there is no list of labelled images (FINETUNE.LABELED_INDICES_PATH",
    "--num-classes 3": "MODEL.NUM_CLASSES is 3, and folder in ",
    "--warmup-epochs -1": "WARMUP_EPOCHS is -1; choose 0 or more",
    "--evaluate": "EVAL_ONLY, and there is no ",
    "--use-checkpoint --opts MODEL.ARCH timm/test_resnet": "MODEL.RECOMPUTE is of MODEL.ARCH SimC",
    f"--name-to-save {'n' * 201}": "RUN_NAME is 201 characters long; choose a shorter one",
    "--start-epoch 9": "START_EPOCH is 9; choose 0 to 3",
    "--resume none.pth.tar": "there is no checkpoint (RESUME); put none.pth.tar in one of",
    "--momentum -1": "OPTIMIZER.MOMENTUM is -1.0; choose 0 or more",
    "-p 0": "PRINT_FREQ is 0 steps; choose at least 1",
    "--roll-data 0": "FINETUNE.REPEAT_DATA is 0; choose at least 1",
    "--dist-backend mpi": "DIST.BACKEND is 'mpi'; choose gloo on a CPU",
    "--world-size 0": "DIST.NODES is 0; choose at least 1",
    "--world-size 1 --rank 3": "DIST.NODE is 3 of DIST.NODES 1; choose 0 to 0",
    "--world-size 2 --rank 2": "DIST.NODE is 2 of DIST.NODES 2; choose 0 to 1",
    "--world-size 2 --dist-url tcp://no.such.host.invalid:1": "DIST.URL is 'tcp://no.such.host.inv",
    "--world-size 2 --rank 0 --dist-url env://": "DIST.URL is 'env://'; give one such as tcp://",
    "--opts MODEL.SIZE r50": "MODEL.SIZE is 'r50'; give one such as r50_1x_sk0",
    "--opts MODEL.PRETRAIN_PATH  MODEL.SIZE ": "MODEL.PRETRAIN_PATH is empty; give a checkpoint",
    "--opts DATASET.TRANSFORM_NAME imagenet": "DATASET.TRANSFORM_NAME is imagenet, and SimCLRv2",
    "--opts MODEL.ARCH resnet5": "unknown MODEL.ARCH 'resnet5'; did you mean",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input(simclr_folder, script, tmp_path, words):
    with pytest.raises(InputError) as error:
        script(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "run", *words.split(" ")))
    assert BAD[words] in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("Index\n3\n36\n", "has the index 36, and folder has the images 0 to 35; give a list of"),
        ("Index,Pseudolabel\n3,4\n", "line 2: the label '4' is no class; give 0 to 3 or a name"),
        ("Index,Pseudolabel\n3,-1\n", "line 2: the label '-1' is no class"),
        ("Index,ImageID\n3,a/4.png\n", "ImageID is 'a/4.png', and image 3 of folder is 'a/3.png'"),
    ],
)
def test_bad_splits(simclr_folder, script, tmp_path, split, message):
    (tmp_path / "bad.csv").write_text(split)
    with pytest.raises(InputError, match=re.escape(message)):
        script(
            SIMCLRV2,
            *simclrv2(simclr_folder, tmp_path / "run", "--trainindex_x", tmp_path / "bad.csv"),
        )


def test_bad_checkpoints(simclr_run, simclr_folder, script, tmp_path):
    content = read_checkpoint(simclr_run / NAME)

    def resumed(message, *gone, **changed):
        path = tmp_path / "bad.pth.tar"
        torch.save({k: v for k, v in (content | changed).items() if k not in gone}, path)
        with pytest.raises(InputError, match=message):
            words = simclrv2(simclr_folder, tmp_path / "run", "--resume", path)
            script(SIMCLRV2, *words)

    resumed(
        "bad.pth.tar is of another network; missing: model.net", state_dict={"a": torch.ones(1)}
    )
    resumed("bad.pth.tar is no checkpoint of a training; give one with its", "state_dict")
    optimizer = content["optimizer"]
    other = {one: {"momentum_buffer": state["mu"]} for one, state in optimizer["state"].items()}
    message = "bad.pth.tar has no optimizer of this training; give one of this stage"
    resumed(message, "optimizer")
    resumed(message, optimizer=None)
    resumed(message, optimizer=optimizer | {"state": other})
    assert not (tmp_path / "run").exists()
    resumed("step 8 of 8 is done already; set more EPOCHS, test, or begin anew", "metrics")
    with pytest.raises(
        InputError, match="r14_0.125x_sk0.pth.*with its weights|no checkpoint of a tr"
    ):
        words = ("--resume", simclr_folder / "r14_0.125x_sk0.pth")
        script(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "run", *words))


def test_a_checkpoint_whose_name_hides_its_size(simclr_folder, script, tmp_path):
    hidden = tmp_path / "hidden.pth"
    hidden.write_bytes((simclr_folder / "r14_0.125x_sk0.pth").read_bytes())
    message = "does not say its size; name it like r50_1x_sk0.pth, or set MODEL.SIZE, such as r50"
    with pytest.raises(InputError, match=message):
        script(SIMCLRV2, *simclrv2(simclr_folder, tmp_path / "run", "--pretrain", hidden))


def test_images_without_labels(simclr_folder, script, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40)).save(tmp_path / "flat" / split / f"{number}.png")
    with pytest.raises(InputError, match="the test images of folder have no labels, so accuracy c"):
        words = simclrv2(simclr_folder, tmp_path / "run")
        words = [str(word) if word != simclr_folder else str(tmp_path / "flat") for word in words]
        script(SIMCLRV2, *words)
