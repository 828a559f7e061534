"""A run trained in its folder, and several runs trained at once by one vmapped step."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import batching, datasets, parallel, training
from lipreg.runs import storage
from lipreg.runs.config import label
from lipreg.runs.experiment import Experiment, key_for

__all__ = ["train_run", "train_vmapped"]


def train_run(
    experiment: Experiment, workdir: str | Path, *, silent: bool = False
) -> training.State:
    """Train in `workdir`, reporting and keeping checkpoints; a run that stopped is resumed.

    Inside `parallel.over` each batch is sharded over the devices. Returns the last state.

    Raises: ValueError for a workdir that is not this config's, or in use, before anything is
    written, and FloatingPointError where a part of the objective is not finite.
    """
    config = experiment.config
    with ExitStack() as stack:
        manager = _claimed(experiment, workdir, stack)
        restored = storage.restore(manager, experiment.state)
        begun = state = experiment.state if restored is None else restored
        first = int(begun.step)
        bar = stack.enter_context(_bar(experiment, first, label(config), silent))
        log = stack.enter_context(storage.Log(workdir, first))
        for state, parts in training.fit(
            experiment.program.step,
            begun,
            config.strengths.to_dict(),
            experiment.training,
            key=key_for(config, "batches"),
            started=_told(bar, silent),
            **_pace(experiment),
        ):
            state = _record(experiment, state, _numbers(parts), log, manager)
            _advance(bar, experiment, state, parts)
    return state


def train_vmapped(
    experiments: Sequence[Experiment], workdirs: Sequence[str | Path], *, silent: bool = False
) -> list[training.State]:
    """`train_run` of several experiments at once, their step vmapped over states and strengths.

    They differ in seed and strengths alone. Inside `parallel.over` the runs are sharded over the
    devices. It is meant for accelerators that one run does not fill: on CPU, where convolutions
    with vmapped weights are slow, one run after the other is faster, and compiles once as well.

    Raises: as `train_run`; training.Diverged says which runs are not finite.
    """
    lead = experiments[0]
    for other in experiments:
        d = other.config.data
        if other.program is not lead.program or d.wrong_labels or d.side:
            raise ValueError(
                f"{label(lead.config)} and {label(other.config)} differ in more than seed and "
                "strengths; they cannot be trained together."
            )
    with ExitStack() as stack:
        managers = [_claimed(*pair, stack) for pair in zip(experiments, workdirs, strict=True)]
        states = _restored(experiments, managers)
        first = int(states[0].step)
        bar = stack.enter_context(_bar(lead, first, f"{len(states)} runs", silent))
        logs = [stack.enter_context(storage.Log(workdir, first)) for workdir in workdirs]
        for state, parts in training.fit(
            jax.vmap(lead.program.step),
            _stacked(states),
            _stacked([e.config.strengths.to_dict() for e in experiments]),
            lead.training,
            key=_stacked([key_for(e.config, "batches") for e in experiments]),
            started=_told(bar, silent),
            **_pace(lead),
        ):
            states = [jax.tree.map(lambda a, k=k: a[k], state) for k in range(len(states))]
            for k, experiment in enumerate(experiments):
                row = _numbers({name: values[k] for name, values in parts.items()})
                states[k] = _record(experiment, states[k], row, logs[k], managers[k])
            _advance(bar, lead, states[0], parts)
    return states


def _claimed(experiment: Experiment, workdir: str | Path, stack: ExitStack) -> Any:
    """The manager of a folder's checkpoints; the folder is this run's, and locked with `stack`."""
    config = experiment.config.to_dict()
    storage.check_workdir(workdir, config)
    stack.enter_context(storage.lock(workdir))
    storage.claim(workdir, config, steps=experiment.steps)
    manager = storage.checkpoints(workdir, keep=experiment.config.report.keep)
    return stack.enter_context(manager)


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


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _pace(experiment: Experiment) -> dict[str, int]:
    """What `training.fit` takes from a config."""
    train, report = experiment.config.train, experiment.config.report
    return {
        "batch_size": train.batch_size,
        "steps": experiment.steps,
        "every": report.every_steps,
        "per_dispatch": train.per_dispatch,
        "replay": train.replay,
    }


def _numbers(parts: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in parts.items()}


def _record(
    experiment: Experiment,
    state: training.State,
    row: dict[str, float],
    log: storage.Log,
    manager: Any,
) -> training.State:
    """Write a report's row and, where they are due, validation errors and a checkpoint.

    Returns the state as it is validated and kept.

    `gradients` counts those in the weights since the start: one a step, whatever the optimiser.
    """
    report, step = experiment.config.report, int(state.step)
    row |= {"gradients": step}
    epoch, rest = divmod(step, experiment.steps // experiment.config.train.epochs)
    at_end, last = rest == 0, step == experiment.steps
    train = experiment.config.train
    if at_end and state.ema_state is not None and train.ema_statistics == "recomputed":
        options = {"batch_size": train.batch_size, "key": key_for(experiment.config, "report")}
        state = training.refitted(experiment.program.apply, state, experiment.training, **options)
    if at_end and (last or epoch % report.validate_every_epochs == 0):
        row |= _validate(experiment, state)
    log.write(step, row)
    if at_end and (last or epoch % report.checkpoint_every_epochs == 0):
        storage.save(manager, step, state)
    return state


def _validate(experiment: Experiment, state: training.State) -> dict[str, float]:
    """Clean and PGD error on the validation split."""
    config, dataset = experiment.config, experiment.validation
    n = min(config.report.examples, len(dataset.y))
    logits_fn = training.logits_fn(experiment.program.apply, state)
    # A key per example, whatever batch it comes in.
    keys = jax.vmap(partial(jax.random.fold_in, key_for(config, "report")))(jnp.arange(n))
    errors = batching.map_batches(
        lambda *batch: experiment.program.wrong(logits_fn, *batch),
        min(config.evaluation.batch_size, n),
        keys,
        datasets.to_unit(dataset.x[:n]),
        dataset.y[:n],
    )
    return {name: float(values.mean()) for name, values in errors.items()}


def _bar(experiment: Experiment, first: int, name: str, silent: bool) -> Any:
    from tqdm import tqdm  # at the top, every import of this module would pay for it

    size = experiment.config.train.batch_size
    return tqdm(
        total=experiment.steps * size,
        initial=first * size,
        desc=name,
        unit=" images",
        unit_scale=True,
        disable=_quiet(silent) or None,  # None: off where the output is no terminal
    )


def _told(bar: Any, silent: bool) -> Callable[[float], None]:
    def started(seconds: float) -> None:
        if not _quiet(silent):
            bar.write(f"First step after {seconds:.1f} s, compilation included.")

    return started


def _quiet(silent: bool) -> bool:
    return silent or not parallel.is_main()


def _advance(bar: Any, experiment: Experiment, state: training.State, parts: Any) -> None:
    bar.update(int(state.step) * experiment.config.train.batch_size - bar.n)
    bar.set_postfix(objective=float(np.mean(parts["objective"])))
