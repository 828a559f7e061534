"""Attacks that see the model's decisions alone, neither its logits nor a gradient (minimum norm).

Both move from a random misclassified image along the boundary towards x. An example that is
misclassified itself, or for which no such image is drawn, starts at x and stays there.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.attacks.precision import in_single
from lipreg.boundary import misclassified, to_boundary
from lipreg.box import Bounds, check_scale
from lipreg.contracts import LogitsFn, at_least_one, check_inputs, check_norm
from lipreg.keys import example_keys, fold_in
from lipreg.norms import L2, LINF, NormLike, by_name, expand, select

__all__ = ["boundary", "hopskipjump"]


@in_single
def boundary(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 2000,
    starts: int = 50,
) -> Array:
    """A random walk around x and inwards that never leaves the wrong class (1712.04248).

    Each of `steps` goes from x_adv along a Gaussian direction orthogonal to `x_adv - x`, back to
    the sphere around x, and towards x; it stays there if that point is misclassified and
    nearer (Brendel, Rauber & Bethge 2018). That is two queries. The lengths of both moves, as
    fractions of the distance, adapt to each example after every step, not to averages over many
    steps, so that half of the points on the sphere are misclassified and a third of those nearer
    to x.

    The start is the first misclassified of `starts` uniform images, bisected to the boundary.
    Only l_2; returns x where there is no start and where x is misclassified.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> boundary(jax.random.key(0), lambda x: x, x, y, steps=200).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("boundary", norm, L2)
    check_scale("boundary", bounds)
    at_least_one("boundary", steps=steps, starts=starts)
    keys = example_keys(key, x.shape[0])

    def place(v: Array) -> Array:
        return jnp.clip(x + v.astype(x.dtype), *bounds)

    def walk(step: Array, carry: tuple) -> tuple:
        x_adv, around, inwards = carry
        size, radial = norm.size(x_adv - x), norm.direction(x_adv - x)
        noise = _normal(fold_in(keys, step + 1), x)
        along = (noise * radial).sum(tuple(range(1, x.ndim)))
        tangent = norm.direction(noise - expand(along, x) * radial)
        v = expand(size / jnp.sqrt(1 + around**2), x) * (radial + expand(around, x) * tangent)
        nearer = place(expand(1 - inwards, x) * v)
        on_sphere = misclassified(logits_fn, place(v), y)
        fooled = misclassified(logits_fn, nearer, y)
        x_adv = select(fooled & (norm.size(nearer - x) < size), nearer, x_adv)
        return x_adv, _adapt(around, on_sphere, 1 / 2), _adapt(inwards, fooled, 1 / 3)

    x_adv = _start(fold_in(keys, 0), logits_fn, x, y, bounds, starts)
    tenth = jnp.full(x.shape[0], 0.1, x.dtype)
    x_adv, _, _ = jax.lax.fori_loop(0, steps, walk, (x_adv, tenth, tenth))
    return jax.lax.stop_gradient(x_adv)


