"""CVAT: an archive of images for its tasks, and the tags that it exports."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from usl.artifacts import save_text
from usl.errors import InputError

ADVICE = 'export the task as "CVAT for images 1.1"'
# Bytes of annotations in an archive: more is no task's, but an attack.
LARGEST = 1 << 30


def write_task(
    folder: Path, files: Sequence[tuple[str, tuple[int, int]]], *, classes: Sequence[str]
) -> None:
    """Write ``manifest.jsonl``, the order of the images, and ``labels.json``, the tags.

    To go with an archive of the images: both are given to a new task, its sorting method
    "predefined", and the labels to the raw editor of its constructor.

    Parameters
    ----------
    folder : Path
    files : sequence of (name, (width, height))
        As they are called in the archive.
    classes : sequence of str

    Notes
    -----
    The form is that of CVAT's documentation, "Dataset Manifest".
    """
    lines: list[dict[str, object]] = [{"version": "1.1"}, {"type": "images"}]
    for name, (width, height) in files:
        suffix = PurePosixPath(name).suffix
        stem = name.removesuffix(suffix)
        lines.append({"name": stem, "extension": suffix, "width": width, "height": height})
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    save_text(folder / "manifest.jsonl", text)
    labels = [{"name": name, "type": "tag", "attributes": []} for name in classes]
    save_text(folder / "labels.json", json.dumps(labels, indent=1, ensure_ascii=False) + "\n")


def read_tags(path: Path) -> list[tuple[str, list[str]]]:
    """The file and the tags of each image of "CVAT for images 1.1".

    Parameters
    ----------
    path : Path
        ``annotations.xml``, or the ``.zip`` it is in.

    Raises
    ------
    InputError
        No such export.
    """
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("annotations.xml").file_size > LARGEST:
                    raise InputError(f"annotations.xml in {path} is too large; {ADVICE}")
                root = ElementTree.fromstring(archive.read("annotations.xml"))
        else:
            root = ElementTree.fromstring(path.read_bytes())
        if root.tag != "annotations" or root.find("track") is not None:
            raise ValueError
        return [
            (image.attrib["name"], [tag.attrib["label"] for tag in image.iterfind("tag")])
            for image in root.iterfind("image")
        ]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give another") from None
    except InputError:
        raise
    except Exception:  # parsers and zlib raise errors of any kind on damaged files
        raise InputError(f"{path} is no export of CVAT; {ADVICE}") from None
