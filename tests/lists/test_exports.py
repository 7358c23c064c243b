"""What other tools read of picks."""

import csv

import numpy as np
import pytest
from helpers import make_folder, tiny_images

from usl import InputError
from usl.data.datasets import open_dataset
from usl.lists.exports import EXPORTS, Picked, check_exports

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


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_eman_reads_the_images_of_a_folder_by_class_and_file(tmp_path):
    kinds = {f"{c}/{i}.png": ("L", (9, 9)) for c in ("cat", "dog") for i in range(4)}
    images = open_dataset("folder", make_folder(tmp_path / "data", kinds))
    EXPORTS["eman"](images, PICKED, tmp_path)
    assert rows(tmp_path / "train_25p_gen_run_seed3_index.csv") == [
        {"Index": "2", "ImageID": "cat/2.png"}, {"Index": "5", "ImageID": "dog/1.png"},
    ]  # fmt: skip
    others = rows(tmp_path / "train_75p_gen_run_seed3_index.csv")
    assert [row["Index"] for row in others] == ["0", "1", "3", "4", "6", "7"]
    EXPORTS["eman"](images, Picked(np.array([1]), "run", 0), tmp_path)
    assert (tmp_path / "train_12.5p_gen_run_index.csv").exists()


def test_usb_and_torchssl_read_arrays(tmp_path):
    EXPORTS["usb"](tiny_images(8), PICKED, tmp_path)
    labelled = np.load(tmp_path / "lb_labels2_1_seed3_idx.npy")
    others = np.load(tmp_path / "ulb_labels2_1_seed3_idx.npy")
    assert labelled.tolist() == [5, 2] and others.tolist() == [0, 1, 3, 4, 6, 7]
    EXPORTS["torchssl"](tiny_images(8), PICKED, tmp_path)
    assert np.load(tmp_path / "seed3" / "sampled_label_idx.npy").tolist() == [5, 2]


def test_names():
    check_exports([*EXPORTS])
    with pytest.raises(InputError, match="unknown `export` 'excel'; choose from eman, usb"):
        check_exports(["usb", "excel"])
