"""Many runs of one config that differ in a few values.

    DIR/points/NAME/        each point's run, as train.py leaves it, and point.json: its last
                            validation errors, or why it has none; such a point is done

Points that differ in seed and strengths alone share one compiled step: `loop` runs them one after
the other, `vmap` all at once, sharded over the devices. `ray` starts a process for each.
`reports.sweeps` makes one table of them.
"""

import ast
import itertools
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lipreg import files, parallel, runs, training
from lipreg.runs import build, logs, storage
from lipreg.runs.build import CLEAN, ROBUST
from lipreg.runs.config import Config, drop_settings, leaves, no_field
from lipreg.training import cpu

__all__ = ["CLEAN", "ENGINES", "ROBUST", "combinations", "outcome", "parse", "points", "run"]

ENGINES = ("auto", "loop", "vmap", "ray")


def parse(axes: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """`NAME=VALUE,VALUE,...` or `NAME=START:STOP`, integers without the last, as a dict.

    A comma in brackets is the value's own.

    >>> parse(["strengths.lam=0,0.01", "seed=0:3", "loss=kl,emma(eps=1,margins=2)"])
    {'strengths.lam': (0, 0.01), 'seed': (0, 1, 2), 'loss': ('kl', 'emma(eps=1,margins=2)')}
    """
    parsed: dict[str, tuple[Any, ...]] = {}
    for axis in axes:
        name, equals, text = axis.partition("=")
        if not (name and equals and text):
            raise ValueError(f"Axis {axis!r}: write NAME=VALUE,VALUE or NAME=START:STOP.")
        if name in parsed:
            raise ValueError(f"Axis {name}: it is there twice.")
        ends = text.split(":")
        if len(ends) == 2 and all(end.isdecimal() for end in ends):
            parsed[name] = tuple(range(int(ends[0]), int(ends[1])))
        else:
            parsed[name] = tuple(_value(word) for word in _words(text))
        if not parsed[name]:
            raise ValueError(f"Axis {axis}: no values.")
    return parsed


def _words(text: str) -> list[str]:
    """The words between commas that are not in brackets."""
    words: list[str] = []
    for part in text.split(","):
        if words and sum(map(words[-1].count, "([")) > sum(map(words[-1].count, ")]")):
            words[-1] += f",{part}"
        else:
            words.append(part)
    return words


def _value(word: str) -> Any:
    """As Python has it, lists as the tuples that a config holds, or else the word itself."""
    try:
        value = ast.literal_eval(word)
        return tuple(value) if isinstance(value, list) else value
    except (ValueError, SyntaxError):
        return word


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the axes' values, by the names of the axes.

    >>> combinations({"lam": (1, 2), "seed": (0,)})
    [{'lam': 1, 'seed': 0}, {'lam': 2, 'seed': 0}]
    """
    for name, values in axes.items():
        if any(value in values[:i] for i, value in enumerate(values)):
            listed = ",".join(map(str, values))
            raise ValueError(f"Axis {name}={listed}: a value is there twice.")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def points(config: Config, axes: Mapping[str, Sequence[Any]]) -> dict[str, Config]:
    """Every combination of the axes' values as a checked config, by name: `lam=0.01,seed=3`.

    Raises: ValueError for no axes, for a field that the config does not have and for a value that
    it does not take.
    """
    if not axes:
        raise ValueError("No axes; give one, {NAME: (VALUE, VALUE)}.")
    short = [name.rpartition(".")[2] for name in axes]
    # The short name "seed" is for the training seed only: the report averages over its values.
    clear = len(set(short)) == len(short) and ("seed" in axes or "seed" not in short)
    labels = short if clear else list(axes)
    if "train.epochs" in axes and (config.train.steps or any(axes.get("train.steps", ()))):
        raise ValueError(
            "Axis train.epochs: the runs have train.steps instead; give one of the two."
        )
    configs: dict[str, Config] = {}
    for values in combinations(axes):
        point = config.copy_and_resolve_references()
        for name, value in values.items():
            if name not in leaves(config):
                raise ValueError(f"Axis {name}: {no_field(name, leaves(config))}")
            try:
                point.update_from_flattened_dict({name: value})
            except TypeError as error:
                raise ValueError(f"Axis {name}={value}: {error}.") from None
        drop_settings(point, config.model.name, axes)
        build.parts(point)
        named = zip(labels, values.values(), strict=True)
        parts = (f"{label}={value}" for label, value in named)
        configs[",".join(parts)] = point
    return configs


def run(
    configs: Mapping[str, Config],
    workdir: str | Path,
    *,
    engine: str = "auto",
    silent: bool = False,
) -> None:
    """Train those points that are not done; a point that diverges is written down and skipped.

    With another config, a smaller learning rate for instance, one that has diverged begins anew.

    `auto` is `vmap` on accelerators, for points that allow it, and `loop` on CPU.

    Raises: ValueError for another engine, for `vmap` of points that differ in more than seed and
    strengths, and for a folder whose points have another config.
    """
    if engine not in ENGINES:
        raise ValueError(f"No engine {engine!r}; choose one of {', '.join(ENGINES)}.")
    folder = Path(workdir) / "points"

    diverged = [
        name
        for name, config in configs.items()
        if "failed" in outcome(folder / name) and storage.changes(folder / name, config.to_dict())
    ]
    for name, config in configs.items():
        if name not in diverged:
            storage.check_workdir(folder / name, config.to_dict())
    for name in diverged:
        shutil.rmtree(folder / name)
    left = {name: config for name, config in configs.items() if not outcome(folder / name)}
    for name in left:
        (folder / name / "point.json").unlink(missing_ok=True)
    if engine == "ray":
        _by_ray(left, folder, silent)
        return
    if engine == "auto":
        engine = "loop" if jax.default_backend() == "cpu" or not _alike(left) else "vmap"
    if engine == "vmap":
        _vmapped({n: runs.prepare(c) for n, c in left.items()}, folder, silent)
        return
    for name, config in left.items():
        train_point(config, folder / name, silent=silent)


def _alike(left: Mapping[str, Config]) -> bool:
    def rest(config: Config) -> dict[str, Any]:
        return config.to_dict() | {"seed": None, "strengths": None}

    configs = list(left.values())
    return all(
        rest(c) == rest(configs[0]) and not c.data.wrong_labels and not c.data.side for c in configs
    )


def train_point(
    config: Config, workdir: Path, *, devices: int | None = None, silent: bool = True
) -> None:
    """One point by itself, and its record; on so many devices, by default on all."""
    try:
        with parallel.over(jax.devices()[:devices]):
            runs.train_run(runs.prepare(config), workdir, silent=silent)
    except FloatingPointError as error:
        _record(workdir, str(error))
    else:
        _record(workdir)


def _vmapped(prepared: dict[str, runs.Experiment], folder: Path, silent: bool) -> None:
    """All at once; those that diverge are taken out, the others go on from their checkpoints."""
    while len(prepared) > 1:
        names = list(prepared)
        # As many devices as can share the runs equally.
        shares = np.gcd(len(names), jax.device_count())
        try:
            with parallel.over(jax.devices()[:shares]):
                places = [folder / name for name in names]
                runs.train_vmapped(list(prepared.values()), places, silent=silent)
        except training.Diverged as error:
            for k in error.runs:
                _record(folder / names[k], str(error))
                del prepared[names[k]]
        else:
            for name in names:
                _record(folder / name)
            return
    for name, one in prepared.items():  # that of its batch
        shares = int(np.gcd(one.config.train.batch_size, jax.device_count()))
        train_point(one.config, folder / name, devices=shares, silent=silent)


def _trial(config: Config, workdir: Path) -> None:
    """A point in a process that no launcher has set up."""
    cpu.tune()
    train_point(config, workdir)


def _by_ray(left: Mapping[str, Config], folder: Path, silent: bool) -> None:
    """A process for each point, on a GPU of its own where there are any; restarted if killed."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise ValueError("engine = ray needs ray: pip install -e '.[ray]'.") from None
    from tqdm import tqdm

    ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        trial = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_trial)
        pending = {trial.remote(c, (folder / n).absolute()): n for n, c in left.items()}
        lost: dict[str, str] = {}
        with tqdm(total=len(pending), unit="point", disable=silent or None) as bar:
            while pending:
                (reference,), _ = ray.wait(list(pending))
                name = pending.pop(reference)
                try:
                    ray.get(reference)
                except RayError as error:
                    lost[name] = str(error).strip().splitlines()[-1]
                bar.update()
    finally:
        ray.shutdown()
    if lost:
        name, why = next(iter(lost.items()))
        raise ValueError(f"{len(lost)} of {len(left)} points were lost; {name}: {why}")


def outcome(workdir: Path) -> dict[str, Any]:
    """A point's last validation errors, or why it has none; empty if it is not done, or damaged."""
    path = workdir / "point.json"
    try:
        record = files.read(path) if path.is_file() else {}
    except ValueError:
        return {}
    return record if "failed" in record or {CLEAN, ROBUST} <= set(record) else {}


def _record(workdir: Path, failed: str = "") -> None:
    last = logs.metrics(workdir)[-1] if not failed else {}
    record = {"failed": failed} if failed else {CLEAN: last[CLEAN], ROBUST: last[ROBUST]}
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / "point.json", record)
