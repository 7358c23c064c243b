"""Labelled images: lists of indices, perhaps with a person's answers, from files or drawn."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from usl.artifacts import fingerprint, load_array
from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.data.images import COLUMNS
from usl.errors import InputError
from usl.lists.answers import FileNames, is_answers, read_answers
from usl.lists.write import harmless, image_ids, picture_name
from usl.selectors.by_cluster import stratified_picks

# Items that an error lists before it counts the rest.
SHOWN = 12
# Columns of answers, whatever the case; and those that may hold some, but that nobody has defined.
ANSWERS = {name.lower(): name for name in ("Label", "LabelName", "LabelIndex", "Pseudolabel")}
DOUBTFUL = ("labels", "class", "classes", "answer", "target")
WHOLE = re.compile(r"\d{1,9}")
# Columns that name an image file, in small letters.
NAMES = tuple(map(str.lower, COLUMNS))


@dataclass(frozen=True)
class Labelled:
    """Training images whose labels are known.

    Attributes
    ----------
    name : str
        The file, or ``slice<seed>`` of a draw.
    indices : Tensor (B,), int64
        Of the data set's training images; each once.
    labels : Tensor (B,), int64
        Classes, from 0.
    remarks : tuple of str
        What a person should know, such as the classes without a label.
    pseudo : bool
        The labels are pseudo-labels, of more images than a person has labelled.
    """

    name: str
    indices: Tensor
    labels: Tensor
    remarks: tuple[str, ...] = ()
    pseudo: bool = False

    def __str__(self) -> str:
        return f"{len(self)} {'pseudo-labels' if self.pseudo else 'labels'}"

    def __len__(self) -> int:
        return len(self.indices)

    def counts(self, classes: int) -> list[int]:
        """How many images each class has."""
        return torch.bincount(self.labels, minlength=classes).tolist()

    def fingerprint(self) -> str:
        """SHA-256 of indices and labels, in their order."""
        both = fingerprint(self.indices.numpy()) + fingerprint(self.labels.numpy())
        return hashlib.sha256(both.encode()).hexdigest()


def read_labelled(path: Path, images: AnyDataset) -> Labelled:
    """Read a list of labelled training images.

    Parameters
    ----------
    path : Path
        ``.npy``: indices, (B,) integers. ``.csv``: a column ``Index``; with a column ``Label`` its
        answers, numbers or names of classes, replace the data set's; ``LabelIndex`` and USL-T's
        ``Pseudolabel`` hold numbers only and ``LabelName`` names only, for classes whose names are
        numbers. Whatever else names
        an image (``ImageID``, ``path``, ``file``, …) must agree with the data set. Or an export of
        Label Studio or CVAT, see :func:`usl.lists.answers.read_answers`.
    images : ImageDataset or FolderDataset
        The training images. They need labels of their own only for a list without.

    Returns
    -------
    Labelled

    Raises
    ------
    InputError
        Unreadable, empty, without the column, an index that is no image's or comes twice, a name
        of another image, a label that is no class or could mean two, or no label at all.
    """
    if is_answers(path, _head(path)):
        return _from_answers(path, images)
    head, rows, indices = _read(path)
    _check_names(path, head, rows, indices, images)
    columns = [name for name in head if name.lower() in ANSWERS]
    if len(columns) > 1:
        raise InputError(f"{path} has the columns {' and '.join(columns)}; keep one of them")
    answers, kind = None, ""
    if columns:
        kind = ANSWERS[columns[0].lower()]
        given = [(line, row[columns[0]]) for line, row in rows]
        answers = _classes_of(given, images.classes, path, column=kind)
    elif doubtful := [name for name in head if name.lower() in DOUBTFUL]:
        raise InputError(
            f"{path} has a column {doubtful[0]}; call it Label if it holds answers, or remove it"
        )
    return replace(_labelled(path, indices, answers, images), pseudo=kind == "Pseudolabel")


def _from_answers(path: Path, images: AnyDataset) -> Labelled:
    """The answers of a tool's export."""
    files = isinstance(images, FolderDataset)
    names = image_ids(images) if files else [picture_name(index) for index in range(len(images))]
    answers, remarks = read_answers(path, names)
    rows = list(enumerate(answers.values(), start=1))
    classes = _classes_of(rows, images.classes, path, column="Label")
    found = _labelled(path, list(answers), classes, images)
    return replace(found, remarks=(*found.remarks, *remarks))


def read_indices(path: Path) -> list[int]:
    """The indices of a list, in its order, whatever data set it is of.

    Parameters
    ----------
    path : Path
        As for :func:`read_labelled`.

    Raises
    ------
    InputError
        Unreadable, of another kind, or without the column.
    """
    return _read(path)[2]


