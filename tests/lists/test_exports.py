"""What other tools read of picks."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import csv_rows, make_folder, pets, tiny_images
from torchvision.datasets import ImageFolder

from usl import InputError
from usl.data.datasets import open_dataset
from usl.lists.exports import EXPORTS, Picked, check_exports
from usl.lists.write import picture_name

PICKED = Picked(np.array([5, 2]), "run", 3)


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_writes_files_into_its_folder_alone(name, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    EXPORTS[name](tiny_images(8), PICKED, folder)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and all(path.is_relative_to(folder) for path in written)
    content = {path: path.read_bytes() for path in written}
    EXPORTS[name](tiny_images(8), PICKED, folder)
    assert {path: path.read_bytes() for path in written} == content


def test_eman_reads_the_images_of_a_folder_by_class_and_file(tmp_path):
    kinds = {f"{c}/{i}.png": ("L", (9, 9)) for c in ("cat", "dog") for i in range(4)}
    images = open_dataset("folder", make_folder(tmp_path / "data", kinds))
    EXPORTS["eman"](images, PICKED, tmp_path)
    assert csv_rows(tmp_path / "train_25p_gen_run_seed3_index.csv") == [
        {"Index": "2", "ImageID": "cat/2.png"}, {"Index": "5", "ImageID": "dog/1.png"},
    ]  # fmt: skip
    others = csv_rows(tmp_path / "train_75p_gen_run_seed3_index.csv")
    assert [row["Index"] for row in others] == ["0", "1", "3", "4", "6", "7"]
    EXPORTS["eman"](images, Picked(np.array([1]), "run", 0), tmp_path)
    assert (tmp_path / "train_12.5p_gen_run_index.csv").exists()


def test_usb_and_torchssl_read_arrays(tmp_path):
    EXPORTS["usb"](tiny_images(8), PICKED, tmp_path)
    labelled = np.load(tmp_path / "lb_labels2_1_seed3_idx.npy")
    others = np.load(tmp_path / "ulb_labels2_1_seed3_idx.npy")
    assert labelled.tolist() == [5, 2] and others.tolist() == [0, 1, 3, 4, 6, 7]
    broken = Picked(np.array([5, 2]), "run", 3, unreadable=np.array([0, 7]))
    EXPORTS["usb"](tiny_images(8), broken, tmp_path)
    assert np.load(tmp_path / "ulb_labels2_1_seed3_idx.npy").tolist() == [1, 3, 4, 6]
    EXPORTS["torchssl"](tiny_images(8), PICKED, tmp_path)
    assert np.load(tmp_path / "seed3" / "sampled_label_idx.npy").tolist() == [5, 2]


def test_coco_is_read_by_its_own_code(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    kinds = {f"{c}/{i} é.png": ("L", (9 + i, 9)) for c in ("cat", "dog") for i in range(4)}
    images = open_dataset("folder", make_folder(tmp_path / "data", kinds))
    EXPORTS["coco"](images, PICKED, tmp_path)
    read = coco.COCO(tmp_path / "picks_seed3.json")
    assert sorted(read.getImgIds()) == [2, 5]
    (image,) = read.loadImgs([5])
    assert (image["file_name"], image["width"], image["height"]) == ("dog/1 é.png", 10, 9)
    assert [kind["name"] for kind in read.loadCats(read.getCatIds())] == ["cat", "dog"]
    assert read.getAnnIds() == []


def test_folders_are_torchvisions_once_people_have_moved_the_files(tmp_path):
    kinds = {f"{c}/{i}.png": ("L", (9, 9)) for c in ("cat", "dog") for i in range(4)}
    images = open_dataset("folder", make_folder(tmp_path / "data", kinds))
    EXPORTS["folders"](images, PICKED, tmp_path)
    root = tmp_path / "seed3"
    for name in ("cat/2.png", "dog/1.png"):
        (root / "unlabelled" / name).rename(root / name)
    shutil.rmtree(root / "unlabelled")
    read = ImageFolder(str(root))
    assert read.classes == ["cat", "dog"] and [label for _, label in read.samples] == [0, 1]


def test_folders_have_the_last_picks_alone(tmp_path):
    images = pets()
    for rows in ([1, 2, 3], [4, 2]):
        EXPORTS["folders"](images, replace(PICKED, indices=np.array(rows)), tmp_path)
        found = {path.name for path in (tmp_path / "seed3" / "unlabelled").iterdir()}
        assert found == {picture_name(row) for row in rows}
    # What a person has put there is not lost.
    (tmp_path / "seed3" / "unlabelled" / "notes.txt").write_text("a cat")
    EXPORTS["folders"](images, PICKED, tmp_path)
    assert (tmp_path / "seed3" / "unlabelled.kept" / "notes.txt").read_text() == "a cat"


def test_names():
    check_exports([*EXPORTS])
    with pytest.raises(InputError, match="unknown `export` 'excel'; choose from eman, usb"):
        check_exports(["usb", "excel"])


@pytest.mark.parametrize("name", [".", "..", "a/b", "unlabelled", "a\0b", "a" * 300])
def test_classes_that_no_folder_can_have(name):
    with pytest.raises(InputError, match="`classes` has .*; give names that a folder can have"):
        check_exports(["cvat", "folders"], ["cat", name])
    check_exports(["labelstudio", "cvat", "coco"], ["cat", name])


def test_classes_without_a_name_of_their_own():
    for classes in (["cat", "dog", "cat"], ["cat", ""]):
        with pytest.raises(InputError, match="`classes` has '(cat)?'; give different names"):
            check_exports([], classes)


def test_images_of_which_only_names_are_here(tmp_path):
    (tmp_path / "names.txt").write_text("cat/0.png\ndog/0.png\n")
    images = open_dataset("folder", tmp_path, image_list=tmp_path / "names.txt")
    check_exports(["eman", "usb", "torchssl", "labelstudio"], (), images)
    for name in ("cvat", "coco", "folders"):
        with pytest.raises(InputError, match=f"`export` {name} needs the images, of which only na"):
            check_exports([name], (), images)


def test_a_run_in_a_folder_of_runs(tmp_path):
    picks = Picked(np.array([5, 2]), "../mine/run", 3)
    EXPORTS["eman"](tiny_images(8), picks, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train_25p_gen_..-mine-run_seed3_index.csv", "train_75p_gen_..-mine-run_seed3_index.csv",
    ]  # fmt: skip
