"""Which image files a data set has: found in a folder, or named by a list."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from usl.errors import InputError

# Those of torchvision's ImageFolder.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Kinds of files that are counted one by one.
SHOWN = 8
# What systems and programs leave in folders, beside names that begin with a dot.
LEFTOVERS = {
    "__macosx",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "icon\r",
}


@dataclass(frozen=True)
class Listing:
    """Image files in the order of torchvision's ImageFolder: by class, then by folder and name.

    Attributes
    ----------
    paths : tuple of str
        ``class/file``, or ``file`` where there are no classes.
    labels : tuple of int, or None
        Rank of each one's class.
    classes : tuple of str
    remarks : tuple of str
        What a person should know.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def find_images(folder: Path, subset: Sequence[str] | None = None) -> Listing:
    """The image files below a folder.

    Parameters
    ----------
    folder : Path
    subset : sequence of str, optional
        Classes to keep.

    Raises
    ------
    InputError
        No images, a class without images, images beside folders, a class of ``subset`` that has no
        folder, a name that is not UTF-8, or what cannot be read.
    """
    try:
        classes, loose = folders_and_files(folder)
        if subset is not None:
            classes, loose = _kept(classes, subset, f"folder in {folder}"), []
        paths, labels, others = [], [], Counter[str]()
        for label, class_name in enumerate(classes):
            inside = sorted_files(folder, class_name)
            images = [path for path in inside if is_image(path)]
            left = Counter(kind(path) for path in inside if not is_image(path))
            if not images:
                found = f", only {counted(left)}" if left else ""
                raise InputError(
                    f"class folder {folder / class_name} has no images ({', '.join(EXTENSIONS)})"
                    f"{found}; convert its files, or move the folder out of {folder}"
                )
            paths += images
            labels += [label] * len(images)
            others += left
    except OSError as error:
        raise unreadable(error) from None
    side_by_side = [file for file in loose if is_image(file)]
    others += Counter(kind(file) for file in loose if not is_image(file))
    if side_by_side and classes:
        raise InputError(
            f"{folder} has images, such as {side_by_side[0]}, beside folders, such as {classes[0]};"
            " put every image into the folder of its class, or move the folders elsewhere"
        )
    paths += side_by_side
    if not paths:
        found = f", only {counted(others)}" if others else ""
        raise InputError(f"{folder} has no images ({', '.join(EXTENSIONS)}){found}; put some there")
    for path in paths:
        check_text(path, folder)
    remarks = (f"{folder}: left out {counted(others)}",) if others else ()
    return Listing(tuple(paths), tuple(labels) if classes else None, tuple(classes), remarks)


def read_image_list(path: Path, subset: Sequence[str] | None = None) -> Listing:
    """The image files that a text file names, ``class/file`` or ``file``, one a line.

    Parameters
    ----------
    path : Path
    subset : sequence of str, optional
        Classes to keep.

    Raises
    ------
    InputError
        Unreadable or empty; a line that names no image or one outside the folder; an image named
        twice; some with a class and some without; a class of ``subset`` that it has not.
    """
    lines = [(number, line) for number, line in enumerate(_lines(path), start=1) if line.strip()]
    known: dict[str, int] = {}
    for number, line in lines:
        name = line.strip()
        if name in (".", "./"):
            # As `find .` begins.
            continue
        fault = _fault_of(name)
        name = PurePosixPath(name).as_posix()
        if name in known:
            fault = f"is on line {known[name]} too; name each image once"
        if fault:
            raise InputError(f"line {number} of {path}, {name!r}, {fault}")
        known[name] = number
    if not known:
        raise InputError(f"{path} names no images; write class/file, one a line")
    flat = [name for name in known if "/" not in name]
    if flat and len(flat) < len(known):
        raise InputError(
            f"line {known[flat[0]]} of {path}, {flat[0]!r}, has no class, and others have one; "
            "write class/file everywhere, or nowhere"
        )
    ordered = sorted(known, key=_order)
    remarks = () if ordered == list(known) else (f"{path}: sorted, as torchvision orders images",)
    if flat:
        if subset is not None:
            raise InputError(f"{path} has no classes, so `subset` keeps none; write class/file")
        return Listing(tuple(ordered), None, (), remarks)
    classes = sorted({name.partition("/")[0] for name in ordered})
    if subset is not None:
        classes = _kept(classes, subset, f"image in {path}")
    ranks = {name: rank for rank, name in enumerate(classes)}
    kept = [name for name in ordered if name.partition("/")[0] in ranks]
    labels = tuple(ranks[name.partition("/")[0]] for name in kept)
    return Listing(tuple(kept), labels, tuple(classes), remarks)


