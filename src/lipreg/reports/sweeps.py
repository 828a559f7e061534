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
from lipreg.runs import storage, sweep
from lipreg.runs.config import Config

__all__ = ["report"]


def report(
    points: Mapping[str, Config], axes: Mapping[str, Sequence[Any]], workdir: str | Path
) -> tuple[str, list[Path]]:
    """The table as Markdown with what is best by validation, and the files written into `workdir`.

    A row is the mean over the seeds of a point, ± their standard deviation. The best is the row of
    the least error under the config's validation attack, if the next is behind it by more than the
    spread of both; on the Pareto front are those that no row beats in both errors. The test split
    has not been looked at.

    Raises: ValueError, with their number, while points are missing.
    """
    workdir = Path(workdir)
    records = {name: sweep.outcome(workdir / "points" / name) for name in points}
    missing = [name for name, record in records.items() if not record]
    if missing:
        raise ValueError(f"{len(missing)} of {len(points)} points are not done: {missing[0]}, ...")
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, record in records.items():
        parts = (part for part in name.split(",") if not part.startswith("seed="))
        groups.setdefault(",".join(parts) or "all seeds", []).append(record)
    errors = {
        name: np.array(
            [[100 * r[sweep.CLEAN], 100 * r[sweep.ROBUST]] for r in group if "failed" not in r]
        )
        for name, group in groups.items()
    }
    # Rounded: the same errors in another order have the same mean.
    means = {name: seeds.mean(0).round(9) for name, seeds in errors.items() if len(seeds)}
    front = _front(means)
    rows = {
        name: {
            "% clean error": curves.spread(seeds[:, 0]) if len(seeds) else "diverged",
            "% error under attack": curves.spread(seeds[:, 1]) if len(seeds) else "diverged",
            "seeds": f"{len(seeds)} of {len(groups[name])}",
            "Pareto": "*" if name in front else "",
        }
        for name, seeds in errors.items()
    }
    lines = [curves.to_markdown(rows), ""]
    best, sentence = _best({name: seeds[:, 1] for name, seeds in errors.items() if len(seeds)})
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
        figure = plots.pareto(errors, front=front, best=best)
        written += plots.save(figure, workdir / "pareto")
    return text, written


def _best(errors: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """The row that is best beyond the spread, "" where there is none, and what is to be said.

    The spread is one standard deviation for all rows, pooled over them: that of two or three seeds
    alone is too small by chance in one row or another. Two rows differ where mean ± spread of the
    one does not reach that of the other.
    """
    least, *others = sorted(errors, key=lambda name: errors[name].mean()) or [""]
    if not others:
        return "", "There is nothing to compare."
    behind = round(errors[others[0]].mean() - errors[least].mean(), 9)
    said = (
        f"error under attack, validation split: {least}, {behind:.2g} points less than {others[0]}"
    )
    freedom = sum(len(seeds) - 1 for seeds in errors.values())
    if not freedom:
        return "", f"Least {said}. With one seed a row the spread is not known: it may be chance."
    spread = np.sqrt(
        sum(((seeds - seeds.mean()) ** 2).sum() for seeds in errors.values()) / freedom
    )
    if behind > 2 * spread:
        return least, f"Best by {said}; seeds spread by ± {spread:.2g}."
    within = [name for name in others if errors[name].mean() - errors[least].mean() <= 2 * spread]
    return "", (
        f"Least {said}. No row is best: seeds spread by ± {spread:.2g}, within which are also "
        f"{', '.join(within)}."
    )


def _front(means: Mapping[str, np.ndarray]) -> set[str]:
    """Those that no other beats in one error without losing in the other."""

    def beats(a: np.ndarray, b: np.ndarray) -> bool:
        return bool((a <= b).all() and (a < b).any())

    return {n for n, b in means.items() if not any(beats(a, b) for a in means.values())}
