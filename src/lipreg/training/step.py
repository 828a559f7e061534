"""Training as one pure step, `(state, strengths, batch) -> (state, parts)`.

`jit` the step for a run, `vmap` it over states and strengths for a sweep, give it sharded batches
for several devices (`lipreg.parallel`): the batch's maximum and its statistics are then global. A
network enters as a pure function `apply(params, model_state, x, train, key) -> (logits,
model_state)`; `models.functional` makes one of a linen module. `key`, for dropout, is None where
`train` is not set.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lipreg import losses, optimizers
from lipreg.datasets.images import to_unit

__all__ = ["Apply", "State", "averaged", "init", "logits_fn", "make_step", "views"]

Apply = Callable[[Any, Any, Array, bool, Array | None], tuple[Array, Any]]

Step = Callable[["State", dict[str, Any], tuple[Array, Array]], tuple["State", dict[str, Array]]]

# A step's key is folded with the row of each image that augmentation draws for, and with these,
# which no batch reaches.
OBJECTIVE, NETWORK, OPTIMIZER = 2**32 - 1, 2**32 - 2, 2**32 - 3
# Beside the objective's parts in a report.
ADDED = ("step", "objective", "grad_params", "gradients", "seconds")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "params",
        "model_state",
        "opt_state",
        "ema",
        "step",
        "key",
        "ema_state",
        "carried",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """All that a run carries from step to step.

    Attributes:
      params: where the next gradient is taken; `optimizers.at_rest` has the weights themselves.
      model_state: running statistics, `{}` where there are none.
      opt_state: optax's.
      ema: the moving average of the weights, evaluated in their place; None when it is off.
      step: the number of steps taken, int32.
      key: the run's key; step s draws from `fold_in(key, s)`.
      ema_state: that of model_state; None where ema is evaluated with model_state itself.
      carried: what an objective that declares `carried` hands to its next call; None for others.
    """

    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    step: Array
    key: Array
    ema_state: Any = None
    carried: Any = None


def init(
    key: Array,
    params: Any,
    model_state: Any,
    tx: optax.GradientTransformation,
    *,
    ema: bool = False,
    statistics: bool = False,
    carried: Any = None,
) -> State:
    """The state before the first step.

    `ema` is for a step that is `averaged`; `statistics` averages the running statistics as well.
    `carried` is what the objective is handed first. Random keys in the optimiser's state are folded
    with the run's key.
    """
    opt_state = _seeded(tx.init(params), jax.random.fold_in(key, OPTIMIZER))
    return State(
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        ema=params if ema else None,
        step=jnp.zeros((), jnp.int32),
        key=key,
        ema_state=model_state if ema and statistics else None,
        carried=carried,
    )


def _seeded(tree: Any, key: Array) -> Any:
    """The tree with a key of this run in place of each random key, whatever its shape."""

    def own(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return leaf
        fold = lambda one: jax.random.fold_in(key, jax.random.bits(one))
        return jax.vmap(fold)(leaf.ravel()).reshape(leaf.shape)

    return jax.tree.map(own, tree)


def make_step(
    apply: Apply,
    objective: Callable[..., tuple[Array, dict[str, Any]]],
    tx: optax.GradientTransformation,
    *,
    loss: Callable[[Array, Array], Array] = losses.cross_entropy,
    augment: Callable[[Array, Array], Array] = lambda key, x: x,
    ramp: tuple[str, int] | None = None,
    replay: int = 1,
) -> Step:
    """`step(state, strengths, (x, y)) -> (state, parts)`, one gradient step on an objective.

    `objective` is one of `objectives`, its static options bound; `strengths` its traced ones, by
    name. `x` is uint8 or floating; `augment(key, x)` sees it before it is converted. The step
    builds the two views of the network, in training mode and frozen, and hands a key to an
    objective that declares one, and `state.carried` to one that declares `carried`, whose
    `parts["carried"]` takes its place. `replay` steps in a row, those on one batch (`fit`), draw
    the same random numbers. `ramp=("lam", n)` lets that strength grow from 0 over the first n
    steps. `parts` gains `objective`, the number that was differentiated, and `grad_params`, that
    gradient's norm.
    """
    declared = inspect.signature(objective).parameters

    def step(
        state: State, strengths: dict[str, Any], batch: tuple[Array, Array]
    ) -> tuple[State, dict[str, Array]]:
        x, y = batch
        key = jax.random.fold_in(state.key, state.step // replay)
        x = to_unit(augment(key, x))
        to_objective, to_network = (jax.random.fold_in(key, use) for use in (OBJECTIVE, NETWORK))
        if ramp:
            name, steps = ramp
            share = jnp.minimum(state.step.astype(jnp.float32) / steps, 1.0)
            strengths = strengths | {name: share * strengths[name]}

        def total(params: Any) -> tuple[Array, dict[str, Any]]:
            trained, frozen = views(apply, params, state.model_state, to_network)
            given = {"key": to_objective, "carried": state.carried}
            given = {name: value for name, value in given.items() if name in declared}
            return objective(trained, x, y, loss=loss, frozen=frozen, **given, **strengths)

        (value, parts), grads = jax.value_and_grad(total, has_aux=True)(state.params)
        if "aux" not in parts:
            raise ValueError(
                'The objective drops what the network returns beside its logits: parts["aux"].'
            )
        model_state, carried = parts.pop("aux"), parts.pop("carried", None)
        _check(parts, state.model_state, model_state)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = {"params": params, "model_state": model_state, "opt_state": opt_state}
        state = dataclasses.replace(state, **moved, carried=carried, step=state.step + 1)
        return state, parts | {"objective": value, "grad_params": optax.tree.norm(grads)}

    return step


def views(
    apply: Apply, params: Any, model_state: Any, key: Array | None = None
) -> tuple[Callable[[Array], tuple[Array, Any]], Callable[[Array], Array]]:
    """The two views of a network that an objective takes, `logits_fn` and `frozen`.

    The first is in training mode, with batch statistics and with dropout from `key`, and returns
    `(logits, model_state)`; the objective hands the new model_state on as `parts["aux"]`. The
    second is in evaluation mode.

    >>> from lipreg import objectives
    >>> apply = lambda params, model_state, x, train, key: (x * params, model_state + train)
    >>> logits_fn, frozen = views(apply, 2.0, 0)
    >>> x, y = jnp.eye(2), jnp.arange(2)
    >>> value, parts = objectives.j2(logits_fn, x, y, eps=0.1, frozen=frozen)
    >>> parts["aux"]
    1
    """
    trained = lambda x: apply(params, model_state, x, True, key)
    frozen = lambda x: apply(params, model_state, x, False, None)[0]
    return trained, frozen


def averaged(step: Step, decay: float = 0.0) -> Step:
    """A step after which `ema <- decay ema + (1 - decay) w`, as a state with `ema` needs.

    w are the weights at rest: without the perturbations of sam, awp and local entropy; with a decay
    of 0 ema is w. Running statistics are averaged alike where the state has `ema_state`.
    """

    def stepped(state: State, strengths: dict[str, Any], batch: tuple[Array, Array]) -> tuple:
        state, parts = step(state, strengths, batch)
        if state.ema is None:
            return state, parts
        weights = optimizers.at_rest(state.opt_state, state.params)
        statistics = None if state.ema_state is None else state.model_state
        ema, ema_state = weights, statistics
        if decay:
            average = (state.ema, state.ema_state)
            ema, ema_state = optimizers.ema(average, (weights, statistics), decay)
        return dataclasses.replace(state, ema=ema, ema_state=ema_state), parts

    return stepped


def _check(parts: dict[str, Any], before: Any, after: Any) -> None:
    """ValueError for parts that no report can hold, and for an aux that is not the network's."""
    for name, value in parts.items():
        if name in ADDED:
            raise ValueError(f"The objective has a part {name!r}, which a report has already.")
        if jnp.shape(value):
            raise ValueError(
                f"The objective's part {name!r} has shape {list(jnp.shape(value))}; want a scalar."
            )
    form = lambda tree: jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)
    if form(before) != form(after):
        raise ValueError(
            'The objective\'s parts["aux"] is not what the network returns beside its logits.'
        )


def logits_fn(apply: Apply, state: State) -> jax.tree_util.Partial:
    """`x -> logits` of the weights at rest and the running statistics, or of their averages.

    A pytree: pass it through `jit`, and new weights do not compile again.
    """
    params = state.ema
    if params is None:
        params = optimizers.at_rest(state.opt_state, state.params)
    model_state = state.model_state if state.ema_state is None else state.ema_state
    return jax.tree_util.Partial(_Frozen(apply), params, model_state)


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """A model's frozen view. Equal for equal models, since it is a key of jit's cache."""

    apply: Apply

    def __call__(self, params: Any, model_state: Any, x: Array) -> Array:
        return self.apply(params, model_state, x, False, None)[0]
