"""Label Studio: tasks as it reads them, and answers as it exports them."""

import csv
import json

import numpy as np
import pytest
from helpers import make_folder, pets
from labelling import answered

from usl import InputError
from usl.data.datasets import open_dataset
from usl.lists.answers import read_answers
from usl.lists.exports import EXPORTS, Picked
from usl.lists.read import read_labelled

NAMES = ["cat/same.png", "dog/same.png", "dog/b c&d.png", "ü 'x'.png", "top.png"]


@pytest.fixture
def images(tmp_path):
    return open_dataset(
        "images", make_folder(tmp_path, {n: ("RGB", (9, 7)) for n in NAMES}) / "train"
    )


def exported(images, folder, **options):
    picks = Picked(np.array([2, 0, 4]), "mine", 1, **options)
    EXPORTS["labelstudio"](images, picks, folder)
    return folder / "seed1"


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def test_tasks_and_interface(images, tmp_path):
    folder = exported(images, tmp_path, classes=("cat", 'a "dog" <b>'), prefix="https://x.org/p/")
    tasks = json.loads((folder / "tasks.json").read_text())
    expected = [images.paths[pick] for pick in (2, 0, 4)]
    assert [task["data"]["path"] for task in tasks] == expected
    assert [task["data"]["index"] for task in tasks] == [2, 0, 4]
    assert tasks[0]["data"]["image"].startswith("https://x.org/p/")
    assert all(" " not in task["data"]["image"] for task in tasks)
    config = (folder / "config.xml").read_text()
    assert 'name="choice"' in config and "'a \"dog\" &lt;b&gt;'" in config


def test_label_studios_own_code_takes_them_and_gives_answers_back(images, tmp_path):
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    folder = exported(images, tmp_path, classes=("cat", "dog"))
    tasks = json.loads((folder / "tasks.json").read_text())
    interface = LabelInterface((folder / "config.xml").read_text())
    interface.validate()
    assert interface.get_control("choice").labels == ["cat", "dog"]
    for task in tasks:
        interface.validate_task(task)
    given = written(tmp_path / "export.json", answered(tasks, ["dog"], ["cat"], ["cat"]))
    expected = {2: "dog", 0: "cat", 4: "cat"}
    assert read_answers(given, images.paths) == (expected, [])
    converter = Converter(
        config=(folder / "config.xml").read_text(), project_dir=None, download_resources=False
    )
    for kind, file in (("JSON_MIN", "result.json"), ("CSV", "result.csv")):
        out = tmp_path / kind
        converter.convert(str(given), str(out), kind, is_dir=False)
        (found,) = out.glob("result.*")
        assert found.suffix == f".{file.rpartition('.')[2]}"
        assert read_answers(found, images.paths)[0] == expected


def test_answers_become_a_list_of_labels(images, tmp_path):
    tasks = json.loads((exported(images, tmp_path) / "tasks.json").read_text())
    path = written(tmp_path / "a.json", answered(tasks, ["1"], ["0"], []))
    found = read_labelled(path, images)
    assert found.indices.tolist() == [2, 0] and found.labels.tolist() == [1, 0]
    assert found.remarks == ("1 images have no answer",)
    # JSON-MIN, and CSV with the columns that Label Studio writes.
    rows = [
        {"image": t["data"]["image"], "id": 1, "choice": c}
        for t, c in zip(tasks, "101", strict=True)
    ]
    assert read_labelled(written(tmp_path / "min.json", rows), images).labels.tolist() == [1, 0, 1]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["annotator", "choice", "id", "image"])
        table.writeheader()
        table.writerows(rows)
    assert read_labelled(tmp_path / "x.csv", images).labels.tolist() == [1, 0, 1]


def test_images_in_memory_are_written_and_found_again(tmp_path):
    data = pets()
    picks = Picked(np.array([7, 3]), "mine", 0)
    EXPORTS["labelstudio"](data, picks, tmp_path)
    tasks = json.loads((tmp_path / "seed0" / "tasks.json").read_text())
    assert (tmp_path / "seed0" / "images" / "7.png").exists()
    path = written(tmp_path / "a.json", answered(tasks, ["dog"], ["cat"]))
    found = read_labelled(path, data)
    assert found.indices.tolist() == [7, 3] and found.labels.tolist() == [1, 0]


def test_annotators_who_disagree(images, tmp_path):
    tasks = json.loads((exported(images, tmp_path) / "tasks.json").read_text())
    path = written(tmp_path / "a.json", answered(tasks, ["b", "a", "b"], ["a"], ["a"]))
    answers, remarks = read_answers(path, images.paths)
    assert answers == {2: "b", 0: "a", 4: "a"}
    assert remarks == [f"annotators disagree on {images.paths[2]}: b 2, a 1"]
    path = written(path, answered(tasks, ["b", "a"], ["a"], ["a"]))
    with pytest.raises(InputError, match="annotators disagree evenly on .*, b 1, a 1; settle it"):
        read_answers(path, images.paths)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "/data/local-files/?d=elsewhere.png",
            "image 1: .* is no image of this pool; leave it out",
        ),
        ("https://x.org/same.png", "may be 'cat/same.png' or 'dog/same.png'; give it its folder"),
    ],
)
def test_answers_for_files_that_are_not_there_or_twice(images, tmp_path, url, message):
    path = written(tmp_path / "a.json", [{"image": url, "choice": "a"}])
    with pytest.raises(InputError, match=message):
        read_answers(path, images.paths)


