"""Pictures of a comparison: what each recipe reaches, and how it gets there."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lipreg.reports import style
from lipreg.training import overfitting

__all__ = ["errors", "gaps"]

_GROUPS = ("A", "B", "C")  # others are grey


@style.drawn
def errors(
    points: Mapping[str, Sequence[tuple[float, float]]], groups: Mapping[str, str], *, label: str
) -> Figure:
    """Clean error against error under attack, in %, a dot for each name in its group's colour.

    `points` are pairs for each seed: the dot is their mean, the bars their standard deviation.

    >>> figure = errors({"j0": [(1.0, 9.0)]}, {"j0": "B"}, label="% error")
    >>> figure.axes[0].get_ylabel()
    '% error'
    """
    figure = Figure(figsize=(6.4, max(4.2, 0.16 * len(points) + 0.6)))
    axes, means = figure.subplots(), {}
    looks = {
        group: {"marker": style.MARKERS[number], "color": style.look(1 + number)["color"]}
        for number, group in enumerate(_GROUPS)
    }
    for group in sorted(set(groups.values()) & set(_GROUPS)):
        axes.plot([], [], linestyle="none", **looks[group], label=f"approach {group}")
    for name, pairs in points.items():
        seeds = np.asarray(pairs, float)
        look = looks.get(groups[name], {"marker": "x", "color": "0.5"})
        bars = seeds.std(0, ddof=1) if len(seeds) > 1 else (None, None)
        means[name], faint = seeds.mean(0), {"ecolor": (look["color"], 0.5), "linewidth": 1}
        axes.errorbar(*means[name], xerr=bars[0], yerr=bars[1], linestyle="none", **look, **faint)
    axes.set_xlabel("% clean error")
    axes.set_ylabel(label)
    style.names_in_margin(axes, means)
    figure.set_figheight(figure.get_figheight() + style.legend(axes))
    return figure


@style.drawn
def gaps(histories: Mapping[str, Sequence[Mapping[str, float]]], *, columns: int = 4) -> Figure:
    """Errors under FGSM and PGD-10 over training, a panel for each name's `runs.metrics`.

    A line marks the step at which catastrophic overfitting begins.

    >>> row = {"step": 1, overfitting.FGSM: 0.5, overfitting.PGD: 0.6}
    >>> gaps({"j1": [row]}).axes[0].get_title()
    'j1'
    """
    columns = min(columns, len(histories))
    rows = math.ceil(len(histories) / columns)
    figure = Figure(figsize=(2.3 * columns + 0.4, 1.8 * rows + 0.8))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(histories) :]:
        axes.set_axis_off()
    for axes, (name, history) in zip(panels.flat, histories.items(), strict=False):
        kept = [row for row in history if overfitting.PGD in row]
        for number, (key, label) in enumerate(
            ((overfitting.FGSM, "FGSM"), (overfitting.PGD, "PGD-10"))
        ):
            steps, values = [row["step"] for row in kept], [100 * row[key] for row in kept]
            axes.plot(steps, values, label=label, **style.look(1 + number))
        if begun := overfitting.overfitted(history):
            axes.axvline(begun, color="0.5", linewidth=0.8, linestyle="-")
        axes.set_title(name)
        axes.set_ylim(0, 101)
    lines, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(names))
    figure.supxlabel("step", size=9)
    figure.supylabel("validation error (%)", size=9)
    return figure
