"""Minimum-norm attacks that weigh a norm against a penalty for being classified correctly."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lipreg.attacks.precision import in_single
from lipreg.boundary import misclassified
from lipreg.box import Bounds, check_scale
from lipreg.contracts import LogitsFn, at_least_one, check_inputs, check_norm, positive
from lipreg.losses import margin
from lipreg.norms import L1, L2, Norm, NormLike, by_name, finite, select

# One iteration, `(k, c [B], state) -> state, (point [B, ...], its logits)`.
Step = Callable[[Array, Array, tuple], tuple[tuple, tuple[Array, Array]]]


@in_single
def carlini_wagner(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 1000,
    searches: int = 9,
    c: float = 1e-3,
    learning_rate: float = 1e-2,
    confidence: float = 0.0,
) -> Array:
    """`min ||x' - x||_2^2 + c max(z_y - max_{j != y} z_j, -confidence)` (1608.04644).

    Adam on w, `x' = x + tanh(w) - tanh(w0)` in half widths of the box, from `w0 = arctanh(0.99 x)`:
    at the bounds themselves tanh is flat, and some hundreds of steps would be lost there. c is
    searched for per example: multiplied by ten while it is too small, then bisected. Of all points
    visited the closest with a margin of `confidence` is returned, x itself where there is none.
    Distances are in widths of the box, so that c and the learning rate mean the same in
    any bounds.

    Further differences from the authors' code, each of which brings small distances nearer to the
    exact ones of linear models: the learning rate decays to 0 (by a cosine), no search ends early,
    and c counts as large enough if some step in the last tenth of a search is misclassified:
    earlier steps do not count. With fewer than some hundred steps, raise the learning rate. Norm:
    L2. Deterministic: `key` is there for the common contract.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> carlini_wagner(jax.random.key(0), lambda x: x, x, y, steps=200).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    del key
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("carlini_wagner", norm, L2)
    check_scale("carlini_wagner", bounds)
    at_least_one("carlini_wagner", steps=steps, searches=searches)
    positive("carlini_wagner", c=c, learning_rate=learning_rate)
    low, high = bounds
    half = (high - low) / 2
    inside = 0.99 * (x - (low + high) / 2) / half  # at the bounds arctanh is infinite
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    objective = _penalised(logits_fn, x, y, bounds, confidence)

    def total(w: Array, c: Array) -> tuple[Array, tuple[Array, Array]]:
        point = jnp.clip(x + half * (jnp.tanh(w) - inside), low, high)
        values, logits = objective(point, c)
        return values.sum(), (point, logits)

    def step(k: Array, c: Array, state: tuple) -> tuple[tuple, tuple[Array, Array]]:
        w, moments = state
        grad, seen = jax.grad(total, has_aux=True)(w, c)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            update, moments = adam.update(finite(grad), moments, w)
        return (w + update, moments), seen

    w = jnp.arctanh(inside)
    state = w, adam.init(w)
    return _closest(step, state, logits_fn, x, y, norm, steps, searches, c, confidence)


