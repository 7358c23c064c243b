"""Selection by USL-T's script for folders of images: picks, pseudo-labels, answers."""

import re

import numpy as np
import pytest
import torch
from commands import FOLDER_SELECT, folder_selection
from helpers import load, printed_alone
from oracles.uslt import cosine_by_hand

from usl import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("USLT.KNN_K", 0), "USLT.KNN_K is 0; choose 2 to 36, the number of images"),
        (("USLT.KNN_K", 37), "USLT.KNN_K is 37; choose 2 to 36, the number of images"),
        (("KNN.BACKEND", "abacus"), "'abacus'"),
        (("EXPORT", "[emann]"), "unknown EXPORT 'emann'; choose from eman, usb, torchssl"),
        (("USLT.LABELS_PATH", "no.csv"), "there is no file of answers .USLT.LABELS_PATH."),
        (("USLT.NUM_PSEUDO_LABELS_PER_CLUSTER", 0), "choose at least 1, the pick itself"),
    ],
)
def test_bad_settings_of_selection_from_a_folder(
    small_folder, folder_run, tmp_path, script, options, message
):
    argv = folder_selection(small_folder, folder_run / "checkpoint.pth", tmp_path / "run")
    with pytest.raises(InputError, match=message):
        script(FOLDER_SELECT, *argv, "USLT.NUM_SELECTED_SAMPLES", 4, *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("head", "budget"), [(0, 4), (1, 0), (2, 20)])
def test_picks_and_pseudo_labels_of_a_folder(
    small_folder, folder_run, tmp_path, script, capsys, head, budget
):
    options = ("USLT.NUM_SELECTED_SAMPLES", budget, "USLT.HEAD_IN_USE", head)
    checkpoint = folder_run / "checkpoint.pth"
    if head == 1:
        # In the form of the released ones.
        content = {"model": {f"module.{k}": v for k, v in load(folder_run)["model"].items()}}
        content |= {"epoch": np.int64(9), "ema_model": None}
        checkpoint = tmp_path / "imagenet_usl_t.pth"
        torch.save(content, checkpoint)
    argv = folder_selection(small_folder, checkpoint, tmp_path)
    script(FOLDER_SELECT, *argv, *options)
    found, budget = printed_alone(capsys.readouterr().out), budget or 5
    features = np.load(tmp_path / "memory_feats_list.npy")
    clusters, distances, expected = cosine_by_hand(
        features, load(folder_run)["model"], head, budget
    )
    assert found == expected and len(set(found)) == budget
    assert np.load(tmp_path / f"selected_indices_{budget}_{head}.npy").tolist() == found

    # The label of the first pick of a cluster for its two densest images; every pick its own.
    given = {}
    for pick in reversed(found):
        same = sorted(np.flatnonzero(clusters == clusters[pick]), key=lambda i: (distances[i], i))
        given |= {int(i): pick // 9 for i in same[:2]}
    given |= {pick: pick // 9 for pick in found}
    name = "mine" + (f"_seed{head}" if head else "")
    share = f"{100 * budget / 36:.4g}"
    rows = [["Index", "ImageID", "Pseudolabel"]]
    rows += [[str(i), f"{'abcd'[i // 9]}/{i % 9}.png", str(given[i])] for i in sorted(given)]
    text = (tmp_path / f"train_{share}p_gen_{name}_index.csv").read_text()
    assert [line.split(",") for line in text.splitlines()] == rows
    (rest,) = set(tmp_path.glob("train_*.csv")) - {
        tmp_path / f"train_{share}p_gen_{name}_index.csv"
    }
    others = [line.split(",") for line in rest.read_text().splitlines()[1:]]
    assert [int(row[0]) for row in others] == [i for i in range(36) if i not in given]
    assert {row[2] for row in others} == {"-1"}


def test_a_folder_without_labels_and_the_answers_of_a_person(
    small_folder, folder_run, tmp_path, script, capsys
):
    flat = tmp_path / "flat"
    for split in ("train", "val"):
        (flat / split).mkdir(parents=True)
        for path in (small_folder / split).glob("*/*.png"):
            (flat / split / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    argv = folder_selection(small_folder, folder_run / "checkpoint.pth", tmp_path / "labelled")
    script(FOLDER_SELECT, *argv, "USLT.NUM_SELECTED_SAMPLES", 4)
    picks = printed_alone(capsys.readouterr().out)
    argv = folder_selection(flat, folder_run / "checkpoint.pth", tmp_path / "run")
    argv = (*argv, "USLT.NUM_SELECTED_SAMPLES", 4)
    script(FOLDER_SELECT, *argv)
    out = capsys.readouterr().out
    assert printed_alone(out) == picks and "accuracy" not in out
    text = (tmp_path / "run" / "train_11.11p_gen_mine_index.csv").read_text()
    assert text.splitlines()[0] == "Index,ImageID" and len(text.splitlines()) == 5

    answers = tmp_path / "answers.csv"
    answers.write_text("Index,Label\n" + "".join(f"{pick},{pick // 9}\n" for pick in picks))
    script(FOLDER_SELECT, *argv, "USLT.LABELS_PATH", answers)
    text = (tmp_path / "run" / "train_11.11p_gen_mine_index.csv").read_text()
    labelled = (tmp_path / "labelled" / "train_11.11p_gen_mine_index.csv").read_text()
    assert text == re.sub(r"([abcd])/", r"\1", labelled)
    answers.write_text("Index,Label\n" + "".join(f"{pick},0\n" for pick in picks[1:]))
    again = ("USLT.LABELS_PATH", answers, "RUN_DIR", tmp_path / "again")
    with pytest.raises(InputError, match=f"no answer for 1 of 4 picks, such as image {picks[0]}"):
        script(FOLDER_SELECT, *argv, *again)
    assert not list((tmp_path / "again").glob("selected_*"))
