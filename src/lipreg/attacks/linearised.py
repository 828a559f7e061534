"""Attacks that step to the boundary of the linearised model: DeepFool and FAB."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.attacks.copies import Targets, likeliest_wrong, strongest_copy
from lipreg.attacks.precision import in_single
from lipreg.boundary import misclassified, to_boundary
from lipreg.box import Bounds, nudge, within
from lipreg.contracts import LogitsFn, at_least_one, check_inputs, check_norm
from lipreg.norms import (
    L1,
    L2,
    LINF,
    Norm,
    NormLike,
    by_name,
    expand,
    finite,
    random_in_ball,
    select,
)


@in_single
def deepfool(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 50,
    overshoot: float = 0.02,
    classes: int = 10,
    refine: int = 10,
) -> Array:
    """`r <- r + d`, d the smallest step that meets a class boundary of the linearised model.

    Moosavi-Dezfooli, Fawzi & Frossard (1511.04599). A step goes to the nearest boundary to one of
    the `classes` likeliest classes; the model is linearised at `clip(x + (1 + overshoot) r)`.
    Unlike in the paper, half a step is taken unless the full step is misclassified, which ends
    nearer to x; r itself is not clipped (for a linear model, the clipped multiple of the gradient
    is the nearest point of the box); and `refine` bisections bring the result to the boundary. In
    the second half of `steps`, entries at the bounds are left out. Deterministic.
    Norms: L1, L2, LINF.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> deepfool(jax.random.key(0), lambda x: x, x, y).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    del key
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("deepfool", norm, L1, L2, LINF)
    at_least_one("deepfool", steps=steps, classes=classes)

    inside = lambda total: jnp.clip(x + (1 + overshoot) * total, *bounds)

    def body(carry: tuple) -> tuple:
        step, total, point, active = carry
        gap, slope = _nearest_boundary(logits_fn, point, y, norm, classes, None)
        # In l_1 a step changes one entry, which must be one that can move.
        late = jnp.bool_(norm is L1) | (step >= steps // 2)
        slope = jnp.where(late, within(slope, point, bounds), slope)
        size = norm.dual(slope)
        # Clipping to the box may leave every step short: hence the thousandth.
        further = jnp.maximum(1e-3 * norm.size(total), nudge(x, norm, bounds))
        length = -gap / jnp.where(size > 0, size, jnp.inf) + further
        move = expand(length, x) * norm.direction(slope)
        ahead = inside(total + move)
        crossed = misclassified(logits_fn, ahead, y)
        total = total + move / 2
        point = select(active, select(crossed, ahead, inside(total)), point)
        return step + 1, total, point, active & ~crossed

    def goes_on(carry: tuple) -> Array:
        return (carry[0] < steps) & carry[3].any()

    start = jnp.int32(0), jnp.zeros_like(x), x, ~misclassified(logits_fn, x, y)
    _, _, point, _ = jax.lax.while_loop(goes_on, body, start)
    return jax.lax.stop_gradient(to_boundary(logits_fn, x, y, point, steps=refine))


@in_single
def fab(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    random_start: ArrayLike = False,
    restarts: int = 1,
    targets: Targets = 0,
    classes: int = 10,
) -> Array:
    """`x <- (1 - a)(x + 1.05 d) + a (x0 + 1.05 d0)`, d and d0 the steps to one hyperplane (FAB).

    Croce & Hein (1907.02044): the nearest class boundary of the model linearised at x (with
    `targets`, the boundary to that class alone) is met inside the box from x and from the image x0;
    `a = min(||d|| / (||d|| + ||d0||), 0.1)` draws towards x0, and a misclassified point steps back
    towards x0 by a tenth. The closest misclassified point, brought nearer by bisection, is returned
    if it is within eps, and x otherwise: FAB looks for the smallest perturbation, and eps limits
    only the random starts (in half the ball; the first restart starts at x0, unless `random_start`,
    which may be traced) and what is accepted. Norms: L1, L2, LINF.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> fab(jax.random.key(0), lambda x: x, x, y, 0.25).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("fab", norm, L1, L2, LINF)
    at_least_one("fab", steps=steps, classes=classes)
    per_restart = x.shape[0] * (max(targets, 1) if isinstance(targets, int) else targets.shape[1])

    def one(
        keys: Array, x: Array, y: Array, eps: Array, target: Array | None
    ) -> tuple[Array, Array]:
        def body(_: int, carry: tuple) -> tuple:
            point, best, least = carry
            gap, slope = _nearest_boundary(logits_fn, point, y, norm, classes, target)
            least_gap = nudge(x, norm, bounds) * norm.dual(slope)
            to_meet = jnp.where(jnp.abs(gap) < least_gap, least_gap, -gap)
            step = _towards(point, slope, to_meet, norm, bounds)
            # <slope, z - point> = -gap is the same hyperplane seen from x.
            offset = (slope * (point - x)).sum(tuple(range(1, x.ndim)))
            from_x = _towards(x, slope, offset - gap, norm, bounds)
            length, length_x = norm.size(step), norm.size(from_x)
            share = length / jnp.maximum(length + length_x, 1e-12)
            share = expand(jnp.minimum(share, 0.1), x)
            point = (1 - share) * (point + 1.05 * step) + share * (x + 1.05 * from_x)
            point = jnp.clip(point, *bounds)
            wrong = misclassified(logits_fn, point, y)
            size = norm.size(point - x)
            closer = wrong & (size < least)
            best, least = select(closer, point, best), jnp.where(closer, size, least)
            return select(wrong, x + 0.9 * (point - x), point), best, least

        first = (jnp.arange(len(x)) < per_restart) & jnp.logical_not(random_start)
        noise = expand(jnp.where(first, 0.0, eps / 2), x) * random_in_ball(keys, x, norm)
        start = jnp.clip(x + noise, *bounds)
        start = start, x, jnp.full(y.shape, jnp.inf, eps.dtype)
        _, best, _ = jax.lax.fori_loop(0, steps, body, start)
        best = to_boundary(logits_fn, x, y, best)
        size = norm.size(best - x)
        broken = misclassified(logits_fn, best, y) & (size <= eps)
        return select(broken, best, x), jnp.where(broken, -size, -jnp.inf)

    return strongest_copy(one, key, logits_fn, x, y, eps, restarts=restarts, targets=targets)


def _nearest_boundary(
    logits_fn: LogitsFn, x: Array, y: Array, norm: Norm, classes: int, target: Array | None
) -> tuple[Array, Array]:
    """`z_k - z_y` [B] and its gradient [B, ...] at x, for the class k of the nearest boundary.

    Nearest is the least `|z_k - z_y| / ||grad||_*` among the `classes` likeliest, or k = target.
    """
    logits, pullback = jax.vjp(logits_fn, x)
    onehot = lambda k: jax.nn.one_hot(k.astype(jnp.int32), logits.shape[1], dtype=logits.dtype)

    pick = lambda k: jnp.take_along_axis(logits, k[:, None], 1)[:, 0].astype(x.dtype)

    def boundary(k: Array) -> tuple[Array, Array]:
        (slope,) = pullback(onehot(k) - onehot(y))
        gap = pick(k) - pick(y)
        # A masked class, with a logit of -inf, has no boundary.
        exists = jnp.isfinite(gap)
        return jnp.where(exists, gap, 0.0), select(exists, finite(slope), jnp.zeros_like(x))

    if target is not None:
        return boundary(target)
    # y itself, one of the likeliest, has no boundary.
    likely = likeliest_wrong(logits, y, max(min(classes, logits.shape[1]) - 1, 1))
    gaps, slopes = jax.vmap(boundary)(likely.T)
    sizes = jax.vmap(norm.dual)(slopes)
    # Slope 0 means that there is no boundary.
    distances = jnp.where(sizes > 0, jnp.abs(gaps) / jnp.where(sizes > 0, sizes, 1.0), jnp.inf)
    nearest, rows = distances.argmin(0), jnp.arange(len(x))
    return gaps[nearest, rows], slopes[nearest, rows]


def _towards(x: Array, w: Array, c: Array, norm: Norm, bounds: Bounds) -> Array:
    """`argmin {||d|| : <w, d> = c, x + d in the box}` [B, ...]; the nearest corner where none is.

    For L2 `d_i = min(t w_i, room_i)` and for LINF `min(t, room_i)` in the direction of w, for L1
    all of the room of the largest w_i first. t is found by ten rounds of solving for it and fixing
    the entries that have met the box: exact but in rare cases, where d falls short.
    """
    low, high = bounds
    shape, flat = x.shape, (x.shape[0], math.prod(x.shape[1:]))
    w, c = w.reshape(flat), c[:, None]
    w, c = jnp.where(c < 0, -w, w), jnp.abs(c)
    x, size = x.reshape(flat), jnp.abs(w)
    room = jnp.where(w > 0, high - x, x - low)
    if norm is L1:
        order = jnp.argsort(size, axis=1, descending=True)
        gain = jnp.where(size > 0, size * room, 0.0)
        ranked, gain = (jnp.take_along_axis(a, order, 1) for a in (size, gain))
        # The sum over those before, not a difference of sums: an infinite box has infinite gains.
        before = jnp.cumsum(jnp.pad(gain[:, :-1], ((0, 0), (1, 0))), 1)
        missing = c - before
        part = jnp.clip(missing, 0.0, gain) / jnp.where(ranked > 0, ranked, 1.0)
        length = jnp.take_along_axis(part, jnp.argsort(order, axis=1), 1)
        return (jnp.sign(w) * length).reshape(shape)
    profile = size if norm is L2 else jnp.sign(size)

    def solve(_: int, t: Array) -> Array:
        met = profile * t >= room
        missing = c - jnp.where(met, size * room, 0.0).sum(1, keepdims=True)
        free = jnp.where(met, 0.0, size * profile).sum(1, keepdims=True)
        return jnp.where(free > 0, jnp.maximum(missing, 0.0) / jnp.where(free > 0, free, 1.0), t)

    t = jax.lax.fori_loop(0, 10, solve, jnp.zeros_like(c))
    return (jnp.sign(w) * jnp.minimum(profile * t, room)).reshape(shape)
