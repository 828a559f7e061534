"""The LogBarrier attack: descend the distance from the wrong side of the decision boundary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.attacks.precision import in_single
from lipreg.boundary import misclassified, to_boundary
from lipreg.box import Bounds, check_scale
from lipreg.contracts import LogitsFn, at_least_one, check_inputs, check_norm, positive
from lipreg.keys import example_keys, fold_in
from lipreg.losses import margin
from lipreg.norms import L2, LINF, NormLike, by_name, expand, finite, select


@in_single
def log_barrier(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    outer: int = 15,
    inner: int = 500,
    step: float = 1e-2,
    weight: float = 0.1,
    shrink: float = 0.75,
    tolerance: float = 1e-6,
    draws: int = 150,
    start: Array | None = None,
) -> Array:
    """`min ||u - x||_2^2 / 2 - weight log(max_{j != y} p_j(u) - p_y(u))` (1903.10396).

    It starts from `start`, `[B, ...]`, such as another attack's point, where that is misclassified;
    elsewhere from x with the first misclassified one of `draws` Gaussian noises, whose size begins
    at 0.01 and grows by 5 %. From the boundary it takes gradient steps of size `step` inside the
    box; a step that crosses the boundary is halved, and a halving counts as a step. Round k of
    `outer` has the weight `weight * shrink^k` and ends after `inner` steps, or when none is longer
    than `tolerance`. Lengths are in widths of the box. Norms: L2, LINF.

    Two things differ from the paper. The end of each round is brought to the boundary on the
    segment from x, and the closest of these points is returned, not the closest of the path, whose
    distance from the boundary falls with the weight but not to 0; x itself where no start is
    misclassified. For LINF the paper descends a mean of |u - x| with the weights
    `softmax(500 |u - x|)`, whose step on n pixels is n times shorter: on linear models with 784
    pixels it stayed up to 6 times as far as the exact distance. Here a step follows the steepest
    direction of the barrier in l_inf, and ends in the ball whose radius is smaller by the fraction
    `step`.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> log_barrier(jax.random.key(0), lambda x: x, x, y).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("log_barrier", norm, L2, LINF)
    check_scale("log_barrier", bounds)
    at_least_one("log_barrier", outer=outer, inner=inner, draws=draws)
    positive("log_barrier", step=step, weight=weight, shrink=shrink)
    low, high = bounds
    span = high - low
    distance = lambda a, b: norm.size((a - b) / span).astype(x.dtype)

    def barrier(u: Array) -> tuple[Array, Array]:
        gap = margin(jax.nn.softmax(logits_fn(u).astype(x.dtype)), y)
        return jnp.log(gap).sum(), gap > 0

    def follow(v: Array, slope: Array) -> Array:
        """The perturbation v, shorter by the fraction `step`, and moved along the barrier's slope.

        For L2 it is the gradient step of `||v||_2^2 / 2` and the barrier.
        """
        if norm is L2:
            return (1 - step) * v + step * slope
        push = expand(step * norm.dual(slope), v) * norm.direction(slope).astype(v.dtype)
        return norm.project(v + push, (1 - step) * norm.size(v)).astype(v.dtype)

    def descend(u: Array, weight: Array) -> Array:
        """One round from u, `[B, ...]`: its last misclassified point."""

        def body(carry: tuple) -> tuple:
            # u is misclassified; `ahead` is the next point, or one that is still to be halved.
            k, active, u, ahead = carry
            slope, wrong = jax.grad(barrier, has_aux=True)(ahead)
            u = select(active & wrong, ahead, u)
            moved = x + span * follow((ahead - x) / span, weight * span * finite(slope))
            # Where `ahead` is not misclassified the logarithm and its slope are undefined.
            ahead = select(wrong, jnp.clip(moved, low, high), (u + ahead) / 2)
            return k + 1, active & (distance(ahead, u) > tolerance), u, ahead

        goes_on = lambda carry: (carry[0] < inner) & carry[1].any()
        return jax.lax.while_loop(goes_on, body, (jnp.int32(0), started, u, u))[2]

    def round_(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        u, kept = carry
        u = descend(u, weight * shrink ** k.astype(x.dtype))
        near = to_boundary(logits_fn, x, y, u)
        size = distance(near, x)
        # At 0 it is x itself: rounding has moved u back over the boundary.
        return u, select((size > 0) & (size < distance(kept, x)), near, kept)

    first = x if start is None else jnp.clip(start.astype(x.dtype), low, high)
    first = _noise(example_keys(key, x.shape[0]), logits_fn, x, y, first, bounds, draws)
    first = to_boundary(logits_fn, x, y, first)
    started = distance(first, x) > 0
    _, kept = jax.lax.fori_loop(0, outer, round_, (first, first))
    return jax.lax.stop_gradient(kept)


def _noise(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array, bounds: Bounds, draws: int
) -> Array:
    """`start` where it or x is misclassified; else x with the first, least noise that is."""
    low, high = bounds
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        k, started, u = carry
        size = 0.01 * (high - low) * 1.05 ** k.astype(x.dtype)
        noisy = jnp.clip(x + size * draw(fold_in(keys, k)), low, high)
        wrong = ~started & misclassified(logits_fn, noisy, y)
        return k + 1, started | wrong, select(wrong, noisy, u)

    goes_on = lambda carry: (carry[0] < draws) & ~carry[1].all()
    started = misclassified(logits_fn, x, y) | misclassified(logits_fn, start, y)
    return jax.lax.while_loop(goes_on, body, (jnp.int32(0), started, start))[2]
