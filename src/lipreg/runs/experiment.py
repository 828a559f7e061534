"""From a config to a trained run, and from a run to its numbers.

`prepare` turns a config into checked parts and writes nothing; `train_run` does the work in a
folder, `train_together` that of several folders in one compiled program; `load` reads a run back.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg import batching, datasets, files, parallel, training
from lipreg.datasets import streamed
from lipreg.runs import build, storage
from lipreg.runs.config import Config, check, complete, label
from lipreg.training import State

__all__ = [
    "Experiment",
    "Loaded",
    "load",
    "prepare",
    "train_run",
    "train_together",
]


class Experiment(NamedTuple):
    """A config, checked and made into parts; see `prepare`."""

    config: Config
    training: datasets.Dataset | streamed.Stream
    validation: datasets.Dataset
    program: build.Program
    state: State
    steps: int


def _key(config: Config, use: str) -> Array:
    """One key for each use of the seed."""
    uses = ("init", "step", "batches", "report")
    return jax.random.fold_in(jax.random.key(config.seed), uses.index(use))


def _keys(key: Array, rows: Array) -> Array:
    """A key per example, whatever batch it comes in."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _split(config: Config, split: str, examples: int) -> Any:
    """A split as the config has it; of a streamed set, but for training, so many images of it."""
    d = config.data
    if not d.side:
        return datasets.load(d.name, split, dir=d.dir, seed=d.seed, validation=d.validation)
    options = {
        name: d[name] for name in ("dir", "side", "seed", "validation", "threads", "workers")
    }
    found = streamed.load(d.name, split, **options)
    return found if split == "train" else found.sample(min(examples, len(found)))


