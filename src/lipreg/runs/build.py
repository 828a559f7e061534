"""From a config to what it names, and to what is compiled.

    parts(config)                     objective, loss, optimiser, ... looked up, checked and bound
    program(parts, dataset, steps)    the step and the validation attack, compiled when first called
    network(config)                   the network alone: all that reading a run needs

Configs that differ in their seeds and strengths alone share all of these.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import FrozenConfigDict

from lipreg import (
    attacks,
    curves,
    datasets,
    losses,
    models,
    norms,
    objectives,
    optimizers,
    training,
)
from lipreg.boundary import misclassified
from lipreg.doors import called, named, told
from lipreg.runs.checks import check
from lipreg.runs.config import Config, objective
from lipreg.training import overfitting

__all__ = ["CLEAN", "ROBUST", "Parts", "Program", "network", "parts", "program"]

CLEAN, ROBUST = "validation_error", "validation_error_pgd"  # of a report's numbers


class Parts(NamedTuple):
    """What configs share that differ in their seeds and strengths alone.

    Attributes:
      network: `(classes, shape of an input) -> models.Network`.
      objective: with its static options bound, ready for `training.make_step`.
      loss: see `lipreg.losses`.
      optimizer: `number of steps -> optax.GradientTransformation`.
      augment: see `training.make_step`.
      wrong: `(logits_fn, keys, x, y) -> [B] each`, misclassified at x and under a short PGD.
      gap: likewise under FGSM and under PGD-10.
      ema: decay of the averaged weights, 0 for none, and whether they have statistics of their own.
      ramp: a strength and the fraction of training over which it grows.
      replay: steps in a row on each batch.
      batch_size: that of what an objective carries.
    """

    network: Callable[[int, tuple[int, ...]], models.Network]
    objective: Callable[..., Any]
    loss: Callable[[Array, Array], Array]
    optimizer: Callable[[int], optax.GradientTransformation]
    augment: Callable[[Array, Array], Array]
    wrong: Callable[..., dict[str, Array]]
    gap: Callable[..., dict[str, Array]]
    ema: tuple[float, bool]
    ramp: tuple[str, float]
    replay: int
    batch_size: int


class Program(NamedTuple):
    """What is compiled.

    Attributes:
      apply: the network as a function, see `models.Network`.
      init: the first state of a run, `(key of the weights, key of the steps) -> State`.
      step: see `training.make_step`.
      wrong, gap: those of `Parts`.
    """

    apply: training.Apply
    init: Callable[[Array, Array], training.State]
    step: Callable
    wrong: Callable[..., dict[str, Array]]
    gap: Callable[..., dict[str, Array]]


def parts(config: Config) -> Parts:
    """The parts of a config; ValueError, in one sentence, for an invalid config."""
    check(config)
    shared = config.copy_and_resolve_references()
    shared.seed = 0
    for name in shared.strengths:
        shared.strengths[name] = 0.0
    return _parts(FrozenConfigDict(shared))


@lru_cache(maxsize=64)
def _parts(config: Config) -> Parts:
    d, t = config.data, config.train
    wrong, gap = _wrong(FrozenConfigDict(config.report.pgd), d.bounds)
    # Inside the box of images, where a floating set leaves 0 out of it.
    fill = float(np.clip(0.0, *d.bounds))
    made = Parts(
        network(config),
        bound_objective(config),
        _loss(config.loss),
        partial(_optimizer, t),
        partial(datasets.augment, flip=d.flip, pad=d.pad, cutout=d.cutout, fill=fill),
        wrong,
        gap,
        (t.ema, t.ema_statistics != "running"),
        (t.ramped, t.ramp),
        t.replay,
        t.batch_size,
    )
    made.optimizer(1)  # refused now, not when the data have been read
    _maker(called(config.model.name)[0])
    return made


# For equal attacks the same functions: whatever is trained, they are compiled once per network.
@lru_cache(maxsize=64)
def _wrong(report: Config, bounds: tuple[float, float]) -> tuple[Callable, Callable]:
    """`Parts.wrong` and `Parts.gap`."""
    norm, eps = norms.by_name(report.norm), report.eps

    def wrong(logits_fn: Callable, keys: Array, x: Array, y: Array) -> dict[str, Array]:
        x_adv = attacks.pgd(
            keys, logits_fn, x, y, eps, norm=norm, steps=report.steps, bounds=bounds
        )
        distances = curves.distance(logits_fn, x, y, x_adv, norm=norm, bounds=bounds)
        return {CLEAN: distances == 0, ROBUST: distances < jnp.inf}

    def gap(logits_fn: Callable, keys: Array, x: Array, y: Array) -> dict[str, Array]:
        one = attacks.fgsm(keys, logits_fn, x, y, eps, norm=norm, bounds=bounds)
        ten = attacks.pgd(keys, logits_fn, x, y, eps, norm=norm, bounds=bounds, steps=10)
        return {
            overfitting.FGSM: misclassified(logits_fn, one, y),
            overfitting.PGD: misclassified(logits_fn, ten, y),
        }

    return jax.jit(wrong), jax.jit(gap)


def network(config: Config) -> Callable[[int, tuple[int, ...]], models.Network]:
    """A config's network, as a function of the number of classes and the shape of an input."""
    return partial(_network, FrozenConfigDict(config.model), config.train.precision)