def read_subset(path: Path) -> list[str]:
    """The lines of a text file, each of which names a class, alone or as its first word.

    Raises
    ------
    InputError
        Unreadable or empty.
    """
    lines = [line.strip() for line in _lines(path) if line.strip()]
    if not lines:
        raise InputError(f"{path} names no classes; write one folder name a line")
    return lines


def _fault_of(name: str) -> str:
    """What is wrong with a line of an image list; empty if nothing is."""
    parts = PurePosixPath(name).parts
    if "\0" in name:
        return "holds a zero byte; write class/file"
    if "\\" in name or name.startswith("/") or ".." in parts or ":" in parts[0]:
        return "leads out of the folder of the images; write class/file"
    if not is_image(name):
        return f"names no image ({', '.join(EXTENSIONS)}); write class/file, one a line"
    if parts[0] in ("train", "val") and len(parts) > 2:
        return f"begins with {parts[0]}; write class/file"
    return ""


def _order(name: str) -> tuple[str, str, str]:
    """ImageFolder sorts classes, then folders as they are walked, then files."""
    class_name, _, rest = name.rpartition("/")
    return class_name.partition("/")[0], class_name, rest


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(
            f"cannot read {path}: it is not UTF-8 text; give a list of names"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give another") from None


def _kept(classes: Sequence[str], subset: Sequence[str], what: str) -> list[str]:
    """The classes that the lines of a subset name, sorted; each must be there."""
    there = set(classes)
    names = [line if line in there else line.split()[0] for line in subset]
    missing = sorted(set(names) - there)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"class {missing[0]}{more} of `subset` has no {what}; leave it out")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"`subset` names class {twice[0]} twice; name each once")
    return sorted(names)


def folders_and_files(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders in a folder, and of its files, each sorted; no leftovers."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries if not is_leftover(entry.name)]
    folders = sorted(name for name, is_folder in found if is_folder)
    return folders, sorted(name for name, is_folder in found if not is_folder)


def sorted_files(folder: Path, name: str) -> list[str]:
    """Paths of all files below ``folder/name``, from ``folder`` on, in ImageFolder's order."""
    return [
        f"{Path(where).relative_to(folder).as_posix()}/{file}"
        for where, files in sorted(walk(folder / name))
        for file in sorted(files)
        if not is_leftover(file)
    ]


def inside(name: str, folder: Path) -> str | None:
    """A file that a list names, from ``folder`` on; None where it lies outside."""
    root, path = PurePosixPath(folder.absolute().as_posix()), PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    return None if path.is_absolute() or ".." in path.parts else path.as_posix()


def is_leftover(name: str) -> bool:
    """Whether a file or folder was left by a system or a program, and by nobody who has images."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def is_image(name: str) -> bool:
    """Whether a file is an image, by its extension."""
    return name.lower().endswith(EXTENSIONS)


def unreadable(error: OSError) -> InputError:
    """What to say of a file or folder that the system does not let us read."""
    reason = error.strerror or error
    return InputError(f"cannot read {error.filename}: {reason}; see that it can be read")


def kind(path: str) -> str:
    """What a file is counted as: its extension."""
    return Path(path).suffix.lower() or "without an extension"


def counted(kinds: Counter[str]) -> str:
    """How many files of each extension, the commonest first: ``3 .heic, 1 .txt``."""
    common = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {sum(n for _, n in common[SHOWN:])} of other kinds" if common[SHOWN:] else ""
    return ", ".join(f"{count} {kind}" for kind, count in common[:SHOWN]) + more


def walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder from ``top`` down, links followed, with its files."""

    def fail(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(top, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not is_leftover(name)]
        here = Path(where).resolve()
        for inner in (Path(where, name) for name in folders):
            if inner.is_symlink() and here.is_relative_to(inner.resolve()):
                raise InputError(f"{inner} leads back to a folder above it; remove that link")
        yield where, files


def check_text(name: str, where: Path | str) -> None:
    """Raise InputError unless a file's name can be opened, and written to a CSV and a report."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the name of {name!r} in {where} is not UTF-8; rename it") from None
    if "\0" in name:
        raise InputError(f"{where} names {name!r}, which has a zero byte; mend the name")
