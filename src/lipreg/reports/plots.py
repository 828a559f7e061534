"""Pictures of distances, images and training, as matplotlib figures.

No function touches pyplot's global state: each returns a `Figure`, which a notebook shows and
`save` writes as PNG and SVG.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipreg import curves, files

__all__ = [
    "distance_scatter",
    "error_curves",
    "images",
    "nearest_boundary",
    "pareto",
    "save",
    "training",
    "visible_attack",
]

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
_CHANGED = "#D55E00"  # a class that is no longer the image's


def style(number: int) -> dict[str, Any]:
    return _STYLES[number % len(_STYLES)]


def _norm(name: str) -> str:
    return _NORM_NAMES.get(name, name)


def _distances(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 1 or not array.size or np.isnan(array).any():
        raise ValueError(f"distances of {name!r} have shape {array.shape}; want [N], no NaN.")
    return array


def error_curves(
    distances: Mapping[str, ArrayLike],
    *,
    norm_name: str,
    epsilons: ArrayLike | None = None,
    marks: Sequence[float] = (),
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    radii: Mapping[str, ArrayLike] | None = None,
    title: str = "",
) -> Figure:
    """`P(distance <= eps)` in % against eps, a line for each name: the deck's curves (A) and (B).

    `distances` are the smallest perturbations found, `[N]` per name: 0 for a clean error, inf for a
    failed attack. `marks` are radii to point out, those of the table, and `points` AutoAttack's
    results for some of the names, `(eps, error)` with errors in [0, 1]: dots in the curve's colour.
    `radii` are certified, `[N]` for some of the names: the true error lies in the band between the
    curve and `P(radius <= eps)`. The axis ends at the last of `epsilons`, by default a little
    beyond the marks, the points and 99 % of the finite distances.

    Raises: ValueError for no names, for a name without distances and for points or radii of no
    curve.

    >>> error_curves({"J0": [0.0, 0.1, 0.4]}, norm_name="l2").axes[0].get_ylabel()
    'error (%)'
    """
    if not distances:
        raise ValueError("error_curves has no distances to draw.")
    arrays = {name: _distances(name, values) for name, values in distances.items()}
    dots = {name: np.asarray(pairs, float) for name, pairs in (points or {}).items()}
    certified = {name: _distances(name, values) for name, values in (radii or {}).items()}
    for name in (*dots, *certified):
        if name not in arrays:
            what = "points" if name in dots else "radii"
            raise ValueError(f"{what} of {name!r}; choose one of {', '.join(arrays)}.")
    for name, pairs in dots.items():
        if (
            pairs.ndim != 2
            or pairs.shape[1] != 2
            or not ((pairs >= 0) & (pairs <= [np.inf, 1])).all()
        ):
            raise ValueError(f"points of {name!r}: want (eps, error) pairs, errors in [0, 1].")
    if epsilons is None:
        finite = np.concatenate([values[np.isfinite(values)] for values in arrays.values()])
        farthest = np.quantile(finite, 0.99) if finite.any() else 1.0
        dotted = [eps for pairs in dots.values() for eps in pairs[:, 0]]
        epsilons = np.linspace(0, 1.05 * max(farthest, *marks, *dotted, 0), 201)
    grid = np.asarray(epsilons, float)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(arrays.items()):
        error = np.asarray(curves.error_at(values, grid))
        axes.plot(grid, 100 * error, label=name, **style(number))
        if name in certified:
            most = np.asarray(curves.error_at(certified[name], grid))
            color = style(number)["color"]
            axes.fill_between(grid, 100 * error, 100 * most, color=color, alpha=0.15, linewidth=0)
    for name, pairs in dots.items():
        color = style(list(arrays).index(name))["color"]
        axes.plot(pairs[:, 0], 100 * pairs[:, 1], "o", markersize=5, color=color)
    if dots:
        axes.plot([], [], "o", markersize=5, color="0.4", label="AutoAttack")
    if certified:
        axes.fill_between([], [], [], color="0.4", alpha=0.3, label="attacked to certified")
    for mark in marks:
        axes.axvline(mark, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0, 101)
    axes.set_xlabel(f"ε, radius in {_norm(norm_name)}, pixels in [0, 1]")
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


def _below(axes: Axes, text: str, color: str) -> None:
    axes.text(
        0.5, -0.06, text, color=color, size=8, ha="center", va="top", transform=axes.transAxes
    )


def visible_attack(
    x: ArrayLike,
    epsilons: Sequence[float],
    predictions: Sequence[Any],
    confidences: Sequence[float],
    *,
    columns: int = 8,
) -> Figure:
    """One image attacked at growing eps, `[E, H, W, C]`: what the eye sees, and what the model.

    Above each image its eps; below it the class predicted and the probability the model gives it,
    in red where the class is not the first image's. Begin with the clean image, at eps = 0.

    >>> x = np.zeros((2, 8, 8, 1))
    >>> [below.get_text() for axes in visible_attack(x, [0, 0.5], [3, 8], [0.97, 0.51]).axes
    ...     for below in axes.texts]
    ['3, 97%', '8, 51%']
    """
    if not len(epsilons) == len(predictions) == len(confidences):
        raise ValueError(
            f"{len(epsilons)} epsilons, {len(predictions)} predictions, {len(confidences)} "
            "confidences; want one for each image."
        )
    figure = images(x, titles=[f"ε = {eps:.3g}" for eps in epsilons], columns=columns)
    figure.set_figheight(1.15 * figure.get_figheight())  # room for what stands below
    for axes, name, confidence in zip(figure.axes, predictions, confidences, strict=True):
        _below(axes, f"{name}, {confidence:.0%}", "black" if name == predictions[0] else _CHANGED)
    return figure


def nearest_boundary(
    x: ArrayLike,
    x_adv: ArrayLike,
    *,
    before: tuple[Any, float],
    after: tuple[Any, float],
    norm_name: str,
    distance: float,
) -> Figure:
    """`x + (x_adv - x) = x_adv` as pictures, images `[H, W, C]`: the panda of 1412.6572.

    `before` and `after` are the class predicted and its probability, `distance` the perturbation's
    size in the norm. The perturbation is drawn on middle grey, amplified until its largest entry is
    black or white; the title says how many times.

    >>> x, x_adv = np.zeros((8, 8, 1)), np.full((8, 8, 1), 0.05)
    >>> options = {"before": (3, 0.97), "after": (8, 0.51), "norm_name": "linf", "distance": 0.05}
    >>> [axes.get_title() for axes in nearest_boundary(x, x_adv, **options).axes]
    ['image', 'change × 10', 'attacked']
    """
    x, x_adv = np.asarray(x, float), np.asarray(x_adv, float)
    if x.ndim != 3 or x.shape != x_adv.shape:
        raise ValueError(f"images of shapes {x.shape} and {x_adv.shape}; want [H, W, C] twice.")
    change = x_adv - x
    largest = np.abs(change).max()
    times = 0.5 / largest if largest > 0 else 1.0
    titles = ["image", f"change × {times:.3g}", "attacked"]
    figure = images(np.stack([x, 0.5 + times * change, x_adv]), titles=titles, columns=3)
    changed = _CHANGED if after[0] != before[0] else "black"
    left, middle, right = figure.axes
    _below(left, f"{before[0]}, {before[1]:.0%}", "black")
    _below(middle, f"{_norm(norm_name)} size {distance:.3g}", "black")
    _below(right, f"{after[0]}, {after[1]:.0%}", changed)
    for axes, sign in ((left, "+"), (middle, "=")):
        axes.text(1.12, 0.5, sign, size=14, ha="center", va="center", transform=axes.transAxes)
    return figure


def distance_scatter(
    a: ArrayLike, b: ArrayLike, names: tuple[str, str], *, norm_name: str
) -> Figure:
    """Each image's distance under model b against that under model a, `[N]` each, on equal axes.

    Above the diagonal b is the more robust; the title has the share of images there. A failed
    attack, inf, is a triangle on the edge.

    >>> figure = distance_scatter([0.1, 0.2], [0.3, np.inf], ("J0", "J2"), norm_name="l2")
    >>> figure.axes[0].get_title()
    'J2 farther than J0: 100% of 2 images'
    """
    a, b = _distances(names[0], a), _distances(names[1], b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} distances of {names[0]!r}, {len(b)} of {names[1]!r}.")
    both = np.stack([a, b], axis=1)
    failed = np.isinf(both)
    edge = 1.05 * both.max(initial=0, where=~failed) or 1.0
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, edge], [0, edge], color="0.6", linewidth=0.8, zorder=0)
    drawn = np.where(failed, edge, both)
    look = {"markersize": 4, "alpha": 0.6, "color": style(1)["color"], "clip_on": False}
    lost = failed.any(1)
    axes.plot(*drawn[~lost].T, "o", **look)
    if lost.any():
        axes.plot(*drawn[lost].T, "^", label="attack failed", **look)
        axes.legend(frameon=False, loc="lower right")
    axes.set_xlim(0, edge)
    axes.set_ylim(0, edge)
    axes.set_aspect("equal")
    axes.set_xlabel(f"{names[0]}: distance in {_norm(norm_name)}")
    axes.set_ylabel(f"{names[1]}: distance in {_norm(norm_name)}")
    axes.set_title(
        f"{names[1]} farther than {names[0]}: {(b > a).mean():.0%} of {len(a)} images", size=9
    )
    axes.grid(alpha=0.25)
    return figure


def pareto(errors: Mapping[str, ArrayLike], *, front: Collection[str]) -> Figure:
    """Clean error against error under attack, in %, a dot for each name; a line joins `front`.

    `errors` are pairs `[seeds, 2]` per name: the dot is their mean, the bars their standard
    deviation. Names without seeds are left out.

    >>> figure = pareto({"a": [[1.0, 9.0]], "b": [[2.0, 5.0]], "c": [[3.0, 8.0]]}, front={"a", "b"})
    >>> figure.axes[0].get_xlabel()
    'clean error (%)'
    """
    pairs = {name: np.asarray(points, float).reshape(-1, 2) for name, points in errors.items()}
    means = {name: points.mean(0) for name, points in pairs.items() if len(points)}
    if not means:
        raise ValueError("pareto has no errors to draw.")
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    best = np.array(sorted(tuple(means[name]) for name in front)).reshape(-1, 2)
    axes.plot(*best.T, color=_CHANGED, linewidth=1, label="Pareto front", zorder=1)
    for name, mean in means.items():
        deviation = pairs[name].std(0, ddof=1) if len(pairs[name]) > 1 else (None, None)
        color = _CHANGED if name in front else style(1)["color"]
        x_bar, y_bar = deviation
        axes.errorbar(
            *mean, xerr=x_bar, yerr=y_bar, fmt="o", markersize=4, color=color, linewidth=1
        )
        axes.annotate(name, mean, xytext=(4, 4), textcoords="offset points", size=7)
    axes.set_xlabel("clean error (%)")
    axes.set_ylabel("error under attack (%)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
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
        axes.plot(*points.T, **style(0))
        axes.set_xlabel("step")
        axes.set_ylabel(key)
        axes.grid(alpha=0.25)
    return figure


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write `path`.png and `path`.svg, and return the two; the same figure gives the same bytes."""
    path, pictures = Path(path), []
    # A fixed salt for SVG's element ids and no date: a picture drawn again does not differ.
    kinds: dict[str, dict[str, Any]] = {
        "png": {"dpi": 150, "metadata": {"Software": None}},
        "svg": {"metadata": {"Date": None}},
    }
    with mpl.rc_context({"svg.hashsalt": "lipreg"}):
        for kind, options in kinds.items():
            pictures.append(path.parent / f"{path.name}.{kind}")
            with files.replacing(pictures[-1]) as part:
                figure.savefig(part, format=kind, **options)
    return pictures