def _maker(name: str) -> Callable[..., Any]:
    return named("model", name, {known: partial(models.build, known) for known in models.NAMES})


# One function for equal configs: its identity is a key of jit's cache.
@lru_cache(maxsize=64)
def _network(model: Config, precision: str, classes: int, shape: tuple[int, ...]) -> models.Network:
    name, options = called(model.name)
    make = _maker(name)
    options = {"classes": classes, "head": model.head, "activation": model.activation} | options
    with told(f"The network {model.name} cannot be made for inputs {list(shape)}"):
        if ":" in name:
            x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
            return models.outsider(make, x, precision=precision, **options)
        known = models.fields(name)
        for setting in sorted({*model.settings} - {*known}):
            raise ValueError(
                f"config.model.settings.{setting} = {model.settings[setting]}; the settings are "
                f"those of another network: {name} has {', '.join(known)}."
            )
        return models.network(make(**{**model.settings, **options}), precision=precision)


def bound_objective(config: Config) -> Callable[..., Any]:
    """The config's objective with its static options bound, ready for `training.make_step`."""
    function = objective(config.objective)
    defaults = inspect.signature(function).parameters
    options = dict(config.options)
    for name, value in options.items():
        if isinstance(defaults[name].default, norms.Norm):
            options[name] = norms.by_name(value)
    if "method" in options and ":" not in config.objective:
        options["method"] = _method(options["method"], config.data.bounds)
    return partial(function, **options)


def _method(text: str, bounds: tuple[float, float]) -> Any:
    """That of the text, in the box of the data."""
    method = objectives.method(text)
    if not isinstance(method, objectives.pairs):
        return method
    if method.bounds != bounds and "bounds" in called(text)[1]:
        raise ValueError(
            f"config.options.method = {text}; pairs must stay in the box of the data, "
            f"config.data.bounds = {bounds}."
        )
    return method._replace(bounds=bounds)


def _loss(text: str) -> Callable[[Array, Array], Array]:
    name, options = called(text)
    loss: Any = named("loss", name, {known: getattr(losses, known) for known in losses.__all__})
    if not callable(loss):
        raise ValueError(f"{name} is a {type(loss).__name__}; a loss is (logits, y) -> [B].")
    takes = list(inspect.signature(loss).parameters)[2:]
    for option in options:
        if option not in takes:
            raise ValueError(f"No option {option!r} of {name}; it takes {', '.join(takes) or '-'}.")
    bound: Any = partial(loss, **options) if options else loss
    return bound


def _optimizer(train: Config, steps: int) -> optax.GradientTransformation:
    *outer, (name, options) = optimizers.nested(train.optimizer)
    own = {"momentum": train.momentum, "nesterov": train.nesterov} if name == "sgd" else {}
    for field in {"weight_decay", "clip", "accumulate", *own} & {*options}:
        raise ValueError(
            f"config.train.optimizer = {train.optimizer}; write config.train.{field} = "
            f"{options[field]}."
        )
    moves = -(-steps // train.accumulate)
    for around in outer:
        moves = optimizers.updates(*around, moves)
    rate = optimizers.schedule(train.schedule, train.learning_rate, moves)
    return optimizers.build(
        name,
        rate,
        weight_decay=train.weight_decay,
        clip=train.clip,
        accumulate=train.accumulate,
        around=optimizers.wrapper(*outer[0], rate) if outer else None,
        **own,
        **options,
    )


@lru_cache(maxsize=8)
def _program(parts: Parts, classes: int, shape: tuple[int, ...], steps: int) -> Program:
    net, tx = parts.network(classes, shape), parts.optimizer(steps)

    def init(weights: Array, key: Array) -> training.State:
        params, model_state = net.init(weights, jnp.zeros((1, *shape), jnp.float32))
        # A run is read without its optimiser: the weights at rest are an average with decay 0.
        perturbs = optimizers.perturbs(jax.eval_shape(tx.init, params))
        kept = {"ema": decay > 0 or perturbs, "statistics": decay > 0 and statistics}
        carried = jnp.zeros((parts.batch_size, *shape), jnp.float32) if carries else None
        return training.init(key, params, model_state, tx, **kept, carried=carried)

    carries = "carried" in inspect.signature(parts.objective).parameters
    (decay, statistics), (name, fraction) = parts.ema, parts.ramp
    step = training.make_step(
        net.apply,
        parts.objective,
        tx,
        loss=parts.loss,
        augment=parts.augment,
        ramp=(name, round(fraction * steps)) if round(fraction * steps) else None,
        replay=parts.replay,
    )
    step = training.averaged(step, decay)
    return Program(net.apply, jax.jit(init), step, parts.wrong, parts.gap)


def program(parts: Parts, dataset: datasets.Dataset, steps: int) -> Program:
    """The program of these parts for inputs like the data set's and a run of `steps` steps."""
    return _program(parts, dataset.classes, dataset.x.shape[1:], steps)
