"""Rounds of labelling: the scripts go on from what is labelled."""

import csv

import numpy as np
import pytest
from commands import CIFAR, IMAGES, own_images
from helpers import make_folder, printed_alone

from usl import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")
KEY = "USL.LABELED_INDICES_PATH"


@pytest.fixture
def photos(tmp_path):
    names = {f"{kind}/{i}.png": ("RGB", (20 + i, 30)) for kind in "ab" for i in range(15)}
    return make_folder(tmp_path, names | {"=1.png": ("RGB", (9, 9))}) / "train"


def choose(script, capsys, photos, run, *more):
    script(IMAGES, *own_images(photos, run, "USL.NUM_SELECTED_SAMPLES", 5, *more))
    with (run / "selected.csv").open(newline="") as file:
        return printed_alone(capsys.readouterr().out), list(csv.DictReader(file))


def test_rounds_go_on_from_answers(photos, tmp_path, script, capsys):
    _, rows = choose(script, capsys, photos, tmp_path / "one")
    assert {row["Round"] for row in rows} == {"1"}
    # A person adds answers to selected.csv; meanwhile images have come, which shifts all indices.
    answered = tmp_path / "answers.csv"
    with answered.open("w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], "Label"])
        table.writeheader()
        table.writerows(row | {"Label": "x"} for row in rows)
    before = {row["ImageID"] for row in rows}
    make_folder(photos.parent, {"a/-new.png": ("RGB", (40, 40))})
    second, rows = choose(script, capsys, photos, tmp_path / "two", KEY, answered)
    assert {row["Round"] for row in rows} == {"2"}
    assert len(second) == 5 and not before & {row["ImageID"] for row in rows}
    # Indices alone will do where nothing has changed.
    np.save(tmp_path / "known.npy", np.array(second))
    third, rows = choose(script, capsys, photos, tmp_path / "three", KEY, tmp_path / "known.npy")
    assert not set(third) & set(second) and {row["Round"] for row in rows} == {"2"}


def test_images_in_memory(tmp_path, script, capsys):
    argv = (
        "--cfg", "configs/digits_usl.yaml", "--opts", "MODEL.ARCH", "pixels", "USL.SEEDS", "[1]",
        "USL.NUM_SELECTED_SAMPLES", 4,
    )  # fmt: skip
    script(CIFAR, *argv, "RUN_DIR", tmp_path / "one")
    first = printed_alone(capsys.readouterr().out)
    known = tmp_path / "one" / "selected_indices_4_1.npy"
    script(CIFAR, *argv, "RUN_DIR", tmp_path / "two", KEY, known)
    second = printed_alone(capsys.readouterr().out)
    assert len(set(first) | set(second)) == 8
    assert (np.bincount(np.load(tmp_path / "two" / "cluster_labels_4_1.npy")) > 0).sum() == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Index\n31\n", "has the index 31; give indices from 0 to 30"),
        ("Index\n1\n1\n", "has image 1 more than once; keep each once"),
        ("Index\n", "lists no image; give indices from 0 to 30"),
        ("path\nc/9.png\n", "line 2: 'c/9.png' is no image of this pool; leave it out"),
        ("Index\n" + "\n".join(map(str, range(27))), "a budget of 5 picks from 4 images without a"),
    ],
)
def test_lists_that_do_not_fit(photos, tmp_path, script, capsys, text, message):
    (tmp_path / "known.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        choose(script, capsys, photos, tmp_path / "run", KEY, tmp_path / "known.csv")
    assert not (tmp_path / "run").exists()


def test_formulas_come_back(photos, tmp_path, script, capsys):
    everything, rows = choose(
        script, capsys, photos, tmp_path / "all", "USL.NUM_SELECTED_SAMPLES", 26
    )
    if not any(row["ImageID"] == "'=1.png" for row in rows):
        rows.append(rows[0] | {"ImageID": "'=1.png"})
    with (tmp_path / "known.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    new, _ = choose(
        script, capsys, photos, tmp_path / "rest", KEY, tmp_path / "known.csv",
        "USL.NUM_SELECTED_SAMPLES", 31 - len(rows),
    )  # fmt: skip
    assert not set(new) & set(everything)


def test_names_from_elsewhere_and_edges(tmp_path, script, capsys):
    names = {name: ("RGB", (20, 30)) for name in (" lead.png", "x/y.png", "x/z.png", "q.png")}
    photos = make_folder(tmp_path, names) / "train"
    known = tmp_path / "known.csv"
    known.write_text('path\n" lead.png"\n/home/me/x/y.png\n./q.png\n')
    picks, _ = choose(
        script, capsys, photos, tmp_path / "run", KEY, known, "USL.NUM_SELECTED_SAMPLES", 1
    )
    assert picks == [sorted(names).index("x/z.png")]
    # An image without a name goes by its index.
    known.write_text("Index,path\n0,\n1,q.png\n")
    more = (KEY, known, "USL.NUM_SELECTED_SAMPLES", 2)
    picks, _ = choose(script, capsys, photos, tmp_path / "two", *more)
    assert sorted(picks) == [2, 3]


def test_lists_are_read_before_anything_is_begun(photos, tmp_path, script, capsys):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="is no export of Label Studio"):
        choose(script, capsys, photos, tmp_path / "run", KEY, tmp_path / "bad.json")
    assert not (tmp_path / "run").exists()
