"""A study written down: its table as Markdown and CSV, its curves in log-log axes.

NAME.md          the table, the sentences; config and `storage.about()` as a line of JSON
NAME.csv         every curve and n: mean, standard deviation, and the curve's rate
NAME.png, .svg   a panel for each quantity: repeats, means and, in n, fit and theorem's slope
"""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipreg import curves, files
from lipreg.reports import plots
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


def _draw(axes: Axes, label: str, curve: Curve, color: str, fitted: bool) -> None:
    n, values = np.asarray(curve.n), curve.values
    if values.shape[1] > 1:
        axes.plot(n, values, ".", color=color, alpha=0.3, markersize=4)
    if not fitted:
        axes.plot(n, values.mean(1), "o-", color=color, markersize=4, linewidth=1, label=label)
        return
    axes.plot(n, values.mean(1), "o", color=color, markersize=4)
    rate = curve.rate
    centred = np.log(curve.abscissa) - np.log(curve.abscissa).mean()
    line = lambda slope: np.exp(np.log(values).mean() + slope * centred)
    label += f": {rate.slope:.2f}"
    if curve.exponent is not None:
        axes.plot(n, line(curve.exponent), ":", color=color)
        label += f" (theory {curve.exponent:.2f})"
    axes.plot(n, line(rate.slope), "-", color=color, linewidth=1, label=label)


def figure(study: Study) -> Figure:
    """Dots are repeats, circles means. In n: log-log, lines fits, dotted the theorem's slope.

    >>> values = np.array([[0.1, 0.1], [0.01, 0.01]])
    >>> (axes,) = figure(Study({"a": Curve("W_1", [10, 100], values, -1.0)}, [])).axes
    >>> axes.get_title(), [text.get_text() for text in axes.get_legend().get_texts()]
    ('W_1', ['a: -1.00 (theory -1.00)'])
    """
    panels = list(dict.fromkeys(curve.panel for curve in study.curves.values()))
    labels = list(dict.fromkeys(_short(*item) for item in study.curves.items()))
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    sheet = Figure(figsize=(5.2 * columns, 4.6 * rows), layout="constrained")
    for number, panel in enumerate(panels):
        axes = sheet.add_subplot(rows, columns, number + 1)
        fitted, scale = study.axis == "n", "log" if study.axis == "n" else "linear"
        axes.set(title=panel, xlabel=study.axis, xscale=scale, yscale=scale)
        members = {name: curve for name, curve in study.curves.items() if curve.panel == panel}
        for name, curve in members.items():
            label = _short(name, curve)
            _draw(axes, label, curve, plots.style(labels.index(label))["color"], fitted)
        sizes = sorted({n for curve in members.values() for n in curve.n})
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(
            frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14)
        )
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
    return text, written + plots.save(figure(study), out / name)
