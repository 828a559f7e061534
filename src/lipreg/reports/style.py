"""How every figure looks: one matplotlib style, `paper.mplstyle`, outside of pyplot's global state.

`@drawn` makes a figure in the style, `look` is a line's, `legend` stands below the curves, and
`save` writes PNG and SVG.
"""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from scipy.optimize import linear_sum_assignment

from lipreg import files

__all__ = ["FOOLED", "MARKERS", "drawn", "legend", "look", "names_in_margin", "norm", "save"]

Options = ParamSpec("Options")
_RC = mpl.rc_params_from_file(
    Path(__file__).with_name("paper.mplstyle"), use_default_template=False
)
_LOOKS = list(_RC["axes.prop_cycle"])
_NORMS = {"l1": r"$\ell_1$", "l2": r"$\ell_2$", "linf": r"$\ell_\infty$"}
_UNSEEN = str.maketrans("", "", "${}^_")  # of mathematics
MARKERS = "os^Dv<>pP*Xh"
_MARGIN = 1.04  # where names begin, as a part of the axes
FOOLED = "#D55E00"  # an image that is misclassified, a class that is not the image's


def drawn(function: Callable[Options, Figure]) -> Callable[Options, Figure]:
    """The function, drawing in the style, whatever the caller's settings of matplotlib are."""

    @functools.wraps(function)
    def styled(*args: Options.args, **options: Options.kwargs) -> Figure:
        with mpl.rc_context(_RC):
            figure = function(*args, **options)
            # Ticks are made when they are first needed, and later ones are copies of the first:
            # unless that is made here, it has the style of whoever shows the figure.
            for axes in figure.axes:
                for axis in (axes.xaxis, axes.yaxis):
                    axis.get_major_ticks(1)
                    axis.get_minor_ticks(1)
        return figure

    return styled


def look(number: int) -> dict[str, Any]:
    """Colour and dash of a line: eighteen are told apart, the first twelve in grey as well."""
    return dict(_LOOKS[number % len(_LOOKS)])


def norm(name: str) -> str:
    """A norm's name as mathematics."""
    return _NORMS.get(name, name)


def legend(axes: Axes) -> float:
    """The names below the axes, in as many columns as fit; returns its height in inches."""
    handles, names = axes.get_legend_handles_labels()
    figure: Any = axes.get_figure()
    letters = max((len(name.translate(_UNSEEN)) for name in names), default=0)
    wide = 0.7 + 0.06 * letters  # inches: a handle, and letters of 8 points
    place: Any = axes.get_subplotspec()
    width = figure.get_figwidth() / place.get_gridspec().ncols
    lines = math.ceil(len(names) / max(1, int(width / wide)))
    columns = math.ceil(len(names) / max(1, lines))  # no more than fill these lines
    below = ScaledTranslation(0, -0.45, figure.dpi_scale_trans)  # inches: ticks and label
    anchor = {"bbox_to_anchor": (0.5, 0), "bbox_transform": axes.transAxes + below}
    if names:
        axes.legend(handles, names, ncols=columns, loc="upper center", borderaxespad=0, **anchor)
    return 0.18 * lines


def names_in_margin(axes: Axes, points: Mapping[str, np.ndarray]) -> None:
    """Names on the right, evenly spaced, each with a line to its point.

    The lines are the shortest together that join each point to a name, and so none crosses another.
    """
    axes.autoscale_view()
    places = np.linspace(0, 1, len(points) + 2)[1:-1]
    ends = axes.transAxes.transform([(_MARGIN, place) for place in places])
    starts = axes.transData.transform(list(points.values()))
    _, chosen = linear_sum_assignment(np.linalg.norm(starts[:, None] - ends, axis=-1))
    faint = {"color": "0.7", "linewidth": 0.6}
    for (name, point), place in zip(points.items(), places[chosen], strict=True):
        axes.annotate(
            name,
            tuple(point),
            xytext=(_MARGIN, place),
            textcoords="axes fraction",
            size=8,
            va="center",
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "shrinkB": 4, **faint},
            zorder=0,
        )


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write `path`.png and `path`.svg, and return the two; the same figure gives the same bytes."""
    path, pictures = Path(path), []
    # No date and no version: a picture drawn again does not differ.
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
    with mpl.rc_context(_RC):
        for kind, unsaid in metadata.items():
            pictures.append(path.parent / f"{path.name}.{kind}")
            with files.replacing(pictures[-1]) as part:
                figure.savefig(part, format=kind, metadata=unsaid)
    return pictures