@dataclass(frozen=True)
class Known:
    """Images whose labels are known already.

    Attributes
    ----------
    rows : list of int
    round : int
        Of choosing, that made the list: the largest of its column ``Round``, else 1.
    """

    rows: list[int]
    round: int = 1


def read_known(
    path: Path, names: Sequence[str] | None, images: int, *, ids: Sequence[str] | None = None
) -> Known:
    """Read which images are labelled, whatever the labels are.

    Parameters
    ----------
    path : Path
        As for :func:`read_labelled`. A column that names files counts more than ``Index``: images
        may have been added since.
    names : sequence of str, optional
        Files of all images, (N,), unless they are in memory.
    images : int
        N.
    ids : sequence of str, optional
        What tables call the images, where these are not their files.

    Raises
    ------
    InputError
        Unreadable, empty, an image that is not there, or one that comes twice.
    """
    if is_answers(path, _head(path)):
        names = names or [picture_name(index) for index in range(images)]
        return Known(list(read_answers(path, names)[0]))
    head, table = _read_csv(path) if path.suffix == ".csv" else ([], [])
    column = next((name for name in head if name.lower() in NAMES), None)
    called = ids or names
    if column is not None and called is not None and all(row[column] for _, row in table):
        known, exact = FileNames(called), set(called)
        rows = [
            known.index_of(_as_written(row[column], exact), f"{path}, line {line}")
            for line, row in table
        ]
    else:
        rows = read_indices(path)
    wrong = [row for row in rows if not 0 <= row < images]
    if wrong or not rows:
        found = f"has the index {_some(wrong)}" if wrong else "lists no image"
        raise InputError(f"{path} {found}; give indices from 0 to {images - 1}")
    twice = [row for row, count in Counter(rows).items() if count > 1]
    if twice:
        raise InputError(f"{path} has image {_some(twice)} more than once; keep each once")
    rounds = [int(row["Round"]) for _, row in table if WHOLE.fullmatch(row.get("Round", ""))]
    return Known(rows, max(rounds, default=1))


def _as_written(name: str, known: Container[str]) -> str:
    """A file's name before :func:`usl.lists.write.harmless`, from its own system on."""
    if name in known:
        return name
    if harmless(name[1:]) == name:
        name = name[1:]
    if name in known:
        return name
    return name.replace("\\", "/").removeprefix("./")


def _read(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[int]]:
    """Columns and rows of a CSV, none for an array, and the indices."""
    if path.suffix == ".npy":
        advice = "give a list of indices, such as selected_indices_40_1.npy"
        return [], [], load_array(path, shape=(None,), kind="iu", advice=advice).tolist()
    if path.suffix != ".csv":
        raise InputError(f"{path} is neither .npy nor .csv; give a list of one of these kinds")
    head, rows = _read_csv(path)
    if "Index" not in head:
        found = f", only {', '.join(head)}" if head else ""
        raise InputError(f"{path} has no column Index{found}; add it")
    indices = []
    for line, row in rows:
        try:
            indices.append(int(row["Index"]))
        except ValueError:
            raise InputError(
                f"{path}, line {line}: the index {row['Index']!r} is no whole number; correct it"
            ) from None
    return head, rows, indices


