"""List the encoders: their names, dimensions, and the side of the square that they see, in pixels.

python -m usl.encoders            # the project's own, and how many others there are
python -m usl.encoders 'timm/*dinov2*'
"""

from __future__ import annotations

import argparse
import fnmatch
import sys

from usl.cli import cli
from usl.encoders.registry import ENCODERS, describe, encoder_names
from usl.errors import InputError


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m usl.encoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="*", help="names, with * for anything")
    patterns = parser.parse_args().pattern
    names = encoder_names()
    wanted = patterns or list(ENCODERS)
    # The tag of a name, after the dot, need not be given.
    chosen = [
        name
        for name in names
        if any(fnmatch.fnmatchcase(text, one) for one in wanted for text in {name, _untagged(name)})
    ]
    if not chosen:
        raise InputError(f"no encoder is called {' or '.join(patterns)}; try 'timm/*vit_small*'")
    width = max(map(len, chosen))
    print(f"{'encoder':{width}}  dimensions  side")
    for name in chosen:
        try:
            dim, side = describe(name)
        except InputError:
            # One without a classifier to take off, or not for square images.
            dim, side = "-", "-"
        print(f"{name:{width}}  {dim:>10}  {side:>4}")
    if not patterns:
        of_timm = sum(name.startswith("timm/") for name in names)
        rest = len(names) - len(ENCODERS) - of_timm
        print(
            f"and timm/NAME ({of_timm}), torchvision/NAME ({rest}): give a pattern, such as "
            "'timm/*dinov2*'",
            file=sys.stderr,
        )


def _untagged(name: str) -> str:
    library, slash, inner = name.partition("/")
    return library + slash + inner.partition(".")[0]


if __name__ == "__main__":
    cli(main)
