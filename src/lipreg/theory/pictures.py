"""A study written down: its table as Markdown and CSV, its curves in log-log axes.

NAME.md          the table, the sentences; config and `storage.about()` as a line of JSON
NAME.csv         every curve and n: mean, standard deviation, and the curve's rate
NAME.png, .svg   a panel for each quantity: repeats, means and, in n, fit and the theorem's line
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipreg import curves, files
from lipreg.reports import style
from lipreg.runs import storage
from lipreg.theory.study import Curve, Study

__all__ = ["figure", "to_markdown", "write"]


def _row(curve: Curve, rate: dict[str, Any], axis: str) -> dict[str, float | str]:
    """What a curve has in the table."""
    means: dict[str, float | str] = {
        (f"n = {n}" if axis == "n" else f"{n} {axis}"): f"{values.mean():.3g}"
        + (f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else "")
        for n, values in zip(curve.n, curve.values, strict=True)
    }
    if not rate:
        return means
    return means | {
        "slope": f"{rate['slope']:.3g}",
        "95 % interval": f"[{rate['low']:.3g}, {rate['high']:.3g}]",
        "fitted in": rate["in"],
        "theory": "–" if curve.exponent is None else f"{curve.exponent:.3g}",
        "slope and theory": rate["verdict"],
    }


def to_markdown(study: Study) -> str:
    """A table for the curves of each panel that share their n, and the sentences as a list.

    >>> values = np.array([[0.1, 0.1], [0.01, 0.01]])
    >>> print(to_markdown(Study({"a": Curve("W_1", [10, 100], values, -1.0)}, ["It falls."])))
    **W_1**
    <BLANKLINE>
    |  | n = 10 | n = 100 | slope | 95 % interval | fitted in | theory | slope and theory |
    |---|---|---|---|---|---|---|---|
    | a | 0.1 ± 0 | 0.01 ± 0 | -1 | [-1, -1] | n | -1 | in the interval |
    <BLANKLINE>
    - It falls.
    """
    rates = study.rates
    tables: dict[tuple[str, tuple[int, ...]], dict[str, dict[str, float | str]]] = {}
    for name, curve in study.curves.items():
        table = tables.setdefault((curve.panel, tuple(curve.n)), {})
        table[_short(name, curve)] = _row(curve, rates[name], study.axis)
    parts = [f"**{panel}**\n\n{curves.to_markdown(rows)}" for (panel, _), rows in tables.items()]
    return "\n\n".join([*parts, "\n".join(f"- {sentence}" for sentence in study.sentences)])


def _short(name: str, curve: Curve) -> str:
    """The name without the panel's, which is the title."""
    return name.removeprefix(f"{curve.panel}: ")


def _draw(axes: Axes, label: str, curve: Curve, number: int, fitted: bool) -> None:
    n, values, look = np.asarray(curve.n), curve.values, style.look(number)
    dot = {"color": look["color"], "marker": style.MARKERS[number], "linestyle": "none"}
    if values.shape[1] > 1:
        axes.plot(n, values, alpha=0.3, markersize=2.5, **dot)
    if not fitted:
        axes.plot(n, values.mean(1), label=label, linewidth=1, **dot | look)
        return
    axes.plot(n, values.mean(1), **dot)
    rate = curve.rate
    centred = np.log(curve.abscissa) - np.log(curve.abscissa).mean()
    fit = np.exp(np.log(values).mean() + rate.slope * centred)
    label += f", slope {_minus(rate.slope)}" + ", none proved" * (curve.exponent is None)
    # The marker is in the legend alone: the means have theirs.
    axes.plot([], [], label=label, linewidth=1, **dot | look)
    axes.plot(n, fit, linewidth=1, **look)


def _draw_theorems(axes: Axes, members: Sequence[Curve]) -> None:
    """For each exponent r `C n^r`, with the least C that is nowhere below what was measured.

    A theorem bounds from above and leaves C open: a line through the middle of the values would
    seem to be violated by half of them.
    """
    rates = dict.fromkeys((c.exponent, c.logarithm) for c in members if c.exponent is not None)
    for rate, dash in zip(rates, itertools.cycle(("-", "--", ":"))):
        alike = [curve for curve in members if (curve.exponent, curve.logarithm) == rate]
        power = lambda curve, rate=rate: curve.abscissa ** rate[0]
        scale = max((curve.values / power(curve)[:, None]).max() for curve in alike)
        sizes = [n for curve in alike for n in curve.n]
        line = alike[0]._replace(n=np.geomspace(min(sizes), max(sizes), 50))
        exponent = Fraction(rate[0]).limit_denominator(99)
        label = f"theorem: ≤ C {'(n / log n)' if line.logarithm else 'n'}$^{{{exponent}}}$"
        look = {"color": "0.55", "linestyle": dash, "linewidth": 2.5, "zorder": 1}
        axes.plot(line.n, scale * power(line), label=label, **look)


def _minus(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")  # + 0.0: no −0.00


@style.drawn
def figure(study: Study) -> Figure:
    """Small marks are repeats, large ones means. In n: log-log, with fits, and the theorem's line.

    That line has the theorem's slope and lies above all values: a theorem bounds from above, up to
    a constant.

    >>> values = np.array([[0.1, 0.1], [0.01, 0.01]])
    >>> (axes,) = figure(Study({"a": Curve("W_1, m = 1", [10, 100], values, -1.0)}, [])).axes
    >>> axes.get_title(), axes.get_ylabel()
    ('m = 1', 'W_1')
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['a, slope −1.00', 'theorem: ≤ C n$^{-1}$']
    """
    panels = list(dict.fromkeys(curve.panel for curve in study.curves.values()))
    labels = list(dict.fromkeys(_short(*item) for item in study.curves.items()))
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    sheet = Figure(figsize=(4.6 * columns, 3.4 * rows))
    fitted, legends = study.axis == "n", []
    for number, panel in enumerate(panels):
        axes = sheet.add_subplot(rows, columns, number + 1)
        quantity, _, title = panel.partition(", ")
        scale = "log" if fitted else "linear"
        axes.set(title=title, ylabel=quantity, xscale=scale, yscale=scale)
        axes.set_xlabel("n, number of data points" if fitted else f"{study.axis} labels")
        members = {name: curve for name, curve in study.curves.items() if curve.panel == panel}
        for name, curve in members.items():
            label = _short(name, curve)
            _draw(axes, label, curve, labels.index(label), fitted)
        if fitted:
            _draw_theorems(axes, list(members.values()))
        sizes = sorted({n for curve in members.values() for n in curve.n})
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.xaxis.minorticks_off()
        legends.append(style.legend(axes))
    sheet.set_figheight(sheet.get_figheight() + rows * max(legends))
    return sheet


def write(study: Study, config: dict[str, Any], out: str | Path) -> tuple[str, list[Path]]:
    """Write the files above, NAME being `config["name"]`; returns the text and the files."""
    out, name = Path(out), config["name"]
    out.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"config": config, "about": storage.about()})
    text = f"# {name}\n\n{to_markdown(study)}\n\n`{about}`\n"
    rows, table = study.rows, io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    written = [out / f"{name}.md", out / f"{name}.csv"]
    files.write(written[0], text)
    files.write(written[1], table.getvalue())
    return text, written + style.save(figure(study), out / name)
