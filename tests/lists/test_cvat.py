"""CVAT: tasks as it reads them, and tags as it exports them."""

import json
import zipfile
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from helpers import make_folder, pets

from usl import InputError
from usl.data.datasets import open_dataset
from usl.lists.answers import read_answers
from usl.lists.exports import EXPORTS, Picked
from usl.lists.read import read_known, read_labelled

NAMES = ["a/same.png", "b/same.png", "b/c d&é.jpg", "per%20cent.png", "v1.2/no.suffix.png"]


@pytest.fixture
def images(tmp_path):
    kinds = {name: ("RGB", (9 + i, 7)) for i, name in enumerate(NAMES)}
    return open_dataset("images", make_folder(tmp_path, kinds) / "train")


def exported(images, folder, *picks, **options):
    EXPORTS["cvat"](images, Picked(np.array(picks), "mine", 1, **options), folder)
    return folder / "seed1"


def annotated(path, *tags):
    """What CVAT exports of images and their tags: "CVAT for images 1.1"."""
    images = "".join(
        f'<image id="{i}" name={quoteattr(name)} width="9" height="7">'
        + "".join(f'<tag label={quoteattr(tag)} source="manual"></tag>' for tag in given)
        + '<box label="other" xtl="0" ytl="0" xbr="1" ybr="1" occluded="0" z_order="0"/></image>'
        for i, (name, given) in enumerate(tags)
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta/>'
    path.write_text(f"{head}{images}</annotations>", encoding="utf-8")
    return path


def test_a_task_as_cvat_reads_it(images, tmp_path):
    folder = exported(images, tmp_path, 4, 0, 2, classes=("cat", 'a "dog"'))
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    # Its reader wants version and type on lines of their own, then name and extension apart.
    assert lines[:2] == [{"version": "1.1"}, {"type": "images"}]
    named = [line["name"] + line["extension"] for line in lines[2:]]
    assert named == [images.paths[i] for i in (4, 0, 2)]
    with zipfile.ZipFile(folder / "images.zip") as archive:
        assert sorted(archive.namelist()) == sorted(named)
        for pick, line in zip((4, 0, 2), lines[2:], strict=True):
            assert archive.read(images.paths[pick]) == images.content(pick)
            assert (line["width"], line["height"]) == images.size_of(pick)
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == [
        {"name": name, "type": "tag", "attributes": []} for name in ("cat", 'a "dog"')
    ]


def test_images_in_memory(tmp_path):
    folder = exported(pets(), tmp_path, 3, 7)
    with zipfile.ZipFile(folder / "images.zip") as archive:
        assert sorted(archive.namelist()) == ["3.png", "7.png"]
    assert '"name":"7","extension":".png","width":8' in (folder / "manifest.jsonl").read_text()
    assert [entry["name"] for entry in json.loads((folder / "labels.json").read_text())] == [
        "cat", "dog", "2nd",
    ]  # fmt: skip
    answers = annotated(tmp_path / "back.xml", ("3.png", ["dog"]), ("7.png", ["2nd"]))
    found = read_labelled(answers, pets())
    assert found.indices.tolist() == [3, 7] and found.labels.tolist() == [1, 2]


def test_tags_come_back(images, tmp_path):
    path = annotated(
        tmp_path / "annotations.xml",
        *((name, [f"tag {i}"]) for i, name in enumerate(images.paths)),
    )
    answers, remarks = read_answers(path, images.paths)
    assert answers == {i: f"tag {i}" for i in range(5)} and not remarks
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.write(path, "annotations.xml")
    assert read_answers(tmp_path / "task.zip", images.paths)[0] == answers
    assert read_known(path, images.paths, 5).rows == list(range(5))


def test_the_code_behind_cvats_exports_writes_what_is_read(images, tmp_path):
    dm = pytest.importorskip("datumaro")
    picture = dm.components.media.Image.from_numpy(data=np.zeros((7, 9, 3), np.uint8))
    items = [
        dm.DatasetItem(id=name, media=picture, annotations=[dm.components.annotation.Label(i)])
        for i, name in enumerate(["b/same", "a/same"])
    ]
    made = dm.Dataset.from_iterable(items, categories=["cat", "dog"])
    made.export(str(tmp_path / "out"), "cvat", save_media=False, image_ext=".png")
    (path,) = (tmp_path / "out").glob("*.xml")
    assert read_answers(path, images.paths)[0] == {2: "cat", 0: "dog"}


def test_what_people_leave_out_and_disagree_on(images, tmp_path):
    path = annotated(
        tmp_path / "a.xml", ("a/same.png", ["x", "y", "x"]), ("b/same.png", []),
    )  # fmt: skip
    answers, remarks = read_answers(path, images.paths)
    assert answers == {0: "x"}
    assert remarks == [
        "1 images have no answer", "annotators disagree on a/same.png: x 2, y 1",
    ]  # fmt: skip
    annotated(path, ("a/same.png", ["x", "y"]))
    with pytest.raises(InputError, match="annotators disagree evenly on 'a/same.png', x 1, y 1"):
        read_answers(path, images.paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotations><image/></annotations>", "is no export of CVAT; export the task as"),
        ("<annotations><track id='0'/></annotations>", "is no export of CVAT"),
        ("<other/>", "is no export of CVAT"),
        ("not xml", "is no export of CVAT"),
        ("<annotations/>", "has no answers; label some images"),
        ('<annotations><image name="q.png"><tag label="x"/></image></annotations>', "no image of"),
        (
            '<annotations><image name="same.png"><tag label="x"/></image></annotations>',
            "'same.png' may be 'a/same.png' or 'b/same.png'; give it its folder",
        ),
        (
            "<!DOCTYPE a [<!ENTITY x '" + 99 * "y" + "'>" + "".join(
                f"<!ENTITY x{i} '{9 * f'&x{i - 1 if i else str()};'}'>" for i in range(12)
            ) + "]><annotations>&x11;</annotations>",
            "is no export of CVAT",
        ),
    ],
)  # fmt: skip
def test_other_files(images, tmp_path, content, message):
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_answers(path, images.paths)


def test_archives_of_something_else(images, tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK no")
    with pytest.raises(InputError, match="is no export of CVAT"):
        read_answers(path, images.paths)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.xml", "")
    with pytest.raises(InputError, match="is no export of CVAT"):
        read_answers(path, images.paths)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", "<annotations/>" * 99)
    content = bytearray(path.read_bytes())
    content[50:60] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no export of CVAT"):
        read_answers(path, images.paths)
    other = tmp_path / "klingon.xml"
    other.write_text('<?xml version="1.0" encoding="klingon"?><annotations/>')
    with pytest.raises(InputError, match="is no export of CVAT"):
        read_answers(other, images.paths)
    with pytest.raises(InputError, match="cannot read .*none.xml"):
        read_answers(tmp_path / "none.xml", images.paths)
