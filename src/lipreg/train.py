"""Training as one pure step, `(state, strengths, batch) -> (state, parts)`, and the loop around it.

`jit` the step for a run, `vmap` it over states and strengths for a sweep, give it sharded batches
for several devices (`lipreg.parallel`): the batch's maximum and its statistics are then global. A
model enters as a pure function `apply(params, model_state, x, train) -> (logits, model_state)`;
`models.functional` makes one of a linen module.
"""

import dataclasses
import inspect
import itertools
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lipreg import data, losses, parallel

__all__ = [
    "Apply",
    "Diverged",
    "State",
    "fit",
    "init",
    "logits_fn",
    "make_step",
    "optimizer",
    "schedule",
]

Apply = Callable[[Any, Any, Array, bool], tuple[Array, Any]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "model_state", "opt_state", "ema", "step", "key"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """All that a run carries from step to step.

    Attributes:
      params: what the optimiser moves.
      model_state: running statistics, `{}` where there are none.
      opt_state: optax's.
      ema: the exponential moving average of params; None when it is off.
      step: the number of steps taken, int32.
      key: the run's key; step s draws from `fold_in(key, s)`.
    """

    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    step: Array
    key: Array


def schedule(name: str, learning_rate: float, steps: int) -> optax.Schedule:
    """The learning rate at each of `steps` steps.

    `papers`: x 0.2 after 30 %, 60 % and 80 % of training (60, 120, 160 of 200 epochs in the code of
    1905.11468); `cosine`: `lr/2 (1 + cos(pi s/steps))`; `constant`.

    >>> schedule("papers", 0.1, 200)(159), schedule("cosine", 0.1, 200)(200)
    (Array(0.004, dtype=float32), Array(0., dtype=float32))
    """
    schedules = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, steps),
        "papers": lambda: optax.piecewise_constant_schedule(
            learning_rate, {round(steps * f): 0.2 for f in (0.3, 0.6, 0.8)}
        ),
    }
    if name not in schedules:
        raise ValueError(f"No schedule {name!r}; choose one of {', '.join(schedules)}.")
    rate = schedules[name]()
    return lambda step: rate(jnp.asarray(step, jnp.float32))  # strict promotion takes no integer


def optimizer(
    rate: optax.Schedule | float,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip: float = 0.0,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """SGD: `v <- momentum v + g + weight_decay w`, `w <- w - rate v`.

    `weight_decay` is the derivative's coefficient, of `weight_decay/2 ||w||^2`; the papers add
    `5e-4 ||w||^2` over all weights, which is 1e-3 here. `clip` bounds the gradient's global norm
    before the decay; 0 leaves it alone. The weights move every `accumulate` steps, by the mean of
    those steps' gradients: what looks at the whole batch, a maximum of gradient norms or batch
    normalisation, then looks at each of the parts. `rate` counts the moves.
    """
    tx = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum, nesterov),
    )
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx


def init(
    key: Array,
    params: Any,
    model_state: Any,
    tx: optax.GradientTransformation,
    *,
    ema: bool = False,
) -> State:
    """The state before the first step."""
    return State(
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        ema=params if ema else None,
        step=jnp.zeros((), jnp.int32),
        key=key,
    )


