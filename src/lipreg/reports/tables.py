"""Several runs in one table: the columns of 1810.00953, AutoAttack's and the certified error if all
runs have them.

OUT/table.md, .csv      a row for each config, mean ± standard deviation over its seeds
OUT/curves_NORM.*        the error curves, PNG and SVG
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipreg import curves, files
from lipreg.reports import alike, kept, plots
from lipreg.reports.alike import Run

__all__ = ["table"]


def _checks(record: dict[str, Any]) -> set[tuple[str, str]]:
    """What the masking reports of an evaluation have asked, by norm."""
    norms = record["norms"].items()
    return {(norm, check["name"]) for norm, numbers in norms for check in numbers["checks"]}


def _robust(
    record: dict[str, Any], asked: set[tuple[str, str]]
) -> tuple[dict[str, float], dict[str, list]]:
    """AutoAttack's results for a run: columns, and points (eps, error) by norm.

    The masking report's column is the number of checks in `asked`, those that all runs have, which
    warn or fail, over both norms.
    """
    columns: dict[str, float] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    flags = 0
    for norm, numbers in record["norms"].items():
        points[norm] = []
        names = _named(map(float, numbers["errors"]))
        for name, (eps, breakdown) in zip(names, numbers["errors"].items(), strict=True):
            error = list(breakdown.values())[-1]  # after the last attack
            points[norm].append((float(eps), error))
            columns[f"% AutoAttack error at {norm} {name}"] = round(100 * error, 4)
        flags += sum(
            check["status"] != "pass" and (norm, check["name"]) in asked
            for check in numbers["checks"]
        )
    return columns | {"masking flags": flags}, points


def _named(radii: Iterable[float]) -> list[str]:
    """Radii as they stand in columns: short, where that tells them apart."""
    radii = list(radii)
    short = [f"{eps:.3g}" for eps in radii]
    return short if len({*short}) == len(short) else [f"{eps:g}" for eps in radii]


def _certified(run: Run, radii: Sequence[float]) -> dict[str, float]:
    errors = curves.error_at(np.asarray(run.radii), np.asarray(radii))
    return {
        f"% certified error at l2 {name}": round(100 * float(error), 4)
        for name, error in zip(_named(radii), errors, strict=True)
    }


def table(
    workdirs: Sequence[str | Path],
    out: str | Path,
    *,
    protocol: str = "pgd",
    norms: Sequence[str] = kept.USUAL,
    split: str = "",
    examples: int = 0,
    radii: Mapping[str, Sequence[float]] | None = None,
) -> tuple[str, list[Path]]:
    """The table of several runs as Markdown, and the files written into `out`.

    Runs whose configs differ only in their seeds make one row, mean ± standard deviation, and one
    curve, the mean with that band. If AutoAttack was run on all of them, on the same images, its
    errors and the number of masking flags are further columns, and its errors are points beside the
    curves. If all of them were certified on these images, so are the certified errors, at the
    table's radius and at those asked for, and the band between attacked and certified error, in
    which the true one lies.

    Options:
      protocol: whose distances and errors these are.
      norms: those of the evaluation.
      split, examples: which of a run's evaluations, where it has several.
      radii: by norm, further radii for the errors; the text says at which the rows differ most.

    Raises: ValueError for a run without such an evaluation of its last step, for one that is named
    twice, and, with the runs and the fields that differ, for runs that were measured differently:
    other data, another split, protocol, number of images, or other settings of the attack.
    """
    files.check_writable(out)
    wanted = alike.Wanted(protocol, norms, split, examples)
    runs, auto = alike.read([Path(workdir) for workdir in workdirs], wanted)
    first = runs[0]
    marks = _marks(first, radii or {})
    rows, distances, marked, proved = {}, {}, {}, {}
    groups = alike.rows(runs)
    sure = all(run.radii is not None for run in runs) and "l2" in first.record["norms"]
    asked = set.intersection(*(_checks(run.robust[auto]) for run in runs)) if auto else set()
    for name, members in groups.items():
        robust = [_robust(run.robust[auto], asked) if auto else ({}, {}) for run in members]
        columns = [
            run.record["row"] | _errors(run, marks) | more
            for run, (more, _) in zip(members, robust, strict=True)
        ]
        if sure:
            proved[name] = np.concatenate([run.radii for run in members if run.radii is not None])
            at = marks.get("l2", [first.record["settings"]["l2"]["table"]])
            columns = [c | _certified(run, at) for c, run in zip(columns, members, strict=True)]
        rows[name] = {c: curves.spread([row[c] for row in columns]) for c in columns[0]}
        for norm in first.distances.keys() & first.record["norms"]:
            distances.setdefault(norm, {})[name] = np.stack([r.distances[norm] for r in members])
            marked.setdefault(norm, {})[name] = [
                point for _, points in robust for point in points.get(norm, [])
            ]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    text = f"{curves.to_markdown(rows)}\n\n{_caption(first, groups)}{_told_apart(distances)}\n"
    written = [out / "table.md", out / "table.csv"]
    files.write(written[0], text)
    files.write(written[1], curves.to_csv(rows))
    for norm, by_name in sorted(distances.items()):
        figure = plots.error_curves(
            by_name,
            norm_name=norm,
            marks=marks[norm],
            points=marked[norm] if auto else None,
            radii=proved if norm == "l2" else None,
            bounds=first.config.data.bounds,
        )
        written += plots.save(figure, out / f"curves_{norm}")
    return text, written


def _marks(run: Run, radii: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The radii of each norm that has distances: the evaluation's own, and those asked for.

    Raises: ValueError for a norm without distances, and for a radius that was not searched.
    """
    settings = {n: run.record["settings"][n] for n in run.record["norms"] if n in run.distances}
    for norm, values in radii.items():
        if norm not in settings:
            raise ValueError(f"radii in {norm}; there are distances in {', '.join(settings)}.")
        searched = run.record["protocol"].split("+")[0] == "pgd"
        largest = settings[norm]["largest"] if searched else math.inf
        for eps in values:
            if not (isinstance(eps, int | float) and 0 <= eps <= largest):
                raise ValueError(f"radius {eps} in {norm}; choose 0 to {largest:g}.")
    return {n: sorted({s["table"], *radii.get(n, ())}) for n, s in settings.items()}


