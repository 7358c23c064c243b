"""Unsupervised Selective Labeling: choose the few images worth labelling."""

from usl.errors import InputError
from usl.selectors.usl import Regularizer, Selection, select

__all__ = ["InputError", "Regularizer", "Selection", "select"]
__version__ = "0.1.0"
