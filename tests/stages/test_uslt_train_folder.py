"""Training of USL-T on a folder of images."""

import re

import pytest
import torch
from commands import FOLDER_PRETRAIN, folder_pretraining
from helpers import load, torchrun

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_training_on_a_folder_leaves_the_encoder_alone(small_folder, folder_run):
    content = load(folder_run)
    pretext = torch.load(small_folder / "pretext.pth.tar")
    assert all(torch.equal(content["model"][f"backbone.{k}"], v) for k, v in pretext.items())
    heads = [k for k in content["model"] if k.startswith("cluster_head.")]
    assert heads == [f"cluster_head.{h}.weight" for h in range(3)]
    assert content["criterion_global"]["count_ema"].shape == (3, 5)
    assert "heads gave half of a large cluster to a small" in (folder_run / "run.log").read_text()


def test_eval_only_on_a_folder(small_folder, folder_run, script, capsys):
    before = {p: p.stat().st_mtime_ns for p in folder_run.rglob("*")}
    script(FOLDER_PRETRAIN, *folder_pretraining(small_folder, folder_run), "EVAL_ONLY", True)
    out = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder_run.rglob("*")} == before
    names, *_, last = [
        line.split(",") for line in (folder_run / "metrics.csv").read_text().splitlines()
    ]
    for kind in ("nonempty/0", "macc/1", "entropy/2"):
        assert f"{kind}: {float(last[names.index(kind)]):.4g}\n" in out


@pytest.mark.slow
def test_two_processes_train_on_a_folder_as_one_does(small_folder, tmp_path, script, capsys):
    # Without a reassignment: of clusters that are 1e-7 apart, rounding decides which one an image
    # belongs to, and the gradients are added up in another order.
    def argv(run_script):
        words = folder_pretraining(small_folder, tmp_path / run_script)
        return [*map(str, words), "USLT_PRETRAIN.REASSIGN_AFTER_STEPS", "9"]

    done = torchrun(2, FOLDER_PRETRAIN, *argv("two"))
    assert done.returncode == 0, done.stderr[-2000:]
    script(FOLDER_PRETRAIN, *argv("one"))
    two, one = load(tmp_path / "two"), load(tmp_path / "one")
    for key in ("model", "criterion_local", "criterion_global"):
        for name, value in one[key].items():
            # Adam divides by the gradient's size: where that is nearly 0, rounding decides.
            torch.testing.assert_close(two[key][name], value, rtol=1e-5, atol=2e-4)
    for a, b in zip(two["metrics"], one["metrics"], strict=True):
        a.pop("images_per_second"), b.pop("images_per_second")
        assert a == pytest.approx(b, rel=1e-4)
    # Both see the images to choose from the same way, and one process says so.
    assert len(re.findall("training images.*", done.stdout)) == 3
    seen = re.findall("training images.*", capsys.readouterr().out)
    assert seen == re.findall("training images.*", done.stdout)