@in_single
def hopskipjump(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 40,
    evaluations: int = 100,
    starts: int = 50,
) -> Array:
    """Jumps along the boundary's normal, `E[s(x_adv + r u) u]`, s = +-1 the decision (1904.02144).

    Each of `steps` estimates the normal at x_adv, a point of the boundary, from random directions
    u, with the mean decision as a baseline; moves in the norm's steepest direction along it, by the
    distance over `sqrt(t)`, halved until the point is misclassified; and bisects back to the
    boundary, by projections on balls around x (Chen, Jordan & Wainwright 2020). Step t evaluates
    `evaluations * sqrt(t)` directions one by one: about 17,000 queries by default, each of them on
    the whole batch.

    As in the paper for l_2, but here for l_inf too, `r` is the l_2 distance over the number of
    pixels N, and the bisection ends within `N^(-3/2)`, or 1/1000, of the distance: float32 has no
    room for l_inf's `N^-2`. Returns the nearest point visited, a thousandth further out than the
    boundary, where the rounding of another program could decide otherwise. The start is that of
    `boundary`; returns x where there is none and where x is misclassified.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> hopskipjump(jax.random.key(0), lambda x: x, x, y, steps=5).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("hopskipjump", norm, L2, LINF)
    check_scale("hopskipjump", bounds)
    at_least_one("hopskipjump", steps=steps, evaluations=evaluations, starts=starts)
    keys, pixels = example_keys(key, x.shape[0]), max(math.prod(x.shape[1:]), 1)
    halvings = max(10, math.ceil(1.5 * math.log2(pixels)))

    def wrong(points: Array) -> Array:
        return misclassified(logits_fn, points, y)

    def nearest(x_adv: Array) -> Array:
        """The boundary towards x by shrinking balls: in l_inf much nearer than by the segment."""
        size = norm.size(x_adv - x)

        def at(fraction: Array) -> Array:
            inside = x + norm.project(x_adv - x, fraction * size).astype(x.dtype)
            return jnp.clip(inside, *bounds)  # rounding may leave the box

        def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (ends[0] + ends[1]) / 2
            fooled = wrong(at(middle))
            return jnp.where(fooled, ends[0], middle), jnp.where(fooled, middle, ends[1])

        ends = jnp.zeros_like(size), jnp.ones_like(size)
        _, fraction = jax.lax.fori_loop(0, halvings, bisect, ends)
        return select(fraction < 1, at(fraction), x_adv)

    def normal(keys: Array, x_adv: Array, count: Array) -> Array:
        """`sum (s - mean s) u`, u being the steps that the box allows."""
        radius = L2.size(x_adv - x) / pixels

        def evaluate(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            u = L2.direction(_normal(fold_in(keys, i), x)).astype(x.dtype)
            tried = jnp.clip(x_adv + expand(radius, x) * u, *bounds)
            s = jnp.where(wrong(tried), 1, -1).astype(x.dtype)
            u = tried - x_adv
            return sums[0] + s, sums[1] + u, sums[2] + expand(s, x) * u

        nothing = jnp.zeros(x.shape[0], x.dtype), jnp.zeros_like(x), jnp.zeros_like(x)
        decisions, plain, signed = jax.lax.fori_loop(0, count, evaluate, nothing)
        mean = decisions / count.astype(x.dtype)
        # With the baseline, decisions that are all alike would give 0.
        return signed - expand(jnp.where(jnp.abs(mean) < 1, mean, 0.0), x) * plain

    def jump(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x_adv, best = carry
        t = step + 1
        root = jnp.sqrt(t.astype(x.dtype))
        count = (evaluations * root).astype(jnp.int32)
        direction = norm.direction(normal(fold_in(keys, t), x_adv, count)).astype(x.dtype)

        def reach(length: Array) -> Array:
            return jnp.clip(x_adv + expand(length, x) * direction, *bounds)

        def halve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            tries, length, fooled = carry
            length = jnp.where(fooled, length, length / 2)
            return tries + 1, length, wrong(reach(length))

        length = norm.size(x_adv - x) / root
        going = lambda carry: (carry[0] < 20) & ~carry[2].all()
        tries = jnp.int32(0), length, wrong(reach(length))
        _, length, fooled = jax.lax.while_loop(going, halve, tries)
        x_adv = nearest(select(fooled, reach(length), x_adv))
        return x_adv, select(norm.size(x_adv - x) < norm.size(best - x), x_adv, best)

    x_adv = nearest(_start(fold_in(keys, 0), logits_fn, x, y, bounds, starts))
    _, x_adv = jax.lax.fori_loop(0, steps, jump, (x_adv, x_adv))
    further = jnp.clip(x + 1.001 * (x_adv - x), *bounds)
    return jax.lax.stop_gradient(select(wrong(further), further, x_adv))


def _normal(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def _adapt(fraction: Array, success: Array, share: float) -> Array:
    """Up after a success, down after a failure, at rest when `share` of the trials succeed."""
    rate = jnp.exp(0.1 * (success.astype(fraction.dtype) - share))
    return jnp.minimum(fraction * rate, 1.0)


def _start(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, bounds: Bounds, starts: int
) -> Array:
    """The first misclassified of `starts` uniform images, brought to the boundary; x if none is."""

    def draw(key: Array) -> Array:
        return jax.random.uniform(key, x.shape[1:], x.dtype, *bounds)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, x_adv, started = carry
        tried = jax.vmap(draw)(fold_in(keys, i))
        fooled = misclassified(logits_fn, tried, y)
        return i + 1, select(fooled & ~started, tried, x_adv), started | fooled

    carry = jnp.int32(0), x, misclassified(logits_fn, x, y)
    searching = lambda carry: (carry[0] < starts) & ~carry[2].all()
    _, x_adv, _ = jax.lax.while_loop(searching, body, carry)
    return to_boundary(logits_fn, x, y, x_adv)