def make_step(
    apply: Apply,
    objective: Callable[..., tuple[Array, dict[str, Any]]],
    tx: optax.GradientTransformation,
    *,
    loss: Callable[[Array, Array], Array] = losses.cross_entropy,
    augment: Callable[[Array, Array], Array] = lambda key, x: x,
    ema_decay: float = 0.0,
    ramp: int = 0,
) -> Callable[[State, dict[str, Any], tuple[Array, Array]], tuple[State, dict[str, Array]]]:
    """`step(state, strengths, (x, y)) -> (state, parts)`, one gradient step on an objective.

    `objective` is one of `objectives`, its static options bound; `strengths` its traced ones, by
    name. `x` is uint8 or floating in [0, 1]; `augment(key, x)` sees it as it comes. The step builds
    the two views of the model, with the batch's statistics and with the running ones; where the
    objective asks for `f`, that is the running view's softmax. The strength `lam` grows from 0 over
    the first `ramp` steps. `parts` gains `objective`, the number that was differentiated, and
    `grad_params`, that gradient's norm.
    """
    takes_f = "f" in inspect.signature(objective).parameters

    def step(
        state: State, strengths: dict[str, Any], batch: tuple[Array, Array]
    ) -> tuple[State, dict[str, Array]]:
        x, y = batch
        x = data.to_unit(augment(jax.random.fold_in(state.key, state.step), x))
        if ramp and "lam" in strengths:
            share = jnp.minimum(state.step.astype(jnp.float32) / ramp, 1.0)
            strengths = strengths | {"lam": share * strengths["lam"]}

        def total(params: Any) -> tuple[Array, dict[str, Any]]:
            def trained(x: Array, y: Array) -> tuple[Array, Any]:
                logits, model_state = apply(params, state.model_state, x, True)
                return loss(logits, y), model_state

            def logits(x: Array) -> Array:
                return apply(params, state.model_state, x, False)[0]

            views: dict[str, Any] = {"frozen": lambda x, y: loss(logits(x), y)}
            if takes_f:
                views["f"] = lambda x: jax.nn.softmax(logits(x))
            return objective(trained, x, y, **views, **strengths)

        (value, parts), grads = jax.value_and_grad(total, has_aux=True)(state.params)
        model_state = parts.pop("aux")
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - ema_decay)
        state = State(params, model_state, opt_state, ema, state.step + 1, state.key)
        return state, parts | {"objective": value, "grad_params": optax.tree.norm(grads)}

    return step


def logits_fn(apply: Apply, state: State) -> jax.tree_util.Partial:
    """`x -> logits` with the running statistics and, where there is one, the averaged weights.

    A pytree: pass it through `jit`, and new weights do not compile again.
    """
    params = state.params if state.ema is None else state.ema
    return jax.tree_util.Partial(_Frozen(apply), params, state.model_state)


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """A model's frozen view. Equal for equal models, since it is a key of jit's cache."""

    apply: Apply

    def __call__(self, params: Any, model_state: Any, x: Array) -> Array:
        return self.apply(params, model_state, x, False)[0]


class Diverged(FloatingPointError):
    """A part is not finite; `runs` are the places of those where it is so, of several at once."""

    def __init__(self, message: str, runs: tuple[int, ...]):
        super().__init__(message)
        self.runs = runs


