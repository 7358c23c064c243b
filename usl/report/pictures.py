"""Pictures for reports, as data URIs that need no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

SEED = 0
# Images on a map, besides the picks.
BACKGROUND = 2000


def image_uri(image: np.ndarray) -> str:
    """A small image (H, W, C), uint8, as a data URI: PNG, or JPEG if it is larger than 64 pixels.

    A PNG of a photograph is several times as long, and a report has hundreds.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    if max(picture.size) > 64:
        picture.save(buffer, "JPEG", quality=85)
        return _uri(buffer, "image/jpeg")
    picture.save(buffer, "PNG", optimize=True)
    return _uri(buffer, "image/png")


def plane(features: np.ndarray, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay features out on a plane: PCA to 50 dimensions, then t-SNE (scikit-learn).

    Parameters
    ----------
    features : ndarray (N, D)
    picks : ndarray (P,), int
        Rows that must be on it, each once.

    Returns
    -------
    rows : ndarray (M,), int
        The rows shown: ``picks``, then up to ``BACKGROUND`` others, drawn with a fixed seed.
    positions : ndarray (M, 2)
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    others = np.setdiff1d(np.arange(len(features)), picks)
    count = min(BACKGROUND, len(others))
    drawn = np.random.RandomState(SEED).choice(others, size=count, replace=False)
    rows = np.concatenate([picks, drawn])
    shown = np.asarray(features[rows], dtype=np.float64)
    shown -= shown.mean(axis=0)
    shown /= max(float(np.abs(shown).max()), 1e-300)
    dimensions = min(50, *shown.shape)
    if len(rows) < 5 or not shown.any():
        return rows, np.pad(shown, ((0, 0), (0, 2)))[:, :2]
    shown = PCA(dimensions, random_state=SEED).fit_transform(shown)
    start = np.pad(shown, ((0, 0), (0, 2)))[:, :2]
    start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4
    perplexity = min(30.0, (len(rows) - 1) / 3)
    positions = TSNE(init=start, perplexity=perplexity, random_state=SEED).fit_transform(shown)
    return rows, positions


def map_uri(positions: np.ndarray, color: np.ndarray, picked: np.ndarray) -> str:
    """A map of the features as an SVG data URI: grey to blue by rank of colour, picks numbered.

    Parameters
    ----------
    positions : ndarray (M, 2)
    color : ndarray (M,)
        Density, or confidence.
    picked : ndarray, int
        Rows of the picks in ``positions``, in the order of their numbers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6))
    axes = figure.add_axes((0, 0, 1, 1))
    ranks = color.argsort().argsort() / max(len(color) - 1, 1)
    x, y = positions.T
    axes.scatter(x, y, c=ranks, cmap="Blues", vmin=-0.35, s=9, linewidths=0, rasterized=True)
    few = len(picked) <= 120
    size = 130 if few else 14
    axes.scatter(x[picked], y[picked], c="#e4572e", s=size, edgecolors="white", zorder=2)
    if few:
        style: dict[str, Any] = {"color": "white", "fontsize": 6.5, "weight": "bold", "zorder": 3}
        for number, row in enumerate(picked, start=1):
            axes.text(x[row], y[row], str(number), ha="center", va="center_baseline", **style)
    axes.set_axis_off()
    axes.margins(0.03)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=150, transparent=True, metadata={"Date": None})
    return _uri(buffer, "image/svg+xml")


def curve_uri(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, axis: str) -> str:
    """Curves over what ``axis`` names, each a name and its (x, y), as an SVG data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in curves.items():
        few = np.size(x) < 30
        axes.plot(x, y, marker="o" if few else None, markersize=3, label=name)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(axis)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return _uri(buffer, "image/svg+xml")


def _uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
