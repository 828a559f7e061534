"""Where the evaluations of a run are kept, `reports.evaluations`, and one of them read back."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipreg import curves, files
from lipreg.attacks import __all__ as LIBRARY
from lipreg.runs import storage
from lipreg.runs.config import Config

__all__ = ["USUAL", "command", "folder_of", "places", "read"]

USUAL = ("l2", "linf")


def places(workdir: str | Path, norms: Sequence[str] = USUAL) -> dict[tuple[str, str, int], Path]:
    """The folders of a run's evaluations in these norms, by protocol, split and number."""
    folders = {}
    for path in sorted(Path(workdir).glob("evaluations/*/evaluation.json")):
        *key, there = _named(path.parent.name)
        if there == _suffix(norms):
            folders[tuple(key)] = path.parent
    return folders


def read(folder: Path) -> tuple[Config, dict[str, Any], dict[str, np.ndarray]]:
    """The config of a run, and one of its evaluations: the record and the arrays.

    Raises: ValueError, with the command to run, if there is none, if the files belong to different
    evaluations, or if the evaluation was not of the last step, or not of the step that is there.
    """
    workdir = folder.parents[1]
    config = storage.read_complete(workdir)
    protocol, split, n, suffix = _named(folder.name)
    norms = suffix[1:].split("-") if suffix else USUAL
    paths = folder / "evaluation.json", folder / "distances.npz"
    again = f"run {command(workdir, protocol, norms, split, n)}"
    if not all(path.is_file() for path in paths):
        raise ValueError(f"{workdir} has not been evaluated by {protocol}: {again}.")
    record, arrays = map(files.read, paths)
    expected = {"row", "data", "split", "seed", "settings", "protocol", "n", "norms", "step"}
    if not isinstance(record, dict) or not expected <= record.keys():
        raise ValueError(f"{paths[0]} is not a run's evaluation: {again}.")
    # Each is written atomically, but a kill may come between the two.
    medians = {norm: record["row"].get(f"{norm} median") for norm in record["norms"]}
    if any(median != _median(arrays.get(norm)) for norm, median in medians.items()):
        raise ValueError(f"{' and '.join(map(str, paths))} are of two evaluations: {again}.")
    if record["step"] != record["steps"]:
        raise ValueError(
            f"{workdir} was evaluated at step {record['step']} of {record['steps']}: let its "
            f"training end, and {again}."
        )
    newest = storage.newest(workdir)
    if newest not in (None, record["step"]):  # of a best epoch, while training went on
        raise ValueError(
            f"{workdir} was evaluated at step {record['step']}, and is at step {newest}: {again}."
        )
    return config, record, arrays


def _median(distances: np.ndarray | None) -> float | None:
    """None where there are no distances, or what is there is something else."""
    if distances is None or distances.ndim != 1 or distances.dtype.kind != "f":
        return None
    return float(curves.median_distance(distances))


def command(
    workdir: str | Path,
    protocol: str,
    norms: Sequence[str] = USUAL,
    split: str = "",
    examples: int = 0,
) -> str:
    """What makes an evaluation anew; the module of an attack of one's own is not known here."""
    protocol, *attacks = protocol.split("+")
    flags = [f"--protocol={protocol}"] * (protocol != "pgd")
    flags += [f"--attack={a}" if a in LIBRARY else f"--attack=MODULE:{a}" for a in attacks]
    flags += [f"--norms={','.join(norms)}"] * bool(_suffix(norms))
    flags += [f"--split={split}"] * (split not in ("", "test"))
    flags += [f"--examples={examples}"] * bool(examples)
    return " ".join([f"python experiments/evaluate.py --run={workdir}", *flags])


def _named(folder: str) -> tuple[str, str, int, str]:
    """The protocol, split, number of images and norms that a folder's name says."""
    match = re.fullmatch(r"(.+)_([a-z]+)_(\d+)((?:_l[a-z0-9-]+)?)", folder)
    return (match[1], match[2], int(match[3]), match[4]) if match else (folder, "", 0, "")


def folder_of(workdir: str | Path, protocol: str, split: str, n: int, norms: Sequence[str]) -> Path:
    """The folder of one evaluation; other norms than the usual ones are in its name."""
    return Path(workdir) / "evaluations" / f"{protocol}_{split}_{n}{_suffix(norms)}"


def _suffix(norms: Sequence[str]) -> str:
    return "" if set(norms) == set(USUAL) else "_" + "-".join(sorted(norms))