def test_a_file_is_found_by_the_longest_end_of_its_path(images, tmp_path):
    urls = {
        "https://x.org/a/dog/same.png": "dog/same.png",
        "/data/local-files/?d=photos/cat/same.png": "cat/same.png",
        "/data/upload/3/top.png?x=1": "top.png",
        "s3://bucket/dog/b%20c%26d.png": "dog/b c&d.png",
        "http://x/%C3%BC%20%27x%27.png": "ü 'x'.png",
    }
    rows = [{"image": url, "choice": name} for url, name in urls.items()]
    answers, _ = read_answers(written(tmp_path / "a.json", rows), images.paths)
    assert {images.paths[index]: choice for index, choice in answers.items()} == {
        name: name for name in urls.values()
    }


@pytest.mark.parametrize("content", ["{", "[1]", '[{"data": {}}]', '{"a": 1}', "null"])
def test_files_that_are_no_export(images, tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="a.json is no export of Label Studio; export as JSON, JS"):
        read_labelled(tmp_path / "a.json", images)


def test_exports_without_answers_and_files_that_are_not_there(images, tmp_path):
    with pytest.raises(
        InputError, match="a.json has no answers; label some images and export them"
    ):
        read_answers(written(tmp_path / "a.json", []), images.paths)
    with pytest.raises(InputError, match="cannot read .*b.json: No such file or directory; give"):
        read_answers(tmp_path / "b.json", images.paths)


MALFORMED = {
    "address.json": [{"image": "http://[bad/z.png", "choice": "a"}],
    "nested.json": [{"image": "top.png", "choice": [["a"]]}],
    "numbers.json": [{"image": "top.png", "choice": [5]}],
    "object.json": [{"image": "top.png", "choice": [{"a": 1}]}],
    "whole.json": [
        {
            "data": {"image": "top.png"},
            "annotations": [{"result": [{"type": "choices", "value": {"choices": [1, None]}}]}],
        }
    ],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_exports(images, tmp_path, name):
    path = written(tmp_path / name, MALFORMED[name])
    with pytest.raises(InputError, match=f"{name} is no export of Label Studio; export as JSON"):
        read_answers(path, images.paths)


@pytest.mark.parametrize("cell", ['{"choices": 5}', '{"choices": [[1]]}', '{"other": 1}', "{"])
def test_malformed_cells_and_depths(images, tmp_path, cell):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "choice"], ["top.png", cell]])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("a.csv", "deep.json"):
        with pytest.raises(InputError, match="is no export of Label Studio"):
            read_answers(tmp_path / name, images.paths)


def test_a_choice_alone_is_one_answer(images, tmp_path):
    given = [{"image": "top.png", "annotations": [{"result": [{"type": "choices"}]}]}]
    given[0]["annotations"][0]["result"][0]["value"] = {"choices": "cat"}
    given[0]["data"] = {"image": "top.png"}
    assert read_answers(written(tmp_path / "a.json", given), images.paths)[0] == {
        images.paths.index("top.png"): "cat"
    }


def test_an_answer_is_not_given_to_an_image_of_another_folder(images, tmp_path):
    # Both have the name; the folder says that it is neither.
    path = written(tmp_path / "a.json", [{"image": "photos/bird/same.png", "choice": "x"}])
    with pytest.raises(InputError, match="'photos/bird/same.png' is no image of this pool"):
        read_answers(path, images.paths)
    # Fewer folders than the pool has will do where one image has them.
    path = written(tmp_path / "a.json", [{"image": "b c&d.png", "choice": "x"}])
    assert read_answers(path, images.paths)[0] == {images.paths.index("dog/b c&d.png"): "x"}


def test_a_prefix_makes_no_other_image_of_it(tmp_path):
    names = {"1.png": ("RGB", (9, 9)), "photos/1.png": ("RGB", (9, 9))}
    images = open_dataset("images", make_folder(tmp_path, names) / "train")
    for pick in (0, 1):
        picks = Picked(np.array([pick]), "mine", 1, prefix="/data/local-files/?d=photos/")
        EXPORTS["labelstudio"](images, picks, tmp_path)
        tasks = json.loads((tmp_path / "seed1" / "tasks.json").read_text())
        path = written(tmp_path / "back.JSON", answered(tasks, ["x"]))
        assert read_answers(path, images.paths)[0] == {pick: "x"}
