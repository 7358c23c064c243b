"""The recipe "From picks to a trained network" of docs/own-data.md, with made-up answers."""

import json
import re
import shlex

import pytest
from commands import FINETUNE, FIXMATCH
from helpers import ROOT, printed_alone, rows_of
from labelling import answered

from usl.data.datasets import open_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]
# So that it takes seconds.
QUICK = {
    "usl-cifar.py": ("USL.NUM_SELECTED_SAMPLES", "20"),
    "train.py": ("STEPS", "20", "FIXMATCH.EVAL_STEPS", "10"),
    "fine_tune.py": ("EPOCHS", "2", "FINETUNE.REPEAT_DATA", "10"),
}


def recipe():
    """Scripts and their words, in order."""
    text = (ROOT / "docs" / "own-data.md").read_text()
    block = re.search(r"### From picks to a trained network.*?```shell\n(.*?)```", text, re.DOTALL)
    folder = ""
    for line in block[1].replace("\\\n", " ").splitlines():
        if line.startswith("cd "):
            folder = line.removeprefix("cd ").removeprefix("../")
        elif line.startswith("python "):
            name, *words = shlex.split(line)[1:]
            yield f"{folder}/{name}", words


def test_it_runs_as_printed(encoder, script, tmp_path, capsys):
    answers, labels = tmp_path / "answers.json", open_dataset("digits", "").labels
    picks = []
    for number, (name, words) in enumerate(recipe()):
        run = tmp_path / str(number)
        words = [str(answers) if word.endswith("answers.json") else word for word in words]
        options = ("RUN_DIR", run, "MODEL.PRETRAIN_PATH", encoder)
        script(name, *words, *options, *QUICK[name.rpartition("/")[2]])
        out = capsys.readouterr()
        if name.endswith("usl-cifar.py"):
            picks.append(printed_alone(out.out))
            folder = run / "exports" / "labelstudio" / "seed1"
            tasks = json.loads((folder / "tasks.json").read_text())
            assert [task["data"]["index"] for task in tasks] == picks[-1]
            assert (
                f'<Choice value="{labels[picks[-1][0]]}"/>' in (folder / "config.xml").read_text()
            )
            given = [[str(labels[pick])] for pick in picks[-1]]
            answers.write_text(json.dumps(answered(tasks, *given)))
        else:
            (row,) = rows_of(run)
            assert row["budget"] == "20" and row["list"] == str(answers)
            assert float(row["accuracy"]) >= 0
    assert number == 3 and len(set(picks[0] + picks[1])) == 40
    assert [name for name, _ in recipe()][1:3] == [FIXMATCH, FINETUNE]
