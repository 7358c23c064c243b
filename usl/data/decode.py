"""Image files, decoded."""

from __future__ import annotations

import errno
import io
import os
import stat
from functools import cache
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from usl.errors import InputError

HEIF = (".heic", ".heif")
# Of the machine, not of a file: too many open files, no memory.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_image(
    path: Path | str,
    *,
    content: bytes | None = None,
    as_seen: bool = False,
    at_least: int | None = None,
) -> Image.Image:
    """Decode an image file of any mode as RGB; of an animation the first picture.

    Parameters
    ----------
    path : Path or str
    content : bytes, optional
        What is in the file, where that is no file of its own; ``path`` then names it in errors.
    as_seen : bool
        As people see the picture: turned as its EXIF orientation says, levels of more than 8 bits
        scaled down, transparent parts on white. Else as torchvision's ImageFolder reads it: not
        turned, deep levels cut off at 255, colours hidden under transparency shown.
    at_least : int, optional
        JPEGs may come out smaller, but no smaller than this: much faster.

    Raises
    ------
    InputError
        Not there, no image, damaged, truncated, or so large that PIL refuses it.
    """
    try:
        if PurePath(path).suffix.lower() in HEIF:
            register_heif()
        if content is None and not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is no file, but a folder, a pipe or a device")
        with Image.open(path if content is None else io.BytesIO(content)) as picture:
            if at_least is not None:
                picture.draft("RGB", (at_least, at_least))
            if as_seen:
                return _as_seen(picture)
            # Colours are kept as they are; PIL would warn of the transparency that is lost.
            picture.info.pop("transparency", None)
            return picture.convert("RGB")
    except UnidentifiedImageError:
        reason = "it is in no known format"
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        reason = error.strerror or str(error)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise errors of any kind on damaged files
        reason = f"{error or type(error).__name__}"
    reason = " ".join(reason.split()).rstrip(".")
    raise InputError(f"cannot read image {path}: {reason}; replace it, or move it elsewhere")


@cache
def register_heif() -> bool:
    """Let PIL read HEIC, if pillow-heif is installed; whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _as_seen(picture: Image.Image) -> Image.Image:
    upright: Image.Image = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(("I", "F")):
        return _eight_bits(upright)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return upright.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey levels of 16 or 32 bits, or floating-point ones, as 8 bits.

    Whole numbers up to 65535 are taken for 16 bits, larger ones for 32; floating-point ones for
    shares of white, or where one is above 1, of the largest.
    """
    levels = np.asarray(picture).astype(np.float64)
    high = float(levels[np.isfinite(levels)].max(initial=0.0))
    if picture.mode.startswith("F"):
        largest = max(high, 1.0)
    else:
        largest = 65535.0 if high <= 65535 else 2.0**31 - 1
    grey = np.nan_to_num(levels / largest).clip(0, 1) * 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
