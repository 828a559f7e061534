"""From a config to a trained run, and from a run to its numbers.

`prepare` turns a config into checked parts and writes nothing; `train_run` does the work in a
folder; `load` reads a run back; `measure` attacks it.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lipreg import attacks, curves, data, losses, models, runs, train
from lipreg.config import NORMS, Config, bound_objective, check, label

__all__ = ["Experiment", "Loaded", "load", "measure", "prepare", "train_run"]


class Experiment(NamedTuple):
    """A config, checked and made into parts; see `prepare`."""

    config: Config
    training: data.Dataset
    validation: data.Dataset
    apply: train.Apply
    step: Callable
    state: train.State
    steps: int


def _key(config: Config, use: str) -> Array:
    """One key for each use of the seed."""
    uses = ("init", "step", "batches", "report")
    return jax.random.fold_in(jax.random.key(config.seed), uses.index(use))


def _keys(key: Array, rows: Array) -> Array:
    """A key per example, whatever batch it comes in."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _split(config: Config, split: str) -> data.Dataset:
    d = config.data
    return data.load(d.name, split, dir=d.dir, seed=d.seed, validation=d.validation)


def _start(
    config: Config, dataset: data.Dataset, steps: int
) -> tuple[train.Apply, optax.GradientTransformation, train.State]:
    """The model as a function, its optimiser and its first state."""
    m, t = config.model, config.train
    model = models.build(
        m.name, classes=dataset.classes, head=m.head, activation=m.activation, **m.settings
    )
    x = jnp.zeros((1, *dataset.x.shape[1:]), jnp.float32)
    variables = jax.jit(partial(model.init, train=False))(_key(config, "init"), x)
    model_state = {name: value for name, value in variables.items() if name != "params"}
    tx = train.optimizer(
        train.schedule(t.schedule, t.learning_rate, steps),
        momentum=t.momentum,
        nesterov=t.nesterov,
        weight_decay=t.weight_decay,
        clip=t.clip,
    )
    state = train.init(_key(config, "step"), variables["params"], model_state, tx, ema=t.ema > 0)
    return models.functional(model), tx, state


