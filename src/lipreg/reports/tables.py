"""Several runs in one table: the columns of 1810.00953, AutoAttack's and the certified error if all
runs have them.

OUT/table.md, .csv      a row for each config, mean ± standard deviation over its seeds
OUT/curves_NORM.*        the error curves, PNG and SVG
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lipreg import curves, files
from lipreg.reports import certified, kept, plots
from lipreg.runs import storage
from lipreg.runs.config import Config, differing, label

__all__ = ["table"]

AUTOATTACK = ("full", "autoattack")  # the protocols that include it, the stronger first


class _Run(NamedTuple):
    """A folder's contents: the config, the evaluation, AutoAttack's by protocol, proved radii."""

    workdir: Path
    config: Config
    record: dict[str, Any]
    distances: dict[str, np.ndarray]
    robust: dict[str, dict[str, Any]]
    radii: np.ndarray | None


class _Wanted(NamedTuple):
    """Which evaluation of each run the table is made of; "" and 0 are any."""

    protocol: str
    norms: Sequence[str]
    split: str
    examples: int


def _choices(workdir: Path, wanted: _Wanted) -> list[tuple[str, int]]:
    """The splits and numbers of images that a run has been evaluated on by the protocol.

    Raises: ValueError, with those that there are and the command to run, for a run without any.
    """
    storage.read_config(workdir)  # says what is no run
    there = kept.places(workdir, wanted.norms)
    choices = [
        (split, n)
        for protocol, split, n in there
        if protocol == wanted.protocol and wanted.split in ("", split) and wanted.examples in (0, n)
    ]
    if not choices:
        had = ", ".join("_".join(map(str, key)) for key in there)
        if not had and (workdir / "evaluation.json").is_file():
            had = "that of an earlier version"
        images = f"{wanted.examples or ''} {wanted.split} images".replace("  ", " ").strip()
        raise ValueError(
            f"{workdir} has not been evaluated by {wanted.protocol} in {', '.join(wanted.norms)}"
            f"{f' on {images}' if images != 'images' else ''}{f', it has {had}' if had else ''}: "
            f"run {kept.command(workdir, wanted.protocol, wanted.norms)}."
        )
    return choices


def _one_of_all(workdirs: Sequence[Path], wanted: _Wanted) -> tuple[str, int]:
    """The one split and number of images that all runs have been evaluated on.

    Raises: ValueError for runs that have none in common, with both, and for several.
    """
    choices = [_choices(workdir, wanted) for workdir in workdirs]
    common = [key for key in choices[0] if all(key in other for other in choices)]
    if len(common) == 1:
        return common[0]
    if common:
        several = ", ".join(f"{n} {split}" for split, n in common)
        raise ValueError(
            f"{workdirs[0]} has several evaluations by {wanted.protocol}: {several} images; "
            "choose one by split and examples."
        )
    k = next(k for k, other in enumerate(choices) if choices[0][0] not in other)
    a, b = ({"split": split, "n": n} for split, n in (choices[0][0], choices[k][0]))
    raise _refusal(workdirs[0], workdirs[k], differing(a, b))


def _run(workdir: Path, split: str, n: int, wanted: _Wanted) -> _Run:
    """The evaluation on this split and number of images, and AutoAttack's on the same."""
    there = kept.places(workdir, wanted.norms)
    robust = {
        protocol: kept.read(there[protocol, split, n])[1]
        for protocol in AUTOATTACK
        if (protocol, split, n) in there
    }
    config, record, distances = kept.read(there[wanted.protocol, split, n])
    radii = certified.proved(workdir, split, n, record["step"])
    return _Run(workdir, config, record, distances, robust, radii)


def _measured(run: _Run, protocol: str | None) -> dict[str, Any]:
    """What all runs of a table must share: images, attack and, with AutoAttack, its radii."""
    data, record = run.config.data, run.record
    outside = data.name == "folder" or data.name.endswith(".npz")  # `dir` says which
    fields = ["name", "side", "bounds", *(["dir"] if outside else [])]
    drawn = f" ({data.validation:g} of the images, by seed {data.seed})"
    shared = {
        "data": {name: data[name] for name in fields},
        "split": record["split"] + drawn * (record["split"] == "validation"),
        "n": record["n"],
        "protocol": record["protocol"],
        "attacks": record.get("attacks", {}),  # earlier versions did not record them
        "evaluation": record["settings"],
    }
    if protocol:
        norms = run.robust[protocol]["norms"]
        shared["radii"] = {norm: list(numbers["errors"]) for norm, numbers in norms.items()}
    return shared


def _refusal(a: object, b: object, pairs: dict[str, tuple[Any, Any]]) -> ValueError:
    fields = ", ".join(f"{name} is {x!r} and {y!r}" for name, (x, y) in pairs.items())
    return ValueError(f"{a} and {b} do not go into one table: {fields}.")


