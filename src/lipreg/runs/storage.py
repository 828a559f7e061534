"""What a run leaves on disk, and how to read it back.

    RUN/config.json      the complete config
    RUN/about.json       command, commit, versions, hardware of the latest start; number of steps
    RUN/metrics.jsonl    one line per report: step and numbers
    RUN/tensorboard/     the same for TensorBoard; RUN/wandb/ for Weights & Biases, if asked for
    RUN/checkpoints/     Orbax, the newest few
    RUN/best/            with `report.keep_best`: a run that ends where PGD error was least
    RUN/lock             held while the run trains

`experiments/evaluate.py` adds `evaluations/`, a folder for each.
"""

import fcntl
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from ml_collections import ConfigDict

import lipreg
from lipreg import files, parallel
from lipreg.runs.config import complete, differing
from lipreg.trees import by_path, digest

__all__ = [
    "about",
    "check_same",
    "check_workdir",
    "checkpoints",
    "claim",
    "lock",
    "newest",
    "read_complete",
    "read_config",
    "restore",
    "save",
]

MEASURED = ("evaluations", "certificates.json", "compared", "point.json")  # of a run's weights
SECTIONS = {"strengths", "options", "model", "data", "train", "report", "evaluation"}  # of a config


def _tuples(value: Any) -> Any:
    """JSON knows lists only; a config holds tuples."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config of a run; ValueError where the folder holds none that can be read."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is not a run: it has no config.json.")
    config = files.read(path)
    foreign = not isinstance(config, dict) or not {"seed", "train"} <= config.keys()
    if foreign or not all(isinstance(config[name], dict) for name in SECTIONS & config.keys()):
        raise ValueError(f"{path} cannot be read: it holds no config.")
    return ConfigDict(_tuples(config))


def read_complete(workdir: str | os.PathLike) -> Any:
    """The config of a run with today's fields; ValueError as `read_config`."""
    config = complete(read_config(workdir))
    for name in sorted({*SECTIONS, "objective"} - {*config}):
        raise ValueError(f"{Path(workdir) / 'config.json'} cannot be read: it has no {name}.")
    return config


