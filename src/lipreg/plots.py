"""Pictures of distances, images and training, as matplotlib figures.

No function touches pyplot's global state: each returns a `Figure`, which a notebook shows and
`save` writes as PNG and SVG.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jax.typing import ArrayLike
from matplotlib.figure import Figure

from lipreg import curves

__all__ = ["error_curves", "images", "save", "training"]

# Okabe & Ito's colours, told apart by the colour-blind; the dashes by printers without colour.
_STYLES = [
    {"color": color, "linestyle": dash}
    for dash, colors in (
        ("-", ("#000000", "#0072B2", "#D55E00", "#009E73")),
        ("--", ("#CC79A7", "#E69F00", "#56B4E9", "#000000")),
        (":", ("#0072B2", "#D55E00", "#009E73", "#CC79A7")),
    )
    for color in colors
]
_NORM_NAMES = {"l1": r"$\ell_1$", "l2": r"$\ell_2$", "linf": r"$\ell_\infty$"}


def _style(number: int) -> dict[str, Any]:
    return _STYLES[number % len(_STYLES)]


def error_curves(
    distances: Mapping[str, ArrayLike],
    *,
    norm_name: str,
    epsilons: ArrayLike | None = None,
    marks: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """`P(distance <= eps)` in % against eps, a line for each name: the deck's curves (A) and (B).

    `distances` are the smallest perturbations found, `[N]` per name: 0 for a clean error, inf for a
    failed attack. `marks` are radii to point out, those of the table. The axis ends at the last of
    `epsilons`, by default a little beyond the marks and 99 % of the finite distances.

    Raises: ValueError for no names and for a name without distances.

    >>> error_curves({"J0": [0.0, 0.1, 0.4]}, norm_name="l2").axes[0].get_ylabel()
    'error (%)'
    """
    if not distances:
        raise ValueError("error_curves has no distances to draw.")
    arrays = {name: np.asarray(values, float) for name, values in distances.items()}
    for name, values in arrays.items():
        if values.ndim != 1 or not values.size or np.isnan(values).any():
            raise ValueError(f"distances of {name!r} have shape {values.shape}; want [N], no NaN.")
    if epsilons is None:
        finite = np.concatenate([values[np.isfinite(values)] for values in arrays.values()])
        farthest = np.quantile(finite, 0.99) if finite.any() else 1.0
        epsilons = np.linspace(0, 1.05 * max(farthest, *marks, 0), 201)
    grid = np.asarray(epsilons, float)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(arrays.items()):
        error = np.asarray(curves.error_at(values, grid))
        axes.plot(grid, 100 * error, label=name, **_style(number))
    for mark in marks:
        axes.axvline(mark, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0, 101)
    axes.set_xlabel(f"ε, radius in {_NORM_NAMES.get(norm_name, norm_name)}, pixels in [0, 1]")
    axes.set_ylabel("error (%)")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def images(x: ArrayLike, *, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """A sheet of images `[N, H, W, C]` in [0, 1], C = 1 or 3, `columns` a row, a title above each.

    Values outside [0, 1] are clipped.

    >>> len(images(np.zeros((3, 8, 8, 1)), columns=2).axes)
    3
    """
    pixels = np.asarray(x, float)
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or not len(pixels):
        raise ValueError(f"images of shape {pixels.shape}; want [N, H, W, 1] or [N, H, W, 3].")
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(f"{len(titles)} titles for {len(pixels)} images.")
    if columns < 1:
        raise ValueError(f"columns = {columns}; it must be at least 1.")
    columns = min(columns, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    figure = Figure(figsize=(1.25 * columns, 1.45 * rows), layout="constrained")
    for number, image in enumerate(pixels.clip(0, 1)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        if titles is not None:
            axes.set_title(titles[number], fontsize=8)
    return figure


def training(rows: Sequence[Mapping[str, float]], keys: Sequence[str]) -> Figure:
    """The numbers `keys` of `runs.metrics` against the step, a panel for each key.

    Raises: ValueError, with the choices, for a key that no row has.

    >>> rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    >>> training(rows, ["loss"]).axes[0].get_ylabel()
    'loss'
    """
    known = sorted({name for row in rows for name in row} - {"step"})
    for key in keys:
        if key not in known:
            raise ValueError(f"No row has {key!r}; choose one of {', '.join(known)}.")
    if not keys:
        raise ValueError(f"No keys to draw; choose some of {', '.join(known)}.")
    figure = Figure(figsize=(3.6 * len(keys), 2.8), layout="constrained")
    for number, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), number + 1)
        points = np.array([(row["step"], row[key]) for row in rows if key in row])
        axes.plot(*points.T, **_style(0))
        axes.set_xlabel("step")
        axes.set_ylabel(key)
        axes.grid(alpha=0.25)
    return figure


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write `path`.png and `path`.svg, and return the two; the same figure gives the same bytes."""
    path = Path(path)
    files = [path.parent / f"{path.name}.{suffix}" for suffix in ("png", "svg")]
    # A fixed salt for SVG's element ids and no date: a picture drawn again does not differ.
    with mpl.rc_context({"svg.hashsalt": "lipreg"}):
        figure.savefig(files[0], dpi=150, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
    return files
