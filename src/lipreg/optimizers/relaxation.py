"""Deep Relaxation: descent on a smoothed loss of the weights (Chaudhari et al. 1704.04932).

    u(x) = -1/beta log( G * exp(-beta f) )(x),   G Gaussian with variance gamma/beta
    grad u(x) = (x - E y) / gamma,               y ~ exp(-beta (f(y) + ||x - y||^2 / (2 gamma)))

u solves `u_t = -1/2 ||grad u||^2 + 1/(2 beta) Laplacian u` at time gamma, with u = f at 0. Here
`coupling` is 1/gamma and `temperature` 1/beta.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from lipreg.contracts import not_negative, positive

__all__ = ["VARIANTS", "Relaxation", "local_entropy"]

VARIANTS = ("entropy", "hj", "heat")


class Relaxation(NamedTuple):
    """The state of `local_entropy`, for n replicas.

    Attributes:
      inner: the states of the inner optimiser, `[n, ...]`.
      weights: x, `[n, ...]`.
      mean: of the y in this round; for heat, of the gradients.
      calls: so far, int32.
      key: of the noise; call s draws from `fold_in(key, s)`.
    """

    inner: Any
    weights: Any
    mean: Any
    calls: Array
    key: Array

    def at_rest(self, params: Any) -> Any:
        del params  # those are y
        return _centre(self.weights)


def local_entropy(
    inner: optax.GradientTransformation,
    rate: optax.ScalarOrSchedule,
    *,
    variant: str = "entropy",
    period: int = 20,
    coupling: float = 0.01,
    growth: float = 0.0,
    temperature: float = 1e-8,
    decay: float = 0.75,
    outer: float = 1.0,
    replicas: int = 1,
    elastic: float = 0.1,
    key: Array | int = 0,
) -> optax.GradientTransformation:
    """`x <- x - outer (x - <y>)`, along the gradient of local entropy (1611.01838, 1704.04932).

    From y = <y> = x, `period` calls sample y by Langevin steps with the inner optimiser, and then
    the weights x move, and y starts from there:

        y <- y - rate [grad f(y) + coupling (y - x)] + sqrt(2 rate temperature) N(0, I)
        <y> <- decay <y> + (1 - decay) y

    params are y, `at_rest` has x. Without noise, decay and coupling and with a period of 1 it is
    `inner`.

    - variant: "entropy"; "hj" has no noise, and <y> tends to the proximal point, the minimiser of
      f(y) + ||x - y||^2 / (2 gamma); "heat" takes gradients at x + N(0, temperature / coupling),
      the very first at x, and their mean over the period makes one step of `inner` from x.
    - rate: that of `inner`, for the noise. With momentum the noise is not accelerated.
    - period: L. Each call is one gradient, so an epoch has as many as another optimiser's.
    - coupling, growth: coupling (1 + growth)^k in the k-th round, the scoping of 1/gamma.
    - temperature: the square of the noise parameter in the code of 1611.01838; "hj" has none.
    - outer, decay: of x and <y>, which "heat" does not have.
    - replicas: n > 1 take rounds in turn, and the move of replica a gains -elastic (x_a - mean x),
      as in Parle (1707.00424); `at_rest` is their mean, and state and memory those of n networks.
    - key: of the noise; in a run the seed is folded in.

    >>> tx = local_entropy(optax.sgd(0.5), 0.5, variant="hj", coupling=1.0, period=9, decay=0.0)
    >>> x, state = jnp.ones(1), tx.init(jnp.ones(1))
    >>> for _ in range(9):  # f(y) = 0.15 y^2
    ...     updates, state = tx.update(0.3 * x, state, x)
    ...     x = optax.apply_updates(x, updates)
    >>> round(float(x[0]), 3), round(1 / 1.3, 3)
    (0.769, 0.769)
    """
    if variant not in VARIANTS:
        raise ValueError(f"No variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    for name, value in {"period": period, "replicas": replicas}.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(
                f"local_entropy: {name} = {value}; it must be a whole number, 1 or more."
            )
    numbers = {"coupling": coupling, "growth": growth, "temperature": temperature}
    not_negative("local_entropy", **numbers, decay=decay, elastic=elastic)
    positive("local_entropy", outer=outer)
    known = lambda value: not isinstance(value, Tracer)
    if known(decay) and decay >= 1:
        raise ValueError(f"local_entropy: decay = {decay}; it must be less than 1.")
    if variant == "heat" and known(coupling) and not coupling:
        raise ValueError(
            f"local_entropy: coupling = {coupling}; heat has variance temperature/coupling."
        )
    schedule = rate if callable(rate) else optax.constant_schedule(rate)
    heat = variant == "heat"
    noisy = variant != "hj" and not (known(temperature) and temperature == 0)

    def init(params: Any) -> Relaxation:
        stacked = lambda tree: jax.tree.map(lambda a: jnp.stack([a] * replicas), tree)
        mean = optax.tree.zeros_like(params) if heat else params
        given = jax.random.key(key) if isinstance(key, int) else key
        calls = jnp.zeros((), jnp.int32)
        return Relaxation(stacked(inner.init(params)), stacked(params), mean, calls, given)

    def strength(calls: Array) -> Array:
        """1/gamma in the round of a call."""
        return coupling * (1 + growth) ** (calls // (period * replicas)).astype(jnp.float32)

    def langevin(grads: Any, state: Relaxation, y: Any, x: Any, inside: Any) -> tuple:
        """The step of y, <y> after it, where x would go, and the inner state."""
        rounds, k = state.calls // (period * replicas), strength(state.calls)
        pulled = jax.tree.map(lambda g, y, x: g + k.astype(g.dtype) * (y - x), grads, y, x)
        step, inside = inner.update(pulled, inside, y)
        if noisy:
            done = jnp.asarray(schedule(rounds * period + state.calls % period), jnp.float32)
            step = _noisy(step, state, jnp.sqrt(2 * temperature * done))
        mean = _between(state.mean, optax.tree.add(y, step), 1 - decay)
        return step, mean, _between(x, mean, outer), inside

    def gaussian(grads: Any, state: Relaxation, y: Any, x: Any, inside: Any) -> tuple:
        """The same; the mean is that of the gradients, and y - x is drawn anew at each call."""
        mean = jax.tree.map(lambda m, g: m + g / period, state.mean, grads)
        updates, moved = inner.update(mean, inside, x)
        inside = optax.tree.where((state.calls + 1) % period == 0, moved, inside)
        return optax.tree.sub(x, y), mean, optax.tree.add(x, updates), inside

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Relaxation]:
        last, turn = (state.calls + 1) % period == 0, state.calls // period % replicas
        x, inside = _of(state.weights, turn), _of(state.inner, turn)
        sample = gaussian if heat else langevin
        step, mean, towards, inside = sample(updates, state, params, x, inside)
        if replicas > 1:
            pull = lambda to, x, centre: to - elastic * (x - centre)
            towards = jax.tree.map(pull, towards, x, _centre(state.weights))
        weights = optax.tree.where(last, _with(state.weights, turn, towards), state.weights)
        begin = _of(weights, (turn + 1) % replicas)  # of the next round
        step = optax.tree.where(last, optax.tree.sub(begin, params), step)
        if heat and noisy:  # of the next call
            step = _noisy(step, state, jnp.sqrt(temperature / strength(state.calls + 1)))
        mean = optax.tree.where(last, optax.tree.zeros_like(mean) if heat else begin, mean)
        inside = _with(state.inner, turn, inside)
        return step, Relaxation(inside, weights, mean, state.calls + 1, state.key)

    return optax.GradientTransformation(init, update)


def _between(a: Any, b: Any, share: float) -> Any:
    """`(1 - share) a + share b`, exactly b where share is 1."""
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, a, b)


def _noisy(tree: Any, state: Relaxation, scale: Array) -> Any:
    """Gaussian noise added to a tree."""
    noise = optax.tree.random_like(jax.random.fold_in(state.key, state.calls), tree)
    return jax.tree.map(lambda a, n: a + scale.astype(a.dtype) * n, tree, noise)


def _centre(stack: Any) -> Any:
    return jax.tree.map(lambda a: a.mean(0), stack)


def _of(stack: Any, turn: Array) -> Any:
    """One replica's part."""
    return jax.tree.map(lambda a: a[turn], stack)


def _with(stack: Any, turn: Array, part: Any) -> Any:
    """The stack with one replica's part replaced."""

    def put(a: Array, new: Array) -> Array:
        mine = (jnp.arange(len(a)) == turn).reshape(-1, *(1,) * new.ndim)
        return jnp.where(mine, new[None], a)

    return jax.tree.map(put, stack, part)