def _protocol(runs: Sequence[_Run]) -> str | None:
    """The strongest protocol with AutoAttack that all runs have; None if some run has none.

    Raises: ValueError for runs that have none in common.
    """
    if not all(run.robust for run in runs):
        return None
    common = [protocol for protocol in AUTOATTACK if all(protocol in run.robust for run in runs)]
    if not common:
        a, b = (
            runs[0],
            next(run for run in runs if not run.robust.keys() & runs[0].robust),
        )
        raise _refusal(a.workdir, b.workdir, {"protocol": (min(a.robust), min(b.robust))})
    return common[0]


def _robust(record: dict[str, Any]) -> tuple[dict[str, float], dict[str, list]]:
    """AutoAttack's results for a run: columns, and points (eps, error) by norm.

    The masking report's column is the number of checks that warn or fail, over both norms.
    """
    columns: dict[str, float] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    flags = 0
    for norm, numbers in record["norms"].items():
        points[norm] = []
        short = [f"{float(eps):.3g}" for eps in numbers["errors"]]
        names = short if len(set(short)) == len(short) else list(numbers["errors"])
        for name, (eps, breakdown) in zip(names, numbers["errors"].items(), strict=True):
            error = list(breakdown.values())[-1]  # after the last attack
            points[norm].append((float(eps), error))
            columns[f"% AutoAttack error at {norm} {name}"] = round(100 * error, 4)
        flags += sum(check["status"] != "pass" for check in numbers["checks"])
    return columns | {"masking flags": flags}, points


def _certified(run: _Run) -> dict[str, float]:
    eps = run.record["settings"]["l2"]["table"]
    (error,) = curves.error_at(np.asarray(run.radii), np.array([eps]))
    return {f"% certified error at l2 {eps:.3g}": round(100 * float(error), 4)}


def _rows(runs: Sequence[_Run]) -> dict[str, list[_Run]]:
    """The runs of each row by its name: those whose configs differ only in their seeds.

    Raises: ValueError for two runs of the same config and seed, which would count as two seeds.
    """
    rows: dict[str, list[_Run]] = {}
    for run in runs:
        identity = json.dumps(run.config.to_dict() | {"seed": None}, sort_keys=True)
        members = rows.setdefault(identity, [])
        for other in members:
            if other.config.seed == run.config.seed:
                raise ValueError(
                    f"{other.workdir} and {run.workdir} are of one config and seed: name one."
                )
        members.append(run)
    firsts = [members[0] for members in rows.values()]
    return {_name(members[0], firsts): members for members in rows.values()}


def _name(run: _Run, firsts: Sequence[_Run]) -> str:
    """The objective's name; if rows share it, with the end of the path that distinguishes them."""
    name, parts = label(run.config), run.workdir.absolute().parts
    alike = [first.workdir.absolute().parts for first in firsts if label(first.config) == name]
    if len(alike) == 1:
        return name
    alike.remove(parts)
    ends = (n for n in itertools.count(1) if all(other[-n:] != parts[-n:] for other in alike))
    return f"{name} ({'/'.join(parts[-next(ends) :])})"


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
    """The deck's table of several runs as Markdown, and the files written into `out`.

    Runs whose configs differ only in their seeds make one row, mean ± standard deviation, and one
    curve, the mean with that band. If AutoAttack was run on all of them, on the same images, its
    errors and the number of masking flags are further columns, and its errors are points beside the
    curves. If all of them were certified on these images, so are the certified error, at the
    table's radius, and the band between attacked and certified error, in which the true one lies.

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
    paths, wanted = [Path(w) for w in workdirs], _Wanted(protocol, norms, split, examples)
    split, n = _one_of_all(paths, wanted)
    runs = [_run(path, split, n, wanted) for path in paths]
    auto = _protocol(runs)
    first, *others = runs
    for run in others:
        pairs = differing(_measured(first, auto), _measured(run, auto))
        if pairs:
            raise _refusal(first.workdir, run.workdir, pairs)
    marks = _marks(first, radii or {})
    rows, distances, marked, proved = {}, {}, {}, {}
    groups = _rows(runs)
    sure = all(run.radii is not None for run in runs) and "l2" in first.record["norms"]
    for name, members in groups.items():
        robust = [_robust(run.robust[auto]) if auto else ({}, {}) for run in members]
        columns = [
            run.record["row"] | _errors(run, marks) | more
            for run, (more, _) in zip(members, robust, strict=True)
        ]
        if sure:
            proved[name] = np.concatenate([run.radii for run in members if run.radii is not None])
            columns = [c | _certified(run) for c, run in zip(columns, members, strict=True)]
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
        )
        written += plots.save(figure, out / f"curves_{norm}")
    return text, written


def _marks(run: _Run, radii: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
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


def _errors(run: _Run, radii: Mapping[str, Sequence[float]]) -> dict[str, float]:
    cells = {}
    for norm, values in radii.items():
        for eps in values:
            cells |= curves.row({norm: run.distances[norm]}, {norm: eps})
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


def _caption(first: _Run, groups: dict[str, list[_Run]]) -> str:
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
