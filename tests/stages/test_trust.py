"""Checkpoints that could run code, at every stage that reads one."""

import pytest
import torch
from commands import CIFAR, FINETUNE, FIXMATCH, MINE, PRETRAIN, SELECT, SIMCLRV2
from helpers import Evil

from usl import InputError

CONFIGS = {
    CIFAR: "digits_usl", MINE: "digits_neighbors", SELECT: "digits_usl-t",
    PRETRAIN: "digits_usl-t_pretrain", FINETUNE: "digits_usl_finetune",
    FIXMATCH: "digits_usl_fixmatch", SIMCLRV2: "../../configs/digits",
}  # fmt: skip
LISTED = {FINETUNE: "FINETUNE", FIXMATCH: "FIXMATCH", SIMCLRV2: "FINETUNE"}


@pytest.mark.parametrize("stage", CONFIGS)
def test_nothing_in_a_checkpoint_is_executed_unless_it_is_trusted(stage, tmp_path, script, capsys):
    torch.save({"model": {"x": torch.ones(1)}, "evil": Evil()}, tmp_path / "r14_1x_sk0.pth")
    words = [
        "--cfg", f"configs/{CONFIGS[stage]}.yaml", "--opts", "RUN_DIR", tmp_path / "run",
        "MODEL.PRETRAIN_PATH", tmp_path / "r14_1x_sk0.pth",
    ]  # fmt: skip
    if stage in LISTED:
        words += [f"{LISTED[stage]}.LABELED_INDICES_PATH", "slice1"]
    with pytest.raises(InputError, match="holds exec, .* set MODEL.TRUST_CHECKPOINT True"):
        script(stage, *words)
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="another network|no cluster heads|no weights"):
        script(stage, *words, "MODEL.TRUST_CHECKPOINT", True)
    assert "executed\n" in capsys.readouterr().out
