"""Checkpoints: old ones, damaged ones, those that would run code, those of other networks."""

import argparse

import numpy as np
import pytest
import torch
from helpers import Evil, make_cld_checkpoint
from safetensors.torch import save_file

from usl import InputError
from usl.checkpoints import (
    load_weights,
    read_checkpoint,
    read_tensor,
    weights_in,
)
from usl.encoders.checkpoints import load_encoder
from usl.models.resnet_cifar import CldEncoder


def test_a_checkpoint_of_another_network(tmp_path):
    weights = CldEncoder().state_dict()
    del weights["bn1.bias"]
    weights |= {"fc.weight": torch.zeros(2), "conv1.weight": torch.zeros(64, 3, 7, 7)}
    torch.save({"model": weights}, tmp_path / "c.pth")
    with pytest.raises(InputError) as error:
        load_encoder(tmp_path / "c.pth")
    assert str(error.value).endswith(
        "c.pth is of another network; missing: bn1.bias; left over: fc.weight; "
        "of another shape: conv1.weight (64, 3, 7, 7) instead of (64, 3, 3, 3)"
    )
    with pytest.raises(InputError, match="and 95 more"):
        load_weights(CldEncoder(), {}, where="x")


def test_weights_that_old_checkpoints_lack_or_that_are_not_finite(tmp_path):
    weights = CldEncoder().state_dict()
    counters = [k for k in weights if k.endswith("num_batches_tracked")]
    torch.save({"model": {k: v for k, v in weights.items() if k not in counters}}, tmp_path / "c")
    load_encoder(tmp_path / "c")
    weights["linear.weight"][3] = torch.nan
    torch.save({"model": weights, "x": {0: torch.zeros(1)}}, tmp_path / "c")
    with pytest.raises(InputError, match="not finite: linear.weight"):
        load_encoder(tmp_path / "c")


def test_old_pickles_inside_checkpoints(tmp_path):
    content = {
        "n": np.int64(1),
        "s": np.str_("a"),
        "best": np.float64(3),
        "lr": np.float32(1),
        "opt": argparse.Namespace(lr=0.1),
    }
    make_cld_checkpoint(tmp_path / "c.pth", **content)
    assert read_checkpoint(tmp_path / "c.pth")["opt"].lr == 0.1
    # Saved under NumPy 1, whose modules had other names.
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "old.pth").read_bytes().replace(b"numpy._core", b"numpy.core")
    (tmp_path / "old.pth").write_bytes(raw)
    assert read_checkpoint(tmp_path / "old.pth")["best"] == 3.0


def test_checkpoints_cannot_run_code(tmp_path, capsys):
    torch.save({"model": {}, "evil": Evil()}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="holds exec, .* set `trust` True"):
        read_checkpoint(tmp_path / "c.pth", trust=False)
    # Where there is no such option, none is offered.
    for read in (read_checkpoint, read_tensor):
        with pytest.raises(InputError, match="holds exec, .* code; give one of tensors only"):
            read(tmp_path / "c.pth")
    assert capsys.readouterr().out == ""
    torch.save({"evil": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="old.pth holds exec"):
        read_checkpoint(tmp_path / "old.pth")
    read_checkpoint(tmp_path / "c.pth", trust=True)
    assert capsys.readouterr().out == "executed\n"


def test_damaged_checkpoints(tmp_path):
    make_cld_checkpoint(tmp_path / "c.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "page.pth").write_bytes(b"  <html><body>Quota exceeded")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha")
    for name, message in [
        ("cut.pth", "it is damaged"),
        ("text.pth", "it is damaged"),
        ("empty.pth", "it is damaged"),
        ("list.pth", "holds a list, not a dict"),
        ("page.pth", "page.pth: it is a web page, .* download the file itself"),
        ("pointer.pth", "it is a Git LFS pointer to the file; fetch the file with git lfs pull"),
        (".", "is a folder; give the checkpoint itself"),
        ("none.pth", "there is no checkpoint"),
    ]:
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / name)


WEIGHTS = {"conv.weight": torch.ones(2), "fc.bias": torch.zeros(1)}


def named(prefix, weights=WEIGHTS):
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."],
)
@pytest.mark.parametrize("key", [None, "model", "state_dict", "ema_state_dict", "state_dict_ema"])
def test_wrapped_weights_are_found(prefix, key):
    state = named(prefix)
    checkpoint = state if key is None else {key: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    assert weights_in(checkpoint) == WEIGHTS


@pytest.mark.parametrize(
    ("raw", "average"),
    [("model", "ema_model"), ("state_dict", "ema_state_dict"), ("state_dict", "state_dict_ema"),
     ("model", "model_ema")],
)  # fmt: skip
def test_of_two_the_trained_weights_are_taken_unless_their_average_is_asked_for(raw, average):
    double = {name: 2 * value for name, value in WEIGHTS.items()}
    checkpoint = {raw: WEIGHTS, average: named("module.", double) | {"n_averaged": 7}}
    assert weights_in(checkpoint) == WEIGHTS
    assert torch.equal(weights_in(checkpoint, which="ema")["conv.weight"], 2 * torch.ones(2))
    # A place that stays empty is no average.
    with pytest.raises(InputError, match="has no weight average; set `weights` model"):
        weights_in({raw: WEIGHTS, average: None}, which="ema")
    with pytest.raises(InputError, match="unknown `weights` 'best'; choose model or ema"):
        weights_in(checkpoint, which="best")


def test_one_set_of_weights_under_any_name_is_taken():
    assert weights_in({"net": WEIGHTS, "epoch": 3}) == WEIGHTS


def test_several_weights_under_other_names_are_listed():
    checkpoint = {"student": WEIGHTS, "teacher": WEIGHTS, "args": {}}
    with pytest.raises(InputError, match="several weights, student, teacher; save those to use"):
        weights_in(checkpoint)


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "c.safetensors")
    assert weights_in(read_checkpoint(tmp_path / "c.safetensors")).keys() == WEIGHTS.keys()
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="bad.safetensors: it is damaged"):
        read_checkpoint(tmp_path / "bad.safetensors")


def test_files_of_one_tensor(tmp_path):
    torch.save(torch.arange(3), tmp_path / "one.pt")
    torch.save({"features": torch.arange(3)}, tmp_path / "named.pt")
    torch.save(WEIGHTS, tmp_path / "two.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    for name in ("one.pt", "named.pt"):
        assert read_tensor(tmp_path / name).tolist() == [0, 1, 2]
    for name, message in (
        ("two.pt", "holds conv.weight, fc.bias; give a file of one tensor"),
        ("list.pt", "list.pt holds list; give a file of one tensor"),
        ("none.pt", "there is no file"),
    ):
        with pytest.raises(InputError, match=message):
            read_tensor(tmp_path / name)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_called_what_it_is(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(InputError, match="ViT-B-16.pt is a TorchScript archive; save"):
        read_checkpoint(tmp_path / "ViT-B-16.pt")
