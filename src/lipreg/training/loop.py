"""The loop around the step: batches, several steps a dispatch, means of parts, divergence."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lipreg import batching, datasets, models, optimizers, parallel
from lipreg.box import Bounds
from lipreg.contracts import at_least_one
from lipreg.datasets.images import to_unit
from lipreg.training.step import Apply, State, init, logits_fn, make_step

__all__ = ["Diverged", "fit", "refitted", "train"]


class Diverged(FloatingPointError):
    """A part is not finite; of several runs at once, in those whose indices are `runs`."""

    def __init__(self, message: str, runs: tuple[int, ...]):
        super().__init__(message)
        self.runs = runs


def fit(
    step: Callable,
    state: State,
    strengths: dict[str, Any],
    dataset: datasets.Dataset | datasets.Mixture | Any,
    *,
    batch_size: int,
    steps: int,
    every: int = 100,
    key: Array,
    per_dispatch: int = 0,
    replay: int = 1,
    bounds: Bounds = (0.0, 1.0),
    started: Callable[[float], object] = lambda seconds: None,
) -> Iterator[tuple[State, dict[str, np.ndarray]]]:
    """Train from `state.step` to `steps`; yields the state and the mean parts since the last yield.

    It yields at multiples of `every` steps and at the end of each epoch.
    The data set is moved to the device once; an epoch is a permutation drawn from `key` and its
    number, so a restored state goes on with the batches that it would have seen. The step is one
    compiled program which *donates* its state: a yielded state is invalid once the next is asked
    for. A `streamed.Stream` is read as training proceeds. Of a data set in memory, `per_dispatch`
    steps are dispatched as one program where they fit between two yields; 0 stands for 1 on CPU,
    where a scan of convolutions other than the library's is slow, and 16 elsewhere. `started` is
    called with the seconds that the first dispatch of each program took, compilation included.

    K runs are trained at once if states, strengths and keys are stacked, `[K, ...]`, and the step
    is vmapped over all three of its arguments. With `replay`, that many steps in a row are taken on
    each batch, and an epoch has so many times the steps. `bounds` are those of floating x: whole
    numbers beyond them are refused as pixels that nobody has divided by 255. Inside
    `parallel.over` the batch, or the K runs, are sharded over the devices.

    Raises: Diverged, naming the step and the part, when a part is not finite; ValueError for a data
    set that is none, and, naming the leaf, where a step changes the form of its state.
    """
    at_least_one("fit", every=every, replay=replay)
    stacked = state.step.ndim > 0
    _check(dataset, batch_size, bounds)
    place = parallel.shard if stacked else parallel.replicate
    state = jax.tree.map(jnp.copy, place(state))  # the caller's own is not the one donated
    strengths = place({name: jnp.asarray(value, jnp.float32) for name, value in strengths.items()})
    done = int(np.ravel(parallel.gather(state.step))[0])
    size = datasets.size(dataset)
    if isinstance(dataset, datasets.Dataset | datasets.Mixture):
        source = parallel.replicate((jnp.asarray(dataset.x), jnp.asarray(dataset.y)))
        share = parallel.shard
        batches = _batches(key, dataset, batch_size, done // replay)
        per_dispatch = per_dispatch or (1 if jax.default_backend() == "cpu" else 16)
    else:
        source, share, per_dispatch = (), parallel.assemble, 1
        seed = int(jax.random.key_data(key)[-1])
        batches = dataset.batches(batch_size, seed=seed, first_step=done // replay)
    if replay > 1:
        repeated = itertools.chain.from_iterable(itertools.repeat(b, replay) for b in batches)
        batches = itertools.islice(repeated, done % replay, None)
    per_epoch = size // batch_size * replay
    one, several = _programs(step)
    begun, unused = 0.0, {one, several}
    while done < steps:
        first, history = done, []
        stop = min(steps, *(done + n - done % n for n in (every, per_epoch)))
        while done < stop:
            program = one if stop - done < per_dispatch or per_dispatch == 1 else several
            if program in unused:
                jax.block_until_ready(state)  # what is queued is not its own
                begun = time.perf_counter()
            if program is one:
                state, parts = one(state, strengths, source, share(next(batches)))
                done += 1
            else:
                rows = np.stack(list(itertools.islice(batches, per_dispatch)))
                state, parts = several(state, strengths, source, parallel.shard(rows, axis=1))
                done += per_dispatch
            history.append(parts)
            if program in unused:
                unused.remove(program)
                jax.block_until_ready(parts)
                started(time.perf_counter() - begun)
        yield state, _means(history, first + 1, state.step.ndim)


def train(
    network: Any,
    objective: Callable,
    strengths: dict[str, Any],
    dataset: datasets.Dataset,
    *,
    key: Array,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 0.05,
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] = optimizers.sgd,
) -> tuple[jax.tree_util.Partial, list[dict[str, Any]]]:
    """`init`, `make_step` and `fit` in one call: the trained `logits_fn`, and the log of its parts.

    For notebooks and small data. `network` is what `models.network` takes: an nnx module or class,
    a linen module, or `(init, apply)`; an nnx module starts from its own weights, and keeps them.
    `objective` is one of `objectives`, its static options bound, but for `free_at`, which carries
    something from step to step. The rate of `optimizer(rate)` falls as a cosine over its moves, one
    a step, from `learning_rate` to 0. The log is for `reports.plots.training`. For more,
    augmentation or averaged weights for instance, write the three calls yourself.

    Raises: ValueError for fewer than one epoch, for `free_at`, and what `fit` raises.

    >>> from lipreg import objectives
    >>> digits = datasets.load("digits", "train")
    >>> plain = (lambda key, x: jnp.zeros((64, 10)), lambda w, x: x.reshape(len(x), -1) @ w)
    >>> key = jax.random.key(0)
    >>> logits_fn, log = train(plain, objectives.j2, {"eps": 0.1}, digits, key=key, epochs=1)
    >>> logits_fn(digits.x[:5] / 255.0).shape, log[-1]["step"]
    ((5, 10), 20)
    """
    if epochs < 1:
        raise ValueError(f"epochs = {epochs}; it must be at least 1.")
    if "carried" in inspect.signature(objective).parameters:
        raise ValueError("train: what an objective carries wants init, make_step and fit.")
    _check(dataset, batch_size)
    network = models.network(network)
    steps = epochs * (datasets.size(dataset) // batch_size)
    tx = optimizer(optimizers.schedule("cosine", learning_rate, steps))
    params, model_state = network.init(key, dataset.x[:1])
    state = init(key, params, model_state, tx)
    step, log = make_step(network.apply, objective, tx), []
    reports = fit(step, state, strengths, dataset, batch_size=batch_size, steps=steps, key=key)
    for state, parts in reports:
        log.append({"step": int(state.step)} | parts)
    return logits_fn(network.apply, state), log


def _check(dataset: datasets.Dataset | Any, batch_size: int, bounds: Bounds = (0.0, 1.0)) -> None:
    """ValueError for a batch of more than there is, and for arrays that are no data set."""
    n = datasets.size(dataset)
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size = {batch_size} of {n} examples; choose 1 to {n}.")
    if isinstance(dataset, datasets.Dataset):
        datasets.check(dataset, bounds)


@lru_cache(maxsize=16)
def _programs(step: Callable) -> tuple[Callable, Callable]:
    """A step, and several in a scan, compiled once for each `step`."""

    def one(state: State, strengths: dict, source: tuple[Array, ...], batch: Any):
        stacked = state.step.ndim > 0
        batch = tuple(a[batch] for a in source) or batch  # rows of the source, or images and labels
        given = state
        state, parts = step(given, strengths, batch)
        # Without this, each step would compile again, or a scan fail without naming what changed.
        chex.assert_trees_all_equal_shapes_and_dtypes(
            given, state, custom_message="before and after a step", exception_type=ValueError
        )
        return (state if stacked else parallel.keep_replicated(state)), parts

    def several(state: State, strengths: dict, source: tuple[Array, ...], batches: Any):
        return jax.lax.scan(lambda state, b: one(state, strengths, source, b), state, batches)

    return jax.jit(one, donate_argnums=0), jax.jit(several, donate_argnums=0)


def _batches(key: Array, dataset: Any, batch_size: int, first: int) -> Iterator[np.ndarray]:
    """The rows of each step's batch from step `first` on, `[B]`, or `[K, B]` for K keys."""

    def rows(key: Array) -> np.ndarray:
        if isinstance(dataset, datasets.Mixture):
            real, more = len(dataset), len(dataset.synthetic.y)
            return batching.mixed_batches(key, real, more, batch_size, dataset.share)
        return batching.epoch_batches(key, len(dataset.y), batch_size)

    per_epoch = datasets.size(dataset) // batch_size
    for epoch in itertools.count(first // per_epoch):
        keys = [jax.random.fold_in(one, epoch) for one in (key if key.ndim else [key])]
        batches = np.stack([rows(one) for one in keys], 1)
        skipped = max(first - epoch * per_epoch, 0)
        yield from batches[skipped:] if key.ndim else batches[skipped:, 0]


def refitted(
    apply: Apply, state: State, dataset: Any, *, batch_size: int, key: Array, batches: int = 50
) -> State:
    """The state with an `ema_state` that fits `ema`: statistics of batches under these weights.

    From model_state on, the averaged network is run in training mode on so many batches, without
    augmentation. At a momentum of 0.9, 0.5 % of model_state is left after 50.
    """
    if isinstance(dataset, datasets.Dataset | datasets.Mixture):
        even = batch_size == parallel.multiple(batch_size)  # not of vmapped runs on their devices
        images, share = dataset.x, parallel.shard if even else parallel.replicate
        xs = (images[rows] for rows in _batches(key, dataset, batch_size, 0))
    else:
        seed, share = int(jax.random.key_data(key)[-1]), parallel.assemble
        xs = (x for x, _ in dataset.batches(batch_size, seed=seed))
    advance, model_state = _statistics(apply), state.model_state
    for n, x in enumerate(itertools.islice(xs, batches)):
        model_state = advance(state.ema, model_state, share(x), jax.random.fold_in(key, n))
    return dataclasses.replace(state, ema_state=model_state)


@lru_cache(maxsize=16)
def _statistics(apply: Apply) -> Callable:
    return jax.jit(lambda w, model_state, x, key: apply(w, model_state, to_unit(x), True, key)[1])


def _means(history: list[dict[str, Array]], first: int, rank: int) -> dict[str, np.ndarray]:
    """The mean of each part over the steps from `first` on: a scalar, or `[K]` where rank is 1."""
    by_step = lambda a: a.reshape(-1, *a.shape[a.ndim - rank :])  # those of one step as well
    history = jax.tree.map(by_step, parallel.gather(history))
    parts = {name: np.concatenate([parts[name] for parts in history]) for name in history[0]}
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