def _errors(run: Run, radii: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Errors at further radii, what attacks with a radius no larger have found among them."""
    cells = {}
    for norm, values in radii.items():
        distances = run.distances[norm]
        for name, broken in run.distances.items():
            if name.startswith(f"broken_{norm}_"):
                found = np.float32(name.rpartition("_")[2])
                distances = np.where(broken, np.minimum(distances, found), distances)
        for eps in values:
            cells |= curves.row({norm: distances}, {norm: eps})
    return {name: value for name, value in cells.items() if name not in run.record["row"]}


def _told_apart(distances: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """At which radius of each norm the errors of the rows have the largest standard deviation."""
    said = []
    for norm, by_name in sorted(distances.items()):
        found = np.concatenate([values.ravel() for values in by_name.values()])
        largest = found.max(initial=0.0, where=np.isfinite(found))
        grid = np.unique([float(f"{eps:.2g}") for eps in np.linspace(0, largest, 101)])
        errors = [np.asarray(curves.error_at(values.ravel(), grid)) for values in by_name.values()]
        spread = np.std(errors, 0)
        if spread.max() > 0:
            said.append(f"{norm} {grid[spread.argmax()]:g}")
    return f" The rows differ most at {', '.join(said)}." if said else ""


def _caption(first: Run, groups: dict[str, list[Run]]) -> str:
    record, settings = first.record, first.record["settings"]
    seeds = sorted({len(members) for members in groups.values()})
    several = seeds != [1]
    how = f"protocol {record['protocol']}"
    if record["protocol"] == "pgd":
        how = f"PGD with {settings['steps']} steps and {settings['restarts']} restarts"
        how += ", radii bisected"
    return (
        f"{record['data']}, {record['n']} {record['split']} images; {how}; "
        f"{' or '.join(map(str, seeds))} seed{'s' if several else ''} a row"
        f"{', mean ± standard deviation' if several else ''}."
    )
