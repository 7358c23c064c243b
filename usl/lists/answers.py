"""People's answers, as labelling tools export them, matched to the images by their files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from usl.errors import InputError
from usl.lists import cvat, labelstudio


def is_answers(path: Path, head: Sequence[str]) -> bool:
    """Whether a file is an export of such a tool; ``head`` are the columns of a CSV."""
    if path.suffix.lower() == ".csv":
        return labelstudio.is_export(head)
    return path.suffix.lower() in (".json", ".xml", ".zip")


def read_answers(path: Path, names: Sequence[str]) -> tuple[dict[int, str], list[str]]:
    """The answers of an export, by the index of the image.

    Images are found by their files: the longest end of the path that one image has. Of several
    annotators the majority counts.

    Parameters
    ----------
    path : Path
        Label Studio's ``.json`` (JSON or JSON-MIN) or ``.csv``; CVAT's ``.xml``, or the ``.zip``
        it is in.
    names : sequence of str
        Files of all images, (N,).

    Returns
    -------
    answers : dict of int to str
        In the order of the file.
    remarks : list of str
        Where annotators disagree, and how many images have no answer.

    Raises
    ------
    InputError
        No such export; a file that is no image's, or could be that of several; or annotators who
        disagree evenly.
    """
    read = cvat.read_tags if path.suffix.lower() in (".xml", ".zip") else labelstudio.read_tasks
    known = FileNames(names)
    votes: dict[int, list[str]] = {}
    empty = 0
    for number, (file, answers) in enumerate(read(path), start=1):
        if not answers:
            empty += 1
            continue
        index = known.index_of(file, f"{path}, image {number}")
        votes.setdefault(index, []).extend(answers)
    if not votes:
        raise InputError(f"{path} has no answers; label some images and export them again")
    remarks = [f"{empty} images have no answer"] if empty else []
    found = {}
    for index, choices in votes.items():
        ranked = Counter(choices).most_common()
        if len(ranked) > 1:
            counted = ", ".join(f"{choice} {count}" for choice, count in ranked)
            if ranked[0][1] == ranked[1][1]:
                raise InputError(
                    f"{path}: annotators disagree evenly on {names[index]!r}, {counted}; settle it"
                )
            remarks.append(f"annotators disagree on {names[index]}: {counted}")
        found[index] = ranked[0][0]
    return found, remarks


class FileNames:
    """Finds images by what others call their files.

    Parameters
    ----------
    names : sequence of str
        Files of all images, (N,).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            self._by_name[name.rpartition("/")[2]].append(index)

    def index_of(self, file: str, where: str) -> int:
        """The image that a path from elsewhere, or the end of its path, names.

        Of several the one of which it has most. ``where`` begins an error.

        Raises
        ------
        InputError
            None, or as well another one.
        """
        file = file.lstrip("/")
        alike = self._by_name.get(file.rpartition("/")[2], [])
        fitting = [index for index in alike if f"/{file}".endswith(f"/{self.names[index]}")]
        if fitting:
            longest = max(len(self.names[index]) for index in fitting)
            fitting = [index for index in fitting if len(self.names[index]) == longest]
        else:
            # With fewer folders than the pool has.
            fitting = [index for index in alike if self.names[index].endswith(f"/{file}")]
        if not fitting:
            raise InputError(f"{where}: {file!r} is no image of this pool; leave it out")
        if len(fitting) > 1:
            one, other = (self.names[index] for index in fitting[:2])
            raise InputError(f"{where}: {file!r} may be {one!r} or {other!r}; give it its folder")
        return fitting[0]
