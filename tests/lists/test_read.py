"""Lists of labelled images: files of every kind, draws, and what is no list."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_folder, pets, read_list

from usl import InputError
from usl.data.datasets import ImageDataset, open_dataset
from usl.lists.read import draw_labelled, read_known, read_labelled
from usl.lists.write import Selected, selected_csv
from usl.selectors.by_cluster import stratified_picks

GOOD = {
    "npy": (np.array([7, 1, 2]), [7, 1, 2], [0, 1, 2]),
    "npy of small unsigned": (np.array([7, 1, 2], np.uint8), [7, 1, 2], [0, 1, 2]),
    "Index": ("Index\n7\n1\n2\n", [7, 1, 2], [0, 1, 2]),
    "Index among others": ("Name,Index\nx,7\ny,1\nz,2\n", [7, 1, 2], [0, 1, 2]),
    "numbers": ("Index,Label\n7,2\n1,0\n2,1\n", [7, 1, 2], [2, 0, 1]),
    "names": ("Index,Label\n7,dog\n1,cat\n2,2nd\n", [7, 1, 2], [1, 0, 2]),
    "names of columns in small letters": ("Index,label\n7,dog\n1,cat\n", [7, 1], [1, 0]),
    "numbers in small letters": ("Index,LABELINDEX\n7,2\n1,0\n", [7, 1], [2, 0]),
    "other order, spaces, blank lines": ("Label , Index\ndog, 7\n\n cat,1\n\n", [7, 1], [1, 0]),
    "as spreadsheets write it": (b'\xef\xbb\xbfIndex,Label\r\n"7","dog"\r\n', [7], [1]),
    "cells without a column": ("Index,Label\n7,dog,,\n1,cat\n", [7, 1], [1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_lists_of_every_kind(tmp_path, kind):
    content, indices, labels = GOOD[kind]
    found = read_list(tmp_path, content, name="list.npy" if kind.startswith("npy") else "list.csv")
    assert found.indices.tolist() == indices and found.labels.tolist() == labels
    assert found.indices.dtype == found.labels.dtype == torch.int64 and len(found) == len(indices)


def test_answers_need_no_labels_of_the_data_set(tmp_path):
    found = read_list(tmp_path, "Index,Label\n7,dog\n1,cat\n", images=pets(labels=False))
    assert found.labels.tolist() == [1, 0]


BAD = {
    "out of range": ("Index\n3\n10\n", "list.csv has the index 10, and pets has the images 0 to 9"),
    "below 0": ("Index\n-1\n", "has the index -1, and pets"),
    "huge": ("Index\n99999999999999999999\n", "has the index 99999999999999999999, and pets"),
    "twice": ("Index\n3\n4\n3\n4\n3\n", "has the index 3, 4 more than once; keep each once"),
    "no number": ("Index\n3\nx7\n", "list.csv, line 3: the index 'x7' is no whole number"),
    "a half": ("Index\n3.5\n", "the index '3.5' is no whole number"),
    "no index": ("Index,Label\n3,dog\n,cat\n", "line 3: the index '' is no whole number"),
    "a column that may hold answers": (
        "Index,Class\n3,dog\n",
        "list.csv has a column Class; call it Label if it holds answers, or remove it",
    ),
    "two columns of one name": ("Index,Label,Label\n3,dog,cat\n", "has the column Label twice"),
    "no column": ("Idx,Label\n3,dog\n", "has no column Index, only Idx, Label; add it"),
    "semicolons": ("Index;Label\n3;dog\n", "has no column Index, only Index;Label; add it"),
    "nothing": ("", "has no column Index; add it"),
    "no rows": ("Index\n", "lists no image; give at least one index"),
    "a wrong number": ("Index,Label\n3,dog\n4,3\n", "line 3: the label '3' is no class; give 0"),
    "a wrong name": ("Index,Label\n3,Dog\n", "'Dog' is no class; give 0 to 2 or a name: cat, dog"),
    "an empty answer": ("Index,Label\n3,\n", "line 2: the label '' is no class"),
    "an answer left out": ("Index,Label\n3\n", "line 2: the label '' is no class"),
    "a name and a number": (
        "Index,Label\n3,dog\n4,0\n",
        "list.csv mixes names and numbers of classes, 'dog' in line 2 and '0' in line 3; use one",
    ),
    "two columns of answers": (
        "Index,Label,LabelName\n3,dog,dog\n",
        "has the columns Label and LabelName; keep one of them",
    ),
    "a number among names": ("Index,LabelName\n3,1\n", "line 2: the label '1' is no class"),
    "a name among numbers": ("Index,LabelIndex\n3,dog\n", "line 2: the label 'dog' is no class"),
    "another image": (
        "Index,ImageID\n3,3\n4,5\n6,9\n",
        "line 3: ImageID is '5', and image 4 of pets is '4'; give a list of this data set",
    ),
    "bytes": (b"Index\n\xff\xfe\x81\n", "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_csv(tmp_path, kind):
    content, message = BAD[kind]
    with pytest.raises(InputError) as error:
        read_list(tmp_path, content)
    assert message in str(error.value) and "list.csv" in str(error.value)
    assert "\n" not in str(error.value)


BAD_ARRAYS = {
    "out of range": (np.array([3, 10]), "has the index 10, and pets has the images 0 to 9"),
    "twice": (np.array([3, 3]), "has the index 3 more than once"),
    "empty": (np.array([], np.int64), "lists no image"),
    "floats": (np.array([1.0, 2.0]), "holds float64 values; give a list of indices"),
    "a table": (np.array([[1, 2]]), "has shape (1, 2), needed is (any)"),
    "objects": (np.array([{}], object), "holds pickled objects"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(tmp_path, kind):
    content, message = BAD_ARRAYS[kind]
    with pytest.raises(InputError) as error:
        read_list(tmp_path, content, name="list.npy")
    assert message in str(error.value) and "list.npy" in str(error.value)


def test_other_things_that_are_no_list(tmp_path):
    with pytest.raises(InputError, match="list.txt is neither .npy nor .csv; give a list of one"):
        read_list(tmp_path, "3\n", name="list.txt")
    with pytest.raises(InputError, match="has no labels and pets has none; add a column Label"):
        read_list(tmp_path, "Index\n3\n", images=pets(labels=False))
    many = "Index\n" + "".join(f"{i}\n" for i in range(10, 40))
    with pytest.raises(InputError, match="has the index 10, 11, .*, 21 and 18 more, and pets"):
        read_list(tmp_path, many)


def test_fingerprints_are_of_indices_and_labels(tmp_path):
    contents = (
        "Index\n7\n1\n",
        "Index,Label\n7,0\n1,1\n",
        "Index,Label\n7,1\n1,1\n",
        "Index\n1\n7\n",
    )
    prints = [read_list(tmp_path, content).fingerprint() for content in contents]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_draws_by_class():
    data = open_dataset("digits", "")
    found = draw_labelled(data, 40, seed=3)
    expected = stratified_picks(torch.from_numpy(data.labels), 40, seed=3)
    assert found.indices.tolist() == expected.tolist() and found.counts(10) == [4] * 10
    assert found.labels.tolist() == data.labels[expected].tolist() and found.name == "slice3"
    with pytest.raises(InputError, match="a budget of 1438 picks from 1437 images"):
        draw_labelled(data, 1438, seed=0)
    with pytest.raises(InputError, match="slice0 draws by class, and pets has no labels"):
        draw_labelled(pets(labels=False), 2, seed=0)


NUMBERED = ("1", "2", "3")


def numbered(tmp_path, content):
    """A list of images whose classes are called 1, 2 and 3."""
    images = replace(pets(), classes=NUMBERED)
    return read_list(tmp_path, content, images=images).labels.tolist()


def test_answers_that_could_be_meant_in_two_ways_stop(tmp_path):
    for answers in ((0, 1, 2), (1, 2), (1,)):
        rows = "".join(f"{i},{answer}\n" for i, answer in enumerate(answers))
        with pytest.raises(InputError) as error:
            numbered(tmp_path, f"Index,Label\n{rows}")
        line = 2 + answers.index(1)
        assert str(error.value).endswith(
            f"line {line}: the label '1' may be the class of that name, or class number 1, which "
            "is called '2'; call the column LabelName or LabelIndex"
        )
        by_name = [answer - 1 for answer in answers if answer > 0]
        if len(by_name) == len(answers):
            text = f"Index,LabelName\n{rows}"
            assert numbered(tmp_path, text) == by_name
        assert numbered(tmp_path, f"Index,LabelIndex\n{rows}") == list(answers)


def test_answers_that_can_be_meant_in_one_way_do_not(tmp_path):
    # 3 is no number of a class, so all are names.
    assert numbered(tmp_path, "Index,Label\n5,3\n6,1\n") == [2, 0]
    # 0 names the class of number 0: both ways are one.
    digits = replace(pets(), classes=("0", "1", "2"))
    found = read_list(tmp_path, "Index,Label\n5,2\n6,0\n", images=digits)
    assert found.labels.tolist() == [2, 0]


@pytest.fixture
def cats(tmp_path):
    kinds = {f"{c}/{i}.png": ("L", (9, 9)) for c in ("cat", "dog") for i in range(3)}
    return open_dataset("folder", make_folder(tmp_path / "data", kinds))


@pytest.mark.parametrize(
    "content",
    [
        "Index,ImageID\n1,cat/1.png\n5,dog/2.png\n",
        "Index,path\n1,/home/me/cats/cat/1.png\n5,C:\\\\photos\\dog\\2.png\n",
        "Index,File,Label\n1,1.png,cat\n5,./dog/2.png,dog\n",
        "Index,filename\n1,\n5,2.png\n",
        "Index,comment\n1,dog/0.png\n5,x\n",
    ],
)
def test_names_that_agree_with_the_folder(tmp_path, cats, content):
    assert read_list(tmp_path, content, images=cats).indices.tolist() == [1, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "Index,ImageID\n1,cat/1.png\n5,dog/1.png\n",
            "line 3: ImageID is 'dog/1.png', and image",
        ),
        ("Index,path\n1,dog/1.png\n5,x\n", "line 2: path is 'dog/1.png', and image 1 of folder is"),
        ("Index,image\n1,11.png\n", "line 2: image is '11.png', and image 1 of folder is 'cat/1"),
    ],
)
def test_names_that_do_not_agree_stop_at_the_first(tmp_path, cats, content, message):
    with pytest.raises(InputError) as error:
        read_list(tmp_path, content, images=cats)
    assert message in str(error.value) and "give a list of this data set" in str(error.value)


def test_names_that_the_project_wrote_itself(tmp_path):
    """Also such as are those of another system, or look like what a spreadsheet is spared."""
    names = ["C:\\photos\\1.jpg", "'=x.jpg", "=y.jpg", ".\\z.jpg", "plain.jpg"]
    picks = Selected(1, np.arange(5), np.arange(5), np.ones(5), np.ones(5))
    path = tmp_path / "selected.csv"
    path.write_text(selected_csv([picks], names))
    assert read_known(path, None, 5, ids=names).rows == list(range(5))
    files = {name: ("L", (9, 9)) for name in names if "C:" not in name}
    images = open_dataset("images", make_folder(tmp_path, files) / "train")
    order = np.argsort(images.paths)
    picks = replace(picks, picks=order, clusters=order, sizes=order, density=order)
    path.write_text(selected_csv([picks], images.paths).replace("Rank", "LabelIndex"))
    known = replace(images, labels=np.zeros(4, np.int64), classes=("a",) * 5)
    assert read_labelled(path, known).indices.tolist() == order.tolist()


def test_stratified_lists_are_those_of_the_originals_draw():
    """One generator; class after class, nothing drawn before or between (method of FixMatch)."""
    labels = np.random.RandomState(4).randint(10, size=3000)
    blank = np.zeros((3000, 1, 1, 1), np.uint8)
    images = ImageDataset("x", "train", blank, labels, tuple("abcdefghij"))
    for seed in (1, 5):
        random = np.random.RandomState(seed)
        expected = np.concatenate(
            [random.choice(np.where(labels == c)[0], 4, replace=False) for c in range(10)]
        )
        assert draw_labelled(images, 40, seed=seed).indices.tolist() == expected.tolist()
        # What does not divide evenly comes after that.
        more = draw_labelled(images, 43, seed=seed)
        assert set(expected) < set(more.indices.tolist()) and max(more.counts(10)) == 5