def check_workdir(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Refuse a folder that is not free for a run of `config`; the same run is resumed.

    A run that has no checkpoint, because it diverged for instance, leaves its folder free, unless
    something was measured of it.

    Raises: ValueError, naming the keys that differ, for a run with another config, and for a
    file, and for a folder with other things in it.
    """
    workdir = Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir = {workdir} is a file; name a folder.")
    files.check_writable(workdir)
    begun = ("lock", "config.json.")  # by a start that was killed at once
    if workdir.is_dir() and any(not p.name.startswith(begun) for p in workdir.iterdir()):
        if not (workdir / "config.json").exists():
            raise ValueError(f"workdir = {workdir} is not empty and not a run; name a new folder.")
        if newest(workdir) is not None or any((workdir / name).exists() for name in MEASURED):
            check_same(workdir, config)


def newest(workdir: str | os.PathLike) -> int | None:
    """The step of the newest checkpoint of a folder; None where there is none."""
    names = (path.name for path in Path(workdir, "checkpoints").glob("[0-9]*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def changes(workdir: str | os.PathLike, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of a folder's config that differ from those of `config`, with both values."""
    return differing(
        *(complete(c) for c in (read_config(workdir), ConfigDict(_tuples(dict(config)))))
    )


def check_same(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """ValueError for a folder with another config, naming the first keys that differ."""
    changed = [
        f"{name} ({a!r} there, {b!r} asked)" for name, (a, b) in changes(workdir, config).items()
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"workdir = {workdir} holds a run with another config: {', '.join(changed[:5])}{more}. "
            "Name a new folder, or ask for the same."
        )


def claim(workdir: str | os.PathLike, config: Mapping[str, Any], **more: Any) -> None:
    """Make `workdir` the run of `config`, or refuse like `check_workdir` and write nothing.

    `more` is added to about.json, the number of steps for instance.
    """
    check_workdir(workdir, config)
    if parallel.is_main():
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / "config.json", config)
        files.write_json(workdir / "about.json", about() | more)


@contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Keep other processes from training in `workdir`; a process that dies lets go of it.

    Raises: ValueError where another one does already.
    """
    if not parallel.is_main():
        yield
        return
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"workdir = {workdir} is in use by another process.") from None
        yield


def _from_here(program: str) -> str:
    """A program's path as one writes it in this folder; the same if it lies elsewhere."""
    path = Path(program)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else program


def about() -> dict[str, Any]:
    """Command, commit, versions and hardware: what stands beside every number."""
    try:
        describe = ["git", "describe", "--always", "--dirty"]
        git = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = git.stdout.strip()
    except OSError:  # a machine without git
        commit = ""
    packages = ("jax", "jaxlib", "flax", "optax")  # lipreg need not be installed
    # Times change twofold with the level of the vector instructions: X86_V3, X86_V4, ...
    simd = cast(Any, np.show_config("dicts"))["SIMD Extensions"]
    level = [platform.machine(), *simd.get("baseline", []), *simd.get("found", [])][-1]
    return {
        "command": " ".join([_from_here(sys.argv[0]), *sys.argv[1:]]),
        "commit": commit or os.environ.get("LIPREG_COMMIT", "unknown"),
        "versions": {"lipreg": lipreg.__version__} | {n: metadata.version(n) for n in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "machine": f"{platform.machine()} ({level}), {os.cpu_count()} cores",
        "python": platform.python_version(),
    }


def checkpoints(workdir: str | os.PathLike, *, keep: int = 2) -> ocp.training.Checkpointer:
    """Orbax's manager of a run's checkpoints, the newest `keep` of them."""
    newest: Any = ocp.training.preservation_policies.LatestN(keep)
    folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
    return ocp.training.Checkpointer(folder, preservation_policy=newest)


def _shapes(leaves: Mapping[str, jax.Array]) -> dict[str, list[Any]]:
    return {name: [str(leaf.dtype), *leaf.shape] for name, leaf in leaves.items()}


def save(manager: ocp.training.Checkpointer, step: int, state: Any) -> None:
    """Keep a state under its step, with a hash of its content; returns before the disk is done."""
    leaves = by_path(state)
    meta = {"sha256": digest(leaves), "leaves": _shapes(leaves)}
    manager.save_async(step, leaves, force=True, overwrite=True, custom_metadata=meta)


def _read(
    manager: ocp.training.Checkpointer,
    step: int,
    template: Any,
    fields: Sequence[str],
    optional: Sequence[str],
) -> Any:
    meta: Any = manager.metadata(step).custom_metadata
    if not meta:  # saved by Orbax's older interface
        meta = manager.load_checkpointables(step, {"meta": None})["meta"]
    there = meta["leaves"]
    absent = {*optional} - {name.split(".")[0] for name in there}
    template = template | dict.fromkeys(absent) if absent else template
    here = _shapes(by_path(template))
    # Orbax names no path where shapes differ, and casts to another type without a word.
    for name in sorted(there.keys() | here.keys()):
        wanted = not fields or name.split(".")[0] in {*fields, *optional}
        if wanted and there.get(name) != here.get(name):
            raise ValueError(
                f"Checkpoint {step} of {manager.directory} does not fit: {name} is "
                f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} in the model."
            )
    # All of it, whatever is wanted: the hash is that of all.
    saved = manager.load(step, {n: jnp.zeros(shape, dtype) for n, (dtype, *shape) in there.items()})
    if digest(saved) != meta["sha256"]:
        raise OSError("its content is not what was saved")

    def rebuild(path: Any, leaf: jax.Array) -> jax.Array:
        value = saved[jax.tree_util.keystr(path, simple=True, separator=".")]
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(value) if is_key else value

    return jax.tree_util.tree_map_with_path(rebuild, template)


def restore(
    manager: ocp.training.Checkpointer,
    template: Any,
    at_most: int | None = None,
    *,
    fields: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Any:
    """The newest sound checkpoint in the form of `template`, or None where there is none at all.

    With `at_most`, the newest of that step or before. The template is a state, or its arrays'
    shapes and types. With `fields` it is a dict of those fields of a state and of the `optional`
    ones, which are None where the checkpoint has none; the other fields are not looked at.

    A damaged checkpoint (unreadable, or with a content that is not what was saved) is passed over
    for the one before it, with a warning that names it.

    Raises: ValueError where a leaf's path, shape or type is not the template's, naming it, and
    where no checkpoint is sound.
    """
    steps = [checkpoint.step for checkpoint in reversed(manager.checkpoints)]
    if at_most is not None:
        steps = [step for step in steps if step <= at_most]
    for step in steps:
        try:
            return _read(manager, step, template, fields, optional)
        except ValueError as e:
            if "does not fit" in str(e):
                raise
            damage = e
        except Exception as e:  # whatever a broken file makes of Orbax and TensorStore
            damage = e
        reason = (str(damage).splitlines() or [type(damage).__name__])[0][:160]
        warnings.warn(
            f"Checkpoint {step} of {manager.directory} is damaged ({reason}); "
            "trying the one before.",
            stacklevel=2,
        )
    if steps:
        raise ValueError(f"None of the checkpoints {steps} of {manager.directory} can be read.")
    return None
