"""Pictures for reports, as data URIs that need no other file."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from usl.data.datasets import AnyDataset
from usl.data.folder import PICTURE, FolderDataset, in_threads
from usl.errors import InputError

log = logging.getLogger("usl")

SEED = 0
# Images on a map, besides the picks.
BACKGROUND = 2000
# Of a map, in its own units, and shades of its points.
WIDTH, HEIGHT, MARGIN, LEVELS = 800, 600, 14, 6
# Longest side of a picture that is kept without loss, in pixels.
LOSSLESS = 64


def picture_uris(
    dataset: AnyDataset, indices: Sequence[int], *, side: int = PICTURE
) -> dict[int, str | None]:
    """Small pictures by index, as data URIs; None for a file that cannot be read.

    ``side`` limits their longer side, in pixels.
    """

    def uri(index: int) -> str | None:
        try:
            picture = dataset.picture(index)
        except InputError as error:
            # A report shows what it can.
            log.warning("no picture in the report: %s", error)
            return None
        return None if picture is None else image_uri(picture, side=side)

    rows = sorted(set(indices))
    workers = dataset.workers if isinstance(dataset, FolderDataset) else 1
    return dict(zip(rows, in_threads(uri, rows, workers), strict=True))


def image_uri(image: np.ndarray, *, side: int = PICTURE) -> str:
    """A small image (H, W, C), uint8, as a data URI: PNG, or JPEG if it was larger than 64 pixels.

    A PNG of a photograph is several times as long, and a report has hundreds.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    lossless = max(picture.size) <= LOSSLESS
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    if not lossless:
        picture.save(buffer, "JPEG", quality=80)
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
    from threadpoolctl import threadpool_limits

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
    layout = TSNE(init=start, perplexity=perplexity, random_state=SEED)
    # Two threads save a second of five, and lose a minute where another program is at work.
    with threadpool_limits(1, user_api="openmp"):
        return rows, layout.fit_transform(shown)


@dataclass(frozen=True)
class FeatureMap:
    """A map of features, ``WIDTH`` by ``HEIGHT``, as parts of an SVG.

    Attributes
    ----------
    levels : list of str
        Paths of points, the first those of the lowest colour; equally many each.
    picks : list of (float, float)
        Places of the picks, in the order of their numbers.
    """

    levels: list[str]
    picks: list[tuple[float, float]]


def draw_map(positions: np.ndarray, color: np.ndarray, picked: np.ndarray) -> FeatureMap:
    """Lay out a map of the features, whose points go from light to dark by rank of colour.

    Parameters
    ----------
    positions : ndarray (M, 2)
    color : ndarray (M,)
        Density, or confidence.
    picked : ndarray, int
        Rows of the picks in ``positions``, in the order of their numbers.
    """
    low, high = positions.min(axis=0), positions.max(axis=0)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    placed = (MARGIN + (positions - low) / np.maximum(high - low, 1e-300) * room).round(1)
    order = color.argsort(kind="stable")
    # A line of no length with round ends is a point.
    levels = [
        "".join(f"M{x:g} {y:g}h0" for x, y in placed[part].tolist())
        for part in np.array_split(order, LEVELS)
    ]
    return FeatureMap(levels, [(x, y) for x, y in placed[picked].tolist()])


def curve_uri(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    axis: str,
    height: str = "",
    mark: float | None = None,
) -> str:
    """Curves over what ``axis`` names, each a name and its (x, y), as an SVG data URI.

    ``height`` names the other axis; ``mark`` is an x to point out.
    """
    figure, axes = _figure(axis, mark)
    axes.set_ylabel(height)
    for name, (x, y) in curves.items():
        few = np.size(x) < 30
        axes.plot(x, y, marker="o" if few else None, markersize=3, label=name)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    return svg_uri(figure)


def histogram_uri(values: np.ndarray, *, axis: str, mark: float) -> str:
    """How often values above 0 come, on a logarithmic axis, with a mark, as an SVG data URI."""
    figure, axes = _figure(axis, mark)
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive):
        ends = np.log10([min(positive.min(), mark or np.inf), positive.max()])
        axes.hist(positive, bins=np.logspace(ends[0] - 0.02, ends[1] + 0.02, 50))
    axes.set_xscale("log")
    axes.set_ylabel("images")
    return svg_uri(figure)


def _figure(axis: str, mark: float | None) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    if mark:
        axes.axvline(mark, color="#e4572e", linewidth=1)
    axes.set_xlabel(axis)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg_of(figure: Any) -> str:
    """A matplotlib figure as SVG, the same text every time."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "usl"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()


def svg_uri(figure: Any) -> str:
    """A matplotlib figure as an SVG data URI."""
    return _uri(io.BytesIO(svg_of(figure).encode()), "image/svg+xml")


def _uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