def draw_labelled(images: AnyDataset, budget: int, *, seed: int) -> Labelled:
    """Draw the same number of labelled images from each class, by ``seed``: ``slice<seed>``.

    See :func:`usl.selectors.by_cluster.stratified_picks`. Needs the labels of all images, so it is
    no selection that a person could make.

    Raises
    ------
    InputError
        A budget out of range, or images without labels.
    """
    name = f"slice{seed}"
    if images.labels is None:
        raise InputError(f"{name} draws by class, and {images.name} has no labels; give a list")
    indices = stratified_picks(torch.from_numpy(images.labels), budget, seed=seed)
    return _remarked(Labelled(name, indices, torch.from_numpy(images.labels)[indices]), images)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Names of the columns, and rows with the numbers of their lines; all texts."""
    try:
        # Spreadsheets begin their files with a mark, which utf-8-sig takes off.
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            head = [name.strip() for name in next(lines, [])]
            twice = [name for name, count in Counter(head).items() if name and count > 1]
            if twice:
                raise InputError(f"{path} has the column {twice[0]} twice; keep one")
            rows = [
                (
                    lines.line_num,
                    {
                        # Names of files may begin and end with spaces.
                        name: cell if name.lower() in NAMES else cell.strip()
                        for name, cell in zip_longest(head, row[: len(head)], fillvalue="")
                    },
                )
                for row in lines
                if any(row)
            ]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; give a csv with a column Index") from None
    return head, rows


def _head(path: Path) -> list[str]:
    """Names of the columns of a CSV; none of other files."""
    return _read_csv(path)[0] if path.suffix == ".csv" else []


def _labelled(
    path: Path, indices: list[int], answers: list[int] | None, images: AnyDataset
) -> Labelled:
    """Check what was read."""
    if not indices:
        raise InputError(f"{path} lists no image; give at least one index")
    wrong = [index for index in indices if not 0 <= index < len(images)]
    if wrong:
        raise InputError(
            f"{path} has the index {_some(wrong)}, and {images.name} has the images 0 to "
            f"{len(images) - 1}; give a list of this data set"
        )
    twice = [index for index, count in Counter(indices).items() if count > 1]
    if twice:
        raise InputError(f"{path} has the index {_some(twice)} more than once; keep each once")
    chosen = torch.tensor(indices, dtype=torch.int64)
    if answers is not None:
        labels = torch.tensor(answers, dtype=torch.int64)
    elif images.labels is not None:
        labels = torch.from_numpy(images.labels)[chosen]
    else:
        raise InputError(f"{path} has no labels and {images.name} has none; add a column Label")
    return _remarked(Labelled(str(path), chosen, labels), images)


def _remarked(labelled: Labelled, images: AnyDataset) -> Labelled:
    """Remark which classes have no label: what is trained on the list never answers with them."""
    if not images.classes:
        return labelled
    counts = labelled.counts(len(images.classes))
    missing = tuple(name for name, n in zip(images.classes, counts, strict=True) if not n)
    if not missing:
        return labelled
    return replace(labelled, remarks=(f"no image is labelled {_some(missing)}",))


def _check_names(
    path: Path,
    head: list[str],
    rows: list[tuple[int, dict[str, str]]],
    indices: list[int],
    images: AnyDataset,
) -> None:
    """Raise InputError at the first row that names another image than its index does."""
    known = image_ids(images)
    files = isinstance(images, FolderDataset)
    for column in head:
        if column.lower() not in (NAMES if files else ("imageid",)):
            continue
        for (line, row), index in zip(rows, indices, strict=True):
            if not 0 <= index < len(known):
                continue
            given = _as_written(row[column], {known[index]})
            if not given:
                continue
            same = given == known[index]
            if files and not same:
                # A path from elsewhere, or a part of it.
                long, short = f"/{given}", f"/{known[index]}"
                same = long.endswith(short) or short.endswith(long)
            if not same:
                raise InputError(
                    f"{path}, line {line}: {column} is {row[column]!r}, and image {index} of "
                    f"{images.name} is {known[index]!r}; give a list of this data set"
                )


def _classes_of(
    answers: list[tuple[int, str]], classes: tuple[str, ...], path: Path, *, column: str
) -> list[int]:
    """Numbers of the classes that answers, each with its line, name: all by number or all by name.

    Raises
    ------
    InputError
        A label that is no class; numbers and names mixed; or labels that are names of some classes
        and numbers of others.
    """
    names = {name: number for number, name in enumerate(classes)}
    numbers = {str(number): number for number in range(len(classes))}
    advice = f"0 to {len(classes) - 1} or a name: {_some(classes)}"
    if not classes:
        # Nobody has said which there are.
        numbers = {a: int(a) for _, a in answers if a.isdecimal() and len(a) < 10}
        advice = "a whole number from 0 on"
    known = {"Label": (names, numbers), "LabelName": (names,)}
    readings = known.get(column, (numbers,))
    for line, answer in answers:
        if not any(answer in reading for reading in readings):
            raise InputError(
                f"{path}, line {line}: the label {answer!r} is no class; give {advice}"
            )
    whole = [reading for reading in readings if all(a in reading for _, a in answers)]
    if not whole:
        name = next((line, a) for line, a in answers if a not in numbers)
        number = next((line, a) for line, a in answers if a not in names)
        raise InputError(
            f"{path} mixes names and numbers of classes, {name[1]!r} in line {name[0]} and "
            f"{number[1]!r} in line {number[0]}; use one of both"
        )
    twofold = [
        (line, a) for line, a in answers if a in names and names[a] != numbers.get(a, names[a])
    ]
    if len(readings) > 1 and twofold and whole != [names]:
        line, answer = twofold[0]
        raise InputError(
            f"{path}, line {line}: the label {answer!r} may be the class of that name, or class "
            f"number {answer}, which is called {classes[int(answer)]!r}; call the column LabelName "
            "or LabelIndex"
        )
    return [whole[0][answer] for _, answer in answers]


def _some(items: list[int] | tuple[str, ...]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more
