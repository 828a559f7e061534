"""Runs that may stand in one table: evaluated on the same images, and measured in the same way."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lipreg.reports import certified, kept
from lipreg.runs import storage
from lipreg.runs.config import Config, differing, label

__all__ = ["Run", "Wanted", "read", "rows"]

AUTOATTACK = ("full", "autoattack")  # the protocols that include it, the stronger first


class Run(NamedTuple):
    """A folder's contents: the config, the evaluation, AutoAttack's by protocol, proved radii."""

    workdir: Path
    config: Config
    record: dict[str, Any]
    distances: dict[str, np.ndarray]
    robust: dict[str, dict[str, Any]]
    radii: np.ndarray | None


class Wanted(NamedTuple):
    """Which evaluation of each run the table is made of; "" and 0 are any."""

    protocol: str
    norms: Sequence[str]
    split: str
    examples: int


def _choices(workdir: Path, wanted: Wanted) -> list[tuple[str, int]]:
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
            f"run {kept.command(workdir, *wanted)}."
        )
    return choices


def _one_of_all(workdirs: Sequence[Path], wanted: Wanted) -> tuple[str, int]:
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


def _run(workdir: Path, split: str, n: int, wanted: Wanted) -> Run:
    """The evaluation on this split and number of images, and AutoAttack's on the same."""
    there = kept.places(workdir, wanted.norms)
    robust = {
        protocol: kept.read(there[protocol, split, n])[1]
        for protocol in AUTOATTACK
        if (protocol, split, n) in there
    }
    config, record, distances = kept.read(there[wanted.protocol, split, n])
    radii = certified.proved(workdir, split, n, record["step"])
    return Run(workdir, config, record, distances, robust, radii)


def _measured(run: Run, protocol: str | None) -> dict[str, Any]:
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


def _protocol(runs: Sequence[Run]) -> str | None:
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


def read(workdirs: Sequence[Path], wanted: Wanted) -> tuple[list[Run], str | None]:
    """The runs, measured alike, and the strongest protocol with AutoAttack that all of them have.

    Raises: ValueError for a run without such an evaluation, and for runs measured in other ways.
    """
    split, n = _one_of_all(workdirs, wanted)
    runs = [_run(path, split, n, wanted) for path in workdirs]
    auto = _protocol(runs)
    first, *others = runs
    for run in others:
        pairs = differing(_measured(first, auto), _measured(run, auto))
        if pairs:
            raise _refusal(first.workdir, run.workdir, pairs)
    return runs, auto


def rows(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each row by its name: those whose configs differ only in their seeds.

    Raises: ValueError for two runs of the same config and seed, which would count as two seeds.
    """
    rows: dict[str, list[Run]] = {}
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


def _name(run: Run, firsts: Sequence[Run]) -> str:
    """The objective's name; if rows share it, with the end of the path that distinguishes them."""
    name, parts = label(run.config), run.workdir.absolute().parts
    alike = [first.workdir.absolute().parts for first in firsts if label(first.config) == name]
    if len(alike) == 1:
        return name
    alike.remove(parts)
    ends = (n for n in itertools.count(1) if all(other[-n:] != parts[-n:] for other in alike))
    return f"{name} ({'/'.join(parts[-next(ends) :])})"
