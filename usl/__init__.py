"""Unsupervised Selective Labeling: choose the few images worth labelling."""

from typing import Any

from usl.errors import InputError
from usl.selectors.regularizer import Regularizer
from usl.selectors.select import Selection, select

__all__ = ["USL", "InputError", "Regularizer", "Selection", "select"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``USL`` is imported when it is asked for: scikit-learn takes its time."""
    if name == "USL":
        from usl.selectors.estimator import USL

        return USL
    raise AttributeError(f"module 'usl' has no attribute {name!r}")