def prepare(config: Config) -> Experiment:
    """Data, model, step and first state of a config; ValueError with one sentence for a bad one.

    The whole step is traced (not compiled), so that what does not fit together is found before
    anything is written.
    """
    check(config)
    training, validation = _split(config, "train"), _split(config, "validation")
    d, t = config.data, config.train
    training = data.wrong_labels(training, d.wrong_labels, seed=config.seed)
    if t.batch_size > len(training.y):
        raise ValueError(
            f"config.train.batch_size = {t.batch_size}; {d.name} has {len(training.y)} training "
            "examples."
        )
    steps = t.epochs * (len(training.y) // t.batch_size)
    apply, tx, state = _start(config, training, steps)
    step = train.make_step(
        apply,
        bound_objective(config),
        tx,
        loss=getattr(losses, config.loss),
        augment=partial(data.augment, flip=d.flip, pad=d.pad, cutout=d.cutout),
        ema_decay=t.ema,
        ramp=round(t.ramp * steps),
    )
    batch = (training.x[: t.batch_size], training.y[: t.batch_size])
    jax.eval_shape(step, state, config.strengths.to_dict(), batch)
    return Experiment(config, training, validation, apply, step, state, steps)


def _wrong(
    config: Config, logits_fn: Callable, x: Array, y: Array, rows: Array
) -> dict[str, Array]:
    """Misclassified at x, and at x or under the config's short PGD, [B]."""
    pgd, keys = config.report.pgd, _keys(_key(config, "report"), rows)
    norm = NORMS[pgd.norm]
    x_adv = attacks.pgd(keys, logits_fn, x, y, pgd.eps, norm=norm, steps=pgd.steps)
    found = curves.distance(logits_fn, x, y, x_adv, norm=norm)
    return {"validation_error": found == 0, "validation_error_pgd": found < jnp.inf}


def _validation(experiment: Experiment) -> Callable[[train.State], dict[str, float]]:
    """A function of the state: clean and PGD error on the validation split, compiled once."""
    config = experiment.config
    dataset = experiment.validation
    n = min(config.report.examples, len(dataset.y))
    x, y, rows = data.to_unit(dataset.x[:n]), dataset.y[:n], np.arange(n)
    wrong = jax.jit(partial(_wrong, config))

    def validate(state: train.State) -> dict[str, float]:
        logits_fn = train.logits_fn(experiment.apply, state)
        size = min(config.evaluation.batch_size, n)
        found = data.map_batches(partial(wrong, logits_fn), size, x, y, rows)
        return {name: float(values.mean()) for name, values in found.items()}

    return validate


def train_run(experiment: Experiment, workdir: str | Path, *, silent: bool = False) -> train.State:
    """Train in `workdir`, reporting and keeping checkpoints; a run that stopped goes on.

    Returns the last state. Raises ValueError for a workdir that is not this config's, before
    anything is written, and FloatingPointError where a part of the objective is not finite.
    """
    from tqdm import tqdm  # at the top, every import of this module would pay for it

    config, workdir = experiment.config, Path(workdir)
    runs.claim(workdir, config.to_dict())
    report, batch_size = config.report, config.train.batch_size
    per_epoch = experiment.steps // config.train.epochs
    validate = _validation(experiment)
    with runs.checkpoints(workdir, keep=report.keep) as manager:
        state = runs.restore(manager, experiment.state) or experiment.state
        first = int(state.step)
        reports = train.fit(
            experiment.step,
            state,
            config.strengths.to_dict(),
            experiment.training,
            batch_size=batch_size,
            steps=experiment.steps,
            every=report.every_steps,
            key=_key(config, "batches"),
        )
        bar = tqdm(
            total=experiment.steps * batch_size,
            initial=first * batch_size,
            desc=label(config),
            unit=" images",
            unit_scale=True,
            disable=silent or None,  # None: off where the output is no terminal
        )
        with bar, runs.Log(workdir, first) as log:
            for state, parts in reports:
                step = int(state.step)
                bar.update(step * batch_size - bar.n)
                bar.set_postfix(objective=parts["objective"])
                epoch, rest = divmod(step, per_epoch)
                at_end, last = rest == 0, step == experiment.steps
                if at_end and (last or epoch % report.validate_every_epochs == 0):
                    parts |= validate(state)
                log.write(step, parts)
                if at_end and (last or epoch % report.checkpoint_every_epochs == 0):
                    runs.save(manager, step, state)
    return state


class Loaded(NamedTuple):
    """A run read back: its config, its model as a function of images, and a split of its data."""

    config: Config
    logits_fn: jax.tree_util.Partial
    dataset: data.Dataset


def load(workdir: str | Path, split: str = "test") -> Loaded:
    """A run's config, its `logits_fn` at the newest sound checkpoint, and a split of its data."""
    config = runs.read_config(workdir)
    if not (Path(workdir) / "checkpoints").is_dir():
        raise ValueError(f"{workdir} has no checkpoint yet: let its training reach the first.")
    dataset = _split(config, split)
    apply, _, template = _start(config, dataset, 1)
    with runs.checkpoints(workdir) as manager:
        state = runs.restore(manager, template)
    if state is None:
        raise ValueError(f"{workdir} has no checkpoint yet: let its training reach the first.")
    return Loaded(config, train.logits_fn(apply, state), dataset)


def measure(
    logits_fn: Callable[[Array], Array],
    dataset: data.Dataset,
    evaluation: Config,
    *,
    seed: int = 0,
    progress: Callable | None = None,
) -> dict[str, np.ndarray]:
    """Each image's smallest distance that PGD finds, in l_2 and l_inf: `{"l2": [N], "linf": [N]}`.

    The first `evaluation.examples` images. Per norm, a grid of `radii` radii up to `largest` and
    the table's own is bisected per image (`curves.minimal_distance`); an attack is `steps` of PGD
    with `restarts`. `logits_fn` is a pytree such as `load` returns, or any function of images.
    """
    n = evaluation.examples
    if n > len(dataset.y):
        raise ValueError(f"examples = {n}; the split has {len(dataset.y)}.")
    x, y, rows = data.to_unit(dataset.x[:n]), dataset.y[:n], np.arange(n)
    key = jax.random.key(seed)
    if not isinstance(logits_fn, jax.tree_util.Partial):
        logits_fn = jax.tree_util.Partial(logits_fn)
    found = {}
    for name in ("l2", "linf"):
        norm, radii = NORMS[name], evaluation[name]
        grid = np.geomspace(radii.largest / 100, radii.largest, evaluation.radii)
        grid = np.union1d(grid, min(radii.table, radii.largest)).astype(np.float32)
        attack = partial(
            attacks.pgd, norm=norm, steps=evaluation.steps, restarts=evaluation.restarts
        )
        nearest = jax.jit(partial(curves.minimal_distance, attack=attack, norm=norm))

        def batch(x: Array, y: Array, rows: Array, nearest=nearest, grid=grid) -> Array:
            return nearest(_keys(key, rows), logits_fn, x, y, grid)

        size = min(evaluation.batch_size, n)
        found[name] = data.map_batches(batch, size, x, y, rows, progress=progress)
    return found