def fit(
    step: Callable,
    state: State,
    strengths: dict[str, Any],
    dataset: data.Dataset | Any,
    *,
    batch_size: int,
    steps: int,
    every: int = 100,
    key: Array,
    per_dispatch: int = 0,
    started: Callable[[float], object] = lambda seconds: None,
) -> Iterator[tuple[State, dict[str, np.ndarray]]]:
    """Train from `state.step` to `steps`; yields the state and the mean parts since the last yield.

    That is at multiples of `every` steps and at the end of each epoch.
    The data set is moved to the device once; an epoch is a permutation drawn from `key` and its
    number, so a restored state goes on with the batches that it would have seen. The whole step is
    one compiled program which *donates* its state: a yielded state is gone when the next is asked
    for. A `stream.Stream` is read as it goes. `per_dispatch` steps of a set in memory make one
    program where they fit between two reports; 0 stands for 1 on CPU, where a scan of convolutions
    other than the library's is slow, and 16 elsewhere. `started` is told the seconds that the first
    took, compilation included.

    K runs train together when states, strengths and keys are stacked, `[K, ...]`, and the step is
    vmapped over all three of its arguments. Inside `parallel.over` the devices share the batch, or
    the K runs.

    Raises: Diverged, naming the step and the part, when a part is not finite.
    """
    together = state.step.ndim > 0
    place = parallel.split if together else parallel.whole
    state = jax.tree.map(jnp.copy, place(state))  # the caller's own is not the one donated
    strengths = place({name: jnp.asarray(value, jnp.float32) for name, value in strengths.items()})
    done = int(np.ravel(parallel.gather(state.step))[0])
    size = data.size(dataset)
    if isinstance(dataset, data.Dataset):
        source = parallel.whole((jnp.asarray(dataset.x), jnp.asarray(dataset.y)))
        share = parallel.split
        batches = _batches(key, size, batch_size, done)
        per_dispatch = per_dispatch or (1 if jax.default_backend() == "cpu" else 16)
    else:
        source, share, per_dispatch = (), parallel.join, 1
        seed = int(jax.random.key_data(key)[-1])
        batches = dataset.batches(batch_size, seed=seed, first_step=done)
    per_epoch = size // batch_size
    one, several = _programs(step)
    begun = time.perf_counter()
    while done < steps:
        first, history = done, []
        stop = min(steps, *(done + n - done % n for n in (every, per_epoch)))
        while done < stop:
            if stop - done < per_dispatch or per_dispatch == 1:
                state, parts = one(state, strengths, source, share(next(batches)))
                done += 1
            else:
                rows = np.stack(list(itertools.islice(batches, per_dispatch)))
                state, parts = several(state, strengths, source, parallel.split(rows, axis=1))
                done += per_dispatch
            if begun:
                jax.block_until_ready(parts)
                started(time.perf_counter() - begun)
                begun = 0.0
            history.append(parts)
        yield state, _means(history, first + 1)


@lru_cache(maxsize=16)
def _programs(step: Callable) -> tuple[Callable, Callable]:
    """A step, and several in a scan, compiled once for each `step`."""

    def one(state: State, strengths: dict, source: tuple[Array, ...], batch: Any):
        together = state.step.ndim > 0
        batch = tuple(a[batch] for a in source) or batch  # rows of the source, or images and labels
        state, parts = step(state, strengths, batch)
        return (state if together else parallel.stay_whole(state)), parts

    def several(state: State, strengths: dict, source: tuple[Array, ...], batches: Any):
        return jax.lax.scan(lambda state, b: one(state, strengths, source, b), state, batches)

    def single(*arguments: Any):
        state, parts = one(*arguments)
        return state, jax.tree.map(lambda a: a[None], parts)

    return jax.jit(single, donate_argnums=0), jax.jit(several, donate_argnums=0)


def _batches(key: Array, n: int, batch_size: int, first: int) -> Iterator[np.ndarray]:
    """The rows of each step's batch from step `first` on, `[B]`, or `[K, B]` for K keys."""
    per_epoch = n // batch_size
    for epoch in itertools.count(first // per_epoch):
        keys = [jax.random.fold_in(one, epoch) for one in (key if key.ndim else [key])]
        batches = np.stack([data.epoch_batches(one, n, batch_size) for one in keys], 1)
        skipped = max(first - epoch * per_epoch, 0)
        yield from batches[skipped:] if key.ndim else batches[skipped:, 0]


def _means(history: list[dict[str, Array]], first: int) -> dict[str, np.ndarray]:
    """The mean of each part over the steps from `first` on, a scalar or `[K]`."""
    found = parallel.gather(history)
    parts = {name: np.concatenate([parts[name] for parts in found]) for name in found[0]}
    for offset in range(len(parts["objective"])):
        for name, values in parts.items():
            if not np.isfinite(values[offset]).all():
                bad = np.flatnonzero(~np.isfinite(values[offset]))
                raise Diverged(
                    f"Step {first + offset}: {name} is {np.ravel(values[offset])[bad[0]]}. Try a "
                    "smaller learning rate or strengths, or train.clip.",
                    tuple(map(int, bad)),
                )
    return {name: values.mean(0) for name, values in parts.items()}
