"""One table and one picture of a sweep's points, which `runs.sweep` has trained.

DIR/sweep.json          axes, points, command, commit and hardware
DIR/sweep.md, .csv      the table, seeds of one point in one row; by validation the best row, if any
DIR/pareto.png, .svg    clean error against error under attack
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipreg import curves, files
from lipreg.reports import plots
from lipreg.reports.comparison import against_best
from lipreg.runs import storage, sweep
from lipreg.runs.config import Config

__all__ = ["front", "report"]


# Fields of what a validation error is measured on, and by.
MEASURED = (
    *("report.pgd.", "report.examples", "data.name", "data.dir", "data.seed", "data.validation"),
    *("data.side", "data.bounds"),
)


def report(
    points: Mapping[str, Config], axes: Mapping[str, Sequence[Any]], workdir: str | Path
) -> tuple[str, list[Path]]:
    """The table as Markdown with what is best by validation, and the files written into `workdir`.

    A row is the mean over the seeds of a point, ± their standard deviation. The best is the row of
    the least error under the config's validation attack, if the next is behind it by more than the
    spread of both; on the Pareto front are those that no row beats in both errors. Neither is said
    of rows that are measured differently, or of which a seed has diverged. The test split has not
    been looked at.

    Raises: ValueError, with their number, while points are missing.
    """
    workdir = Path(workdir)
    records = {name: sweep.outcome(workdir / "points" / name) for name in points}
    missing = [name for name, record in records.items() if not record]
    if missing:
        raise ValueError(f"{len(missing)} of {len(points)} points are not done: {missing[0]}, ...")
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, record in records.items():
        seed = f"seed={points[name].seed}" if "seed" in axes else None
        parts = (part for part in name.split(",") if part != seed)
        groups.setdefault(",".join(parts) or "all seeds", []).append(record)
    errors = {
        name: np.array(
            [[100 * r[sweep.CLEAN], 100 * r[sweep.ROBUST]] for r in group if "failed" not in r]
        )
        for name, group in groups.items()
    }
    # Rounded: the same errors in another order have the same mean.
    whole = [name for name, seeds in errors.items() if len(seeds) == len(groups[name])]
    means = {name: errors[name].mean(0).round(9) for name in whole}
    unlike = [name for name in axes if name.startswith(MEASURED)]
    on_front = set() if unlike else front(means)
    rows = {
        name: {
            "% clean error": curves.spread(seeds[:, 0]) if len(seeds) else "diverged",
            "% error under attack": curves.spread(seeds[:, 1]) if len(seeds) else "diverged",
            "seeds": f"{len(seeds)} of {len(groups[name])}",
            "Pareto": "*" if name in on_front else "",
        }
        for name, seeds in errors.items()
    }
    lines = [curves.to_markdown(rows), ""]
    best, sentence = _best({name: errors[name][:, 1].tolist() for name in whole})
    if unlike:
        best = ""
        sentence = f"No row is best: by {', '.join(unlike)} their errors are measured differently."
    lines.append(sentence)
    failed = {name: r["failed"] for name, r in records.items() if "failed" in r}
    lines += [f"{name}: {why}" for name, why in failed.items()]
    text = "\n".join(lines) + "\n"
    files.write(workdir / "sweep.md", text)
    files.write(workdir / "sweep.csv", curves.to_csv(rows))
    record = {"axes": dict(axes), "points": records, "best": best, "about": storage.about()}
    files.write_json(workdir / "sweep.json", record)
    written = [workdir / f"sweep.{kind}" for kind in ("md", "csv", "json")]
    if means:
        figure = plots.pareto(errors, front=on_front, best=best)
        written += plots.save(figure, workdir / "pareto")
    return text, written


def _best(errors: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """The row that is best beyond the spread, "" where there is none, and what is to be said."""
    told = against_best(errors)
    if len(told) < 2:
        return "", "There is nothing to compare."
    least = next(name for name, said in told.items() if said == "best")
    near = [name for name, said in told.items() if said == "within the spread"]
    what = f"error under attack, validation split: {least}"
    if any("unknown" in said for said in told.values()):
        return "", f"Least {what}. With one seed a row the spread is not known: it may be chance."
    if near:
        return "", f"Least {what}. No row is best: within the spread are also {', '.join(near)}."
    return least, f"Best by {what}; the others are beyond the spread of the seeds."


def front(means: Mapping[str, np.ndarray]) -> set[str]:
    """The Pareto front: those that no other beats in one error without losing in the other.

    >>> sorted(front({"a": np.array([1, 9]), "b": np.array([2, 5]), "c": np.array([3, 8])}))
    ['a', 'b']
    """

    def beats(a: np.ndarray, b: np.ndarray) -> bool:
        return bool((a <= b).all() and (a < b).any())

    return {n for n, b in means.items() if not any(beats(a, b) for a in means.values())}