@in_single
def ead(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L1,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 1000,
    searches: int = 9,
    c: float = 1e-3,
    beta: float = 1e-2,
    learning_rate: float = 1e-2,
    confidence: float = 0.0,
) -> Array:
    """`min c max(z_y - max_j z_j, -confidence) + ||x' - x||_2^2 + beta ||x' - x||_1` (1709.04114).

    FISTA: a gradient step on the first two terms, of size `learning_rate sqrt(1 - k/steps)`, then
    every entry of the perturbation shrinks by beta, so that most are exactly 0. As in the paper
    the step size does not scale beta, so that the weight of the l_1 norm is beta over the step
    size: larger than beta, and growing. The extrapolated points are kept inside the box, and
    success is tested at them, with the logits of the pass that computes their gradient; the paper
    tests the points before extrapolation, with one more pass. Units and the search for c are those
    of `carlini_wagner`; the closest point is the one in l_1. Norm: L1. Deterministic: `key` is
    there for the common contract.

    >>> logits_fn = lambda x: x * jnp.array([[1.0, 2.0]])
    >>> x, y = jnp.array([[0.5, 0.4]]), jnp.array([1])
    >>> ead(jax.random.key(0), logits_fn, x, y, steps=200).round(2)
    Array([[0.5 , 0.25]], dtype=float32)
    """
    del key
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("ead", norm, L1)
    check_scale("ead", bounds)
    at_least_one("ead", steps=steps, searches=searches)
    positive("ead", c=c, learning_rate=learning_rate)
    span = bounds[1] - bounds[0]
    objective = _penalised(logits_fn, x, y, bounds, confidence)

    def total(point: Array, c: Array) -> tuple[Array, Array]:
        values, logits = objective(point, c)
        return values.sum(), logits

    def step(k: Array, c: Array, state: tuple) -> tuple[tuple, tuple[Array, Array]]:
        before, ahead = state
        k = k.astype(x.dtype)
        grad, logits = jax.grad(total, has_aux=True)(ahead, c)
        # span twice: once for the gradient, once for the step.
        moved = ahead - learning_rate * jnp.sqrt(1 - k / steps) * span**2 * finite(grad) - x
        sparse = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - beta * span, 0.0)
        point = jnp.clip(x + sparse, *bounds)
        following = jnp.clip(point + k / (k + 3) * (point - before), *bounds)
        return (point, following), (ahead, logits)

    return _closest(step, (x, x), logits_fn, x, y, norm, steps, searches, c, confidence)


def _penalised(
    logits_fn: LogitsFn, x: Array, y: Array, bounds: Bounds, confidence: float
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """`(x', c) -> ||x' - x||_2^2 + c max(confidence - margin, 0), logits`, in widths of the box."""
    span = bounds[1] - bounds[0]

    def objective(point: Array, c: Array) -> tuple[Array, Array]:
        logits = logits_fn(point).astype(x.dtype)
        square = jnp.square((point - x) / span).sum(tuple(range(1, x.ndim)))
        return square + c * jnp.maximum(confidence - margin(logits, y), 0.0), logits

    return objective


def _closest(
    step: Step,
    start: tuple,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    norm: Norm,
    steps: int,
    searches: int,
    c: float,
    confidence: float,
) -> Array:
    """The closest misclassified point of `searches` descents from `start`, each with its own c."""
    late = steps - max(steps // 10, 1)

    def descend(c: Array, kept: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        """Whether c was enough to stay misclassified, [B], and the closest point so far."""

        def body(k: Array, carry: tuple) -> tuple:
            state, fooled, (best, size) = carry
            state, (point, logits) = step(k, c, state)
            wrong = misclassified(lambda logits: logits, logits, y)
            wrong = wrong & ~(margin(logits, y) < confidence)  # a margin of nan is wrong
            here = norm.size(point - x).astype(x.dtype)
            closer = wrong & (here < size)
            kept = select(closer, point, best), jnp.where(closer, here, size)
            # The first steps, large against a small distance, may cross with any c.
            return state, fooled | (wrong & (k >= late)), kept

        carry = start, jnp.zeros(y.shape, bool), kept
        _, fooled, kept = jax.lax.fori_loop(0, steps, body, carry)
        return fooled, kept

    def search(_: int, carry: tuple) -> tuple:
        low, c, high, kept = carry
        fooled, kept = descend(c, kept)
        low, high = jnp.where(fooled, low, c), jnp.where(fooled, c, high)
        c = jnp.where(high < jnp.inf, (low + high) / 2, jnp.minimum(10 * c, 1e10))
        return low, c, high, kept

    clean = misclassified(logits_fn, x, y)
    weight = jnp.full(y.shape, c, x.dtype)
    # Nothing is closer than 0: an image that is already misclassified stays.
    kept = x, jnp.where(clean, jnp.zeros_like(weight), jnp.inf)
    carry = jnp.zeros_like(weight), weight, jnp.full_like(weight, jnp.inf), kept
    *_, (x_adv, _) = jax.lax.fori_loop(0, searches, search, carry)
    return jax.lax.stop_gradient(x_adv)
