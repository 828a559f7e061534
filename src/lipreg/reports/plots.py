"""Pictures of distances, images and training, as matplotlib figures.

No function touches pyplot's global state: each returns a `Figure` in the one style of
`reports.style`, which a notebook shows and `save` writes as PNG and SVG.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipreg import curves
from lipreg.box import Bounds
from lipreg.reports import style
from lipreg.reports.sheets import attacked, images, nearest_boundary, visible_attack
from lipreg.reports.style import save

__all__ = [
    "attacked",
    "distance_scatter",
    "error_curves",
    "images",
    "nearest_boundary",
    "pareto",
    "save",
    "training",
    "visible_attack",
]


def _distances(name: str, values: ArrayLike, ranks: Collection[int] = (1,)) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim not in ranks or not array.size or np.isnan(array).any():
        raise ValueError(f"distances of {name!r} have shape {array.shape}; want [N], no NaN.")
    return array


@style.drawn
def error_curves(
    distances: Mapping[str, ArrayLike],
    *,
    norm_name: str,
    epsilons: ArrayLike | None = None,
    marks: Sequence[float] = (),
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    radii: Mapping[str, ArrayLike] | None = None,
    bounds: Bounds = (0.0, 1.0),
    title: str = "",
) -> Figure:
    """`P(distance <= eps)` in % against eps, a line for each name, seeds as a band.

    `distances` are the smallest perturbations found, `[N]` per name, or `[seeds, N]`: 0 for a clean
    error, inf for a failed attack. Of several seeds the line is the mean and the band its standard
    deviation on either side. `marks` are radii to point out, those of the table, and `points`
    AutoAttack's results for some of the names, `(eps, error)` with errors in [0, 1]: markers in the
    curve's colour. `radii` are certified, `[N]` for some of the names: the true error lies in the
    hatched band between the curve and `P(radius <= eps)`. `bounds` are those of the pixels, which
    the axis names. The axis ends at the last of `epsilons`,
    by default a little beyond the marks, the points and 99 % of the finite distances.

    Raises: ValueError for no names, for a name without distances and for points or radii of no
    curve.

    >>> error_curves({"J0": [0.0, 0.1, 0.4]}, norm_name="l2").axes[0].get_ylabel()
    'error (%)'
    """
    if not distances:
        raise ValueError("error_curves has no distances to draw.")
    arrays = {name: _distances(name, values, (1, 2)) for name, values in distances.items()}
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
    figure = Figure(figsize=(5.2, 3.6))
    axes = figure.subplots()
    markers = dict(zip(arrays, itertools.cycle(style.MARKERS), strict=False))
    for number, (name, values) in enumerate(arrays.items()):
        # The markers of a line's own are in the legend alone: those in the plot are `points`.
        own = {"marker": markers[name], "markevery": []} if name in dots else {}
        errors = [100 * np.asarray(curves.error_at(one, grid)) for one in np.atleast_2d(values)]
        mean, color = np.mean(errors, 0), style.look(number)["color"]
        axes.plot(grid, mean, label=name, **style.look(number), **own)
        if len(errors) > 1:
            spread = np.std(errors, 0, ddof=1)
            low, high = np.clip([mean - spread, mean + spread], 0, 100)
            axes.fill_between(grid, low, high, color=color, alpha=0.2, linewidth=0)
        if name in certified:
            most = np.asarray(curves.error_at(certified[name], grid))
            axes.fill_between(grid, mean, 100 * most, **_hatched(color))
    for name, pairs in dots.items():
        color = style.look(list(arrays).index(name))["color"]
        axes.plot(pairs[:, 0], 100 * pairs[:, 1], markers[name], color=color)
    if dots:
        axes.plot([], [], "o", color="0.4", label="markers: AutoAttack")
    if certified:
        axes.fill_between([], [], [], label="attacked to certified", **_hatched("0.4"))
    for mark in marks:
        axes.axvline(mark, color="0.5", linewidth=0.8, linestyle="-", zorder=0)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0, 101)
    box = (
        "pixels in [0, 1]" if tuple(bounds) == (0, 1) else "values in [{:g}, {:g}]".format(*bounds)
    )
    axes.set_xlabel(f"ε, radius in {style.norm(norm_name)}, {box}")
    axes.set_ylabel("error (%)")
    axes.set_title(title)
    _name_marks(axes, marks)
    figure.set_figheight(figure.get_figheight() + style.legend(axes))
    return figure


def _hatched(color: str) -> dict[str, Any]:
    """A band that is not taken for that of the seeds."""
    return {"facecolor": "none", "edgecolor": (color, 0.4), "hatch": "////", "linewidth": 0}


def _name_marks(axes: Axes, marks: Sequence[float]) -> None:
    """The radii above their lines, upright where they are so close that they would overlap."""
    gap = min(np.diff(sorted(marks)), default=np.inf)
    close = gap < 0.13 * np.ptp(axes.get_xlim())
    above = axes.secondary_xaxis("top")
    above.set_xticks(marks, [f"ε = {mark:.3g}" for mark in marks])
    above.tick_params(length=0, rotation=90 if close else 0)
    above.spines[:].set_visible(False)


@style.drawn
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
    figure = Figure(figsize=(4, 4))
    axes = figure.subplots()
    axes.plot([0, edge], [0, edge], color="0.6", linewidth=0.8, zorder=0)
    drawn = np.where(failed, edge, both)
    look = {"markersize": 4, "alpha": 0.6, "color": style.look(1)["color"], "clip_on": False}
    lost = failed.any(1)
    axes.plot(*drawn[~lost].T, "o", **look)
    if lost.any():
        axes.plot(*drawn[lost].T, "^", label="attack failed", **look)
        axes.legend(frameon=False, loc="lower right")
    axes.set_xlim(0, edge)
    axes.set_ylim(0, edge)
    axes.set_aspect("equal")
    axes.set_xlabel(f"{names[0]}: distance in {style.norm(norm_name)}")
    axes.set_ylabel(f"{names[1]}: distance in {style.norm(norm_name)}")
    axes.set_title(
        f"{names[1]} farther than {names[0]}: {(b > a).mean():.0%} of {len(a)} images", size=9
    )
    return figure


@style.drawn
def pareto(
    errors: Mapping[str, ArrayLike],
    *,
    front: Collection[str],
    best: str = "",
    over: str = "error under attack",
) -> Figure:
    """Clean error against another, `over`, in %, a dot for each name; a line joins `front`.

    `errors` are pairs `[seeds, 2]` per name: the dot is their mean, the bars their standard
    deviation. Names without seeds are left out. `best` has a star: say it where it is outside of
    the spread (`reports.sweeps`). The names stand in the margin, in the order of their errors.

    >>> figure = pareto({"a": [[1.0, 9.0]], "b": [[2.0, 5.0]], "c": [[3.0, 8.0]]}, front={"a", "b"})
    >>> figure.axes[0].get_xlabel()
    'clean error (%)'
    """
    pairs = {name: np.asarray(points, float).reshape(-1, 2) for name, points in errors.items()}
    means = {name: points.mean(0) for name, points in pairs.items() if len(points)}
    if not means:
        raise ValueError("pareto has no errors to draw.")
    figure = Figure(figsize=(5.2, max(3.6, 0.16 * len(means) + 0.6)))
    axes = figure.subplots()
    joined = np.array(sorted(tuple(means[name]) for name in front)).reshape(-1, 2)
    axes.plot(*joined.T, "-o", color=style.FOOLED, linewidth=1, label="Pareto front", zorder=1)
    for name, mean in means.items():
        deviation = pairs[name].std(0, ddof=1) if len(pairs[name]) > 1 else (None, None)
        on_front, starred = name in front, name == best
        color = style.FOOLED if on_front else style.look(1)["color"]
        x_bar, y_bar = deviation
        axes.errorbar(
            *mean,
            xerr=x_bar,
            yerr=y_bar,
            fmt="*" if starred else "o",
            markersize=10 if starred else 5,
            color=color,
            ecolor=(color, 0.5),
            markerfacecolor=color if on_front else "white",  # told apart in grey as well
            linewidth=1,
            label="best, outside of the spread" if starred else None,
        )
    axes.set_xlabel("clean error (%)")
    axes.set_ylabel(f"{over} (%)")
    style.names_in_margin(axes, means)
    figure.set_figheight(figure.get_figheight() + style.legend(axes))
    return figure


@style.drawn
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
    figure = Figure(figsize=(3.6 * len(keys), 2.8))
    for number, key in enumerate(keys):
        axes = figure.add_subplot(1, len(keys), number + 1)
        points = np.array([(row["step"], row[key]) for row in rows if key in row])
        axes.plot(*points.T, **style.look(0))
        axes.set_xlabel("step")
        axes.set_ylabel(key)
    return figure