def prepare(config: Config) -> Experiment:
    """Data, model, step and first state of a config; ValueError with one sentence for a bad one.

    The whole step is traced (not compiled), so that what does not fit together is found before
    anything is written. Configs that differ in seed and strengths alone share one step, and so one
    compilation.
    """
    check(config)
    d, t, most = config.data, config.train, config.report.examples
    training, validation = _split(config, "train", 0), _split(config, "validation", most)
    if d.wrong_labels:
        if d.side:
            raise ValueError(
                f"config.data.wrong_labels = {d.wrong_labels}; of a streamed set it is 0."
            )
        training = datasets.wrong_labels(training, d.wrong_labels, seed=config.seed)
    size = datasets.size(training)
    if t.batch_size > size:
        raise ValueError(
            f"config.train.batch_size = {t.batch_size}; {d.name} has {size} training examples."
        )
    if parallel.multiple(t.batch_size) != t.batch_size:
        raise ValueError(
            f"config.train.batch_size = {t.batch_size}; it must be a multiple of the "
            f"{jax.device_count()} devices."
        )
    height, width = validation.x.shape[1:3]
    for name in ("pad", "cutout"):
        if d[name] >= min(height, width):  # it could hide the whole image
            raise ValueError(
                f"config.data.{name} = {d[name]}; it must be less than the sides of the images, "
                f"{height} x {width} pixels."
            )
    steps = t.epochs * (size // t.batch_size)
    if t.accumulate > steps:
        raise ValueError(
            f"config.train.accumulate = {t.accumulate}; the run has {steps} steps: its weights "
            "would not move."
        )
    made = build.of(config, validation, steps)
    state = made.init(_key(config, "init"), _key(config, "step"))
    x = jax.ShapeDtypeStruct((t.batch_size, *validation.x.shape[1:]), np.uint8)
    batch = (x, jax.ShapeDtypeStruct(x.shape[:1], np.int32))
    jax.eval_shape(made.step, state, config.strengths.to_dict(), batch)
    return Experiment(config, training, validation, made, state, steps)


def _validate(experiment: Experiment, state: training.State) -> dict[str, float]:
    """Clean and PGD error on the validation split."""
    config, dataset = experiment.config, experiment.validation
    n = min(config.report.examples, len(dataset.y))
    wrong = partial(experiment.program.wrong, training.logits_fn(experiment.program.apply, state))
    keys = _keys(_key(config, "report"), jnp.arange(n))
    size = min(config.evaluation.batch_size, n)
    found = batching.map_batches(wrong, size, keys, datasets.to_unit(dataset.x[:n]), dataset.y[:n])
    return {name: float(values.mean()) for name, values in found.items()}


def train_run(experiment: Experiment, workdir: str | Path, *, silent: bool = False) -> training.State:
    """Train in `workdir`, reporting and keeping checkpoints; a run that stopped goes on.

    Inside `parallel.over` the devices share each batch. Returns the last state.

    Raises: ValueError for a workdir that is not this config's, or in use, before anything is
    written, and FloatingPointError where a part of the objective is not finite.
    """
    return _train([experiment], [workdir], silent)[0]


def train_together(
    experiments: Sequence[Experiment], workdirs: Sequence[str | Path], *, silent: bool = False
) -> list[training.State]:
    """`train_run` of several experiments at once, their step vmapped over states and strengths.

    They differ in seed and strengths alone. Inside `parallel.over` the devices share the runs. For
    accelerators that one run does not fill; on CPU, where convolutions of vmapped weights are slow,
    one run after the other is faster, and compiles once as well.

    Raises: as `train_run`; training.Diverged tells which runs are not finite.
    """
    first = experiments[0]
    for other in experiments:
        d = other.config.data
        if other.program is not first.program or d.wrong_labels or d.side:
            raise ValueError(
                f"{label(first.config)} and {label(other.config)} differ in more than seed and "
                "strengths; they cannot be trained together."
            )
    return _train(experiments, workdirs, silent)


def _train(
    experiments: Sequence[Experiment], workdirs: Sequence[str | Path], silent: bool
) -> list[training.State]:
    lead, together = experiments[0], len(experiments) > 1
    config = lead.config
    stack = partial(jax.tree.map, _stacked if together else _only)
    with ExitStack() as open_:
        managers = []
        for experiment, workdir in zip(experiments, workdirs, strict=True):
            storage.check_workdir(workdir, experiment.config.to_dict())
            open_.enter_context(storage.lock(workdir))
            storage.claim(workdir, experiment.config.to_dict(), steps=lead.steps)
            keep = config.report.keep
            managers.append(open_.enter_context(storage.checkpoints(workdir, keep=keep)))
        states = _restored(experiments, managers)
        first = int(states[0].step)
        name = f"{len(experiments)} runs" if together else label(config)
        quiet = silent or not parallel.is_main()
        bar = open_.enter_context(_bar(lead, first, name, quiet))

        def started(seconds: float) -> None:
            if not quiet:
                bar.write(f"First step after {seconds:.1f} s, compilation included.")

        reports = training.fit(
            jax.vmap(lead.program.step) if together else lead.program.step,
            stack(*states),
            stack(*(e.config.strengths.to_dict() for e in experiments)),
            lead.training,
            batch_size=config.train.batch_size,
            steps=lead.steps,
            every=config.report.every_steps,
            key=stack(*(_key(e.config, "batches") for e in experiments)),
            per_dispatch=config.train.per_dispatch,
            started=started,
        )
        logs = [open_.enter_context(storage.Log(workdir, first)) for workdir in workdirs]
        for state, parts in reports:
            states = [state]
            if together:
                states = [jax.tree.map(lambda a, k=k: a[k], state) for k in range(len(managers))]
            for k, experiment in enumerate(experiments):
                row = {name: float(np.atleast_1d(values)[k]) for name, values in parts.items()}
                _keep(experiment, states[k], row, logs[k], managers[k])
            bar.update(int(states[0].step) * config.train.batch_size - bar.n)
            bar.set_postfix(objective=float(np.mean(parts["objective"])))
    return states


def _keep(
    experiment: Experiment, state: training.State, row: dict[str, float], log: storage.Log, manager: Any
) -> None:
    """Write a report's row and, where they are due, validation errors and a checkpoint."""
    report, step = experiment.config.report, int(state.step)
    epoch, rest = divmod(step, experiment.steps // experiment.config.train.epochs)
    at_end, last = rest == 0, step == experiment.steps
    if at_end and (last or epoch % report.validate_every_epochs == 0):
        row |= _validate(experiment, state)
    log.write(step, row)
    if at_end and (last or epoch % report.checkpoint_every_epochs == 0):
        storage.save(manager, step, state)


def _bar(experiment: Experiment, first: int, name: str, quiet: bool) -> Any:
    from tqdm import tqdm  # at the top, every import of this module would pay for it

    size = experiment.config.train.batch_size
    return tqdm(
        total=experiment.steps * size,
        initial=first * size,
        desc=name,
        unit=" images",
        unit_scale=True,
        disable=quiet or None,  # None: off where the output is no terminal
    )


def _stacked(*leaves: Any) -> Array:
    return jnp.stack([jnp.asarray(leaf) for leaf in leaves])


def _only(leaf: Any) -> Any:
    return leaf


def _restored(experiments: Sequence[Experiment], managers: Sequence[Any]) -> list[training.State]:
    """Every run's state at the newest step that all of them have; else all first states."""
    pairs = list(zip(experiments, managers, strict=True))
    states = [storage.restore(manager, experiment.state) for experiment, manager in pairs]
    step = min(-1 if state is None else int(state.step) for state in states)
    for k, (experiment, manager) in enumerate(pairs):
        if states[k] is not None and int(states[k].step) > step:
            states[k] = storage.restore(manager, experiment.state, step)
    if any(state is None or int(state.step) != step for state in states):
        return [experiment.state for experiment in experiments]
    return states


class Loaded(NamedTuple):
    """A run read back.

    Attributes:
      config: the run's config.
      logits_fn: its model as a function of images.
      dataset: a split of its data.
      step: the step of the checkpoint that was read.
      steps: all steps of the training; `step` is less before its end or where the last checkpoint
        is damaged.
    """

    config: Config
    logits_fn: jax.tree_util.Partial
    dataset: datasets.Dataset
    step: int
    steps: int


def load(workdir: str | Path, split: str = "test", examples: int | None = None) -> Loaded:
    """A run's config, its `logits_fn` at the newest sound checkpoint, and a split of its data.

    Of a set that is streamed, that is its first `examples` images, by default the evaluation's.
    """
    config = complete(storage.read_config(workdir))
    if not (Path(workdir) / "checkpoints").is_dir():
        raise ValueError(f"{workdir} has no checkpoint yet: let its training reach the first.")
    dataset = _split(config, split, examples or config.evaluation.examples)
    made = build.of(config, dataset, 1)
    with storage.checkpoints(workdir) as manager:
        state = storage.restore(manager, made.init(_key(config, "init"), _key(config, "step")))
    if state is None:
        raise ValueError(f"{workdir} has no checkpoint yet: let its training reach the first.")
    step, path = int(state.step), Path(workdir) / "about.json"
    about = files.read(path) if path.is_file() else {}
    about = {"steps": step} | about  # earlier versions did not record it
    return Loaded(config, training.logits_fn(made.apply, state), dataset, step, about["steps"])
