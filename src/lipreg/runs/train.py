"""A run trained in its folder, and several runs trained at once by one vmapped step."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import batching, datasets, training
from lipreg.runs import logs, shown, storage
from lipreg.runs.build import ROBUST
from lipreg.runs.config import label
from lipreg.runs.experiment import Experiment, key_for
from lipreg.training import overfitting

__all__ = ["fit_options", "train_run", "train_vmapped", "validation_errors"]


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
        bar = stack.enter_context(shown.bar(experiment, first, label(config), silent))
        if restored is not None and not shown.quiet(silent):
            bar.write(shown.resumed(experiment, workdir, first))
        log = stack.enter_context(_log(experiment, workdir, first))
        advance = shown.advancing(bar, experiment)
        _complete(experiment, begun, log, manager)
        for state, parts in _fitted(
            experiment,
            experiment.program.step,
            begun,
            config.strengths.to_dict(),
            key=key_for(config, "batches"),
            rows=log.rows,
            say=shown.say(bar, silent),
        ):
            row = _numbers(parts)
            state = _record(experiment, state, row, log, manager)
            advance(int(state.step), row)
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
        for name in ("wrong_labels", "side"):
            if d[name]:
                raise ValueError(
                    f"config.data.{name} = {d[name]}; runs that are trained together share one "
                    "data set, which is held in memory."
                )
        if other.program is not lead.program:
            raise ValueError(
                f"{label(lead.config)} and {label(other.config)} differ in more than seed and "
                "strengths; they cannot be trained together."
            )
    with ExitStack() as stack:
        # Of two, one is a step that all have, should a kill come between their saves.
        pairs = zip(experiments, workdirs, strict=True)
        managers = [_claimed(*pair, stack, least=2) for pair in pairs]
        states = _restored(experiments, managers)
        first = int(states[0].step)
        bar = stack.enter_context(shown.bar(lead, first, f"{len(states)} runs", silent))
        advance = shown.advancing(bar, lead)
        written = [
            stack.enter_context(_log(experiment, workdir, first))
            for experiment, workdir in zip(experiments, workdirs, strict=True)
        ]
        for ended in zip(experiments, states, written, managers, strict=True):
            _complete(*ended)
        for state, parts in _fitted(
            lead,
            jax.vmap(lead.program.step),
            _stacked(states),
            _stacked([e.config.strengths.to_dict() for e in experiments]),
            key=_stacked([key_for(e.config, "batches") for e in experiments]),
            rows=written[0].rows,
            say=shown.say(bar, silent),
        ):
            for manager in managers:  # all have the newest step before one drops an older one
                manager.wait()
            states = [jax.tree.map(lambda a, k=k: a[k], state) for k in range(len(states))]
            for k, experiment in enumerate(experiments):
                row = _numbers({name: values[k] for name, values in parts.items()})
                states[k] = _record(experiment, states[k], row, written[k], managers[k])
            advance(int(states[0].step), {"objective": float(np.mean(parts["objective"]))})
    return states


def _complete(experiment: Experiment, state: training.State, log: logs.Log, manager: Any) -> None:
    """Validate a run again that is at its end, but whose last report was lost."""
    step = int(state.step)
    if step == experiment.steps and (not log.rows or log.rows[-1]["step"] < step):
        _record(experiment, state, {}, log, manager)


def _claimed(experiment: Experiment, workdir: str | Path, stack: ExitStack, least: int = 1) -> Any:
    """The manager of a folder's checkpoints; the folder is this run's, and locked with `stack`."""
    config = experiment.config.to_dict()
    storage.check_workdir(workdir, config)
    stack.enter_context(storage.lock(workdir))
    storage.claim(workdir, config, steps=experiment.steps)
    if storage.newest(workdir) is None:  # by a run that diverged
        shutil.rmtree(Path(workdir) / "best", ignore_errors=True)
    manager = storage.checkpoints(workdir, keep=max(least, experiment.config.report.keep))
    return stack.enter_context(manager)


def _log(experiment: Experiment, workdir: str | Path, step: int) -> logs.Log:
    config = experiment.config
    return logs.Log(workdir, step, config.report.logs, config.to_dict())


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


def _fitted(
    experiment: Experiment,
    step: Callable,
    begin: training.State,
    strengths: dict[str, Any],
    *,
    key: Any,
    rows: Sequence[dict[str, float]],
    say: Callable[[str], object],
) -> Iterator[tuple[training.State, dict[str, Any]]]:
    """`training.fit` at a config's pace, with the seconds of training where it asks for them.

    `rows` are the reports until now, of which the last one knows the seconds before a resumption.
    """
    begun, seconds = time.perf_counter(), rows[-1].get("seconds", 0.0) if rows else 0.0
    first = True

    def started(compiling: float) -> None:
        nonlocal seconds, first
        seconds -= compiling
        if first:
            say(f"First step after {compiling:.1f} s, compilation included.")
        first = False

    for state, parts in training.fit(
        step,
        begin,
        strengths,
        experiment.training,
        key=key,
        started=started,
        **fit_options(experiment),
    ):
        seconds += time.perf_counter() - begun
        if experiment.config.report.seconds:
            parts["seconds"] = np.full(np.shape(parts["objective"]), seconds)
        yield state, parts
        begun = time.perf_counter()


def fit_options(experiment: Experiment) -> dict[str, Any]:
    """What `training.fit` takes from a config."""
    train, report = experiment.config.train, experiment.config.report
    return {
        "batch_size": train.batch_size,
        "steps": experiment.steps,
        "every": report.every_steps,
        "per_dispatch": train.per_dispatch,
        "replay": train.replay,
        "bounds": experiment.config.data.bounds,
    }


def _numbers(parts: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in parts.items()}


def _record(
    experiment: Experiment,
    state: training.State,
    row: dict[str, float],
    log: logs.Log,
    manager: Any,
) -> training.State:
    """Add to a report's row, and write it, a checkpoint and the best epoch where they are due.

    `gradients` counts those in the weights since the start: one a step, whatever the optimiser.
    Returns the state as it is validated and kept.
    """
    config, step = experiment.config, int(state.step)
    report, train = config.report, config.train
    row |= {"gradients": step}
    epoch, rest = divmod(step, experiment.epoch_steps)
    last = step == experiment.steps
    due = lambda every: last or (rest == 0 and epoch % every == 0)
    kept = due(report.validate_every_epochs) or due(report.checkpoint_every_epochs)
    used = kept or report.gap_examples
    if used and state.ema_state is not None and train.ema_statistics == "recomputed":
        options = {"batch_size": train.batch_size, "key": key_for(config, "report")}
        state = training.refitted(experiment.program.apply, state, experiment.training, **options)
    if due(report.validate_every_epochs):
        row |= validation_errors(experiment, state, experiment.program.wrong, report.examples)
    if report.gap_examples:
        row |= validation_errors(experiment, state, experiment.program.gap, report.gap_examples)
    best = ROBUST in row and all(row[ROBUST] < other.get(ROBUST, np.inf) for other in log.rows)
    log.write(step, row)
    if overfitting.overfitted(log.rows) == step:
        warnings.warn(
            f"Step {step}: catastrophic overfitting. The validation error is now "
            f"{row[overfitting.PGD]:.0%} under PGD-10 and {row[overfitting.FGSM]:.0%} under FGSM.",
            stacklevel=2,
        )
    # Before the checkpoint from which a killed run would go on without it.
    if report.keep_best and best:
        _keep_best(config, log.workdir / "best", state)
    if due(report.checkpoint_every_epochs):
        storage.save(manager, step, state)
    return state


def _keep_best(config: Any, workdir: Path, state: training.State) -> None:
    """A run of this config that ends at this state."""
    step = int(state.step)
    storage.claim(workdir, config.to_dict(), steps=step)
    with storage.checkpoints(workdir, keep=1) as manager:
        storage.save(manager, step, state)


def validation_errors(
    experiment: Experiment, state: training.State, wrong: Callable, examples: int
) -> dict[str, float]:
    """Errors on so many images of the validation split."""
    config, dataset = experiment.config, experiment.validation
    n = min(examples, len(dataset.y))
    logits_fn = training.logits_fn(experiment.program.apply, state)
    # A key per example, whatever batch it comes in.
    keys = jax.vmap(partial(jax.random.fold_in, key_for(config, "report")))(jnp.arange(n))
    errors = batching.map_batches(
        lambda *batch: wrong(logits_fn, *batch),
        min(config.evaluation.batch_size, n),
        keys,
        datasets.to_unit(dataset.x[:n]),
        dataset.y[:n],
    )
    return {name: float(values.mean()) for name, values in errors.items()}
