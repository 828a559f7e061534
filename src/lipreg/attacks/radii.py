"""Minimum-norm attacks that follow the gradient while the radius adapts to what they find."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.attacks.precision import in_single
from lipreg.boundary import misclassified
from lipreg.box import Bounds, check_scale, nudge
from lipreg.contracts import LogitsFn, at_least_one, check_inputs, check_norm, positive
from lipreg.losses import cross_entropy, margin
from lipreg.norms import L1, L2, LINF, Norm, NormLike, by_name, expand, finite, select


@in_single
def ddn(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    radius: float = 1.0,
    gamma: float = 0.05,
) -> Array:
    """`d <- e u/||u||, u = d + a g/||g||`: direction and norm decoupled (Rony et al., 1811.09600).

    The direction follows the gradient g of the cross entropy, or of the margin where that is 0 (the
    authors' code draws one there); the length e depends on the
    prediction alone: `radius` at first, then times 1 - gamma where misclassified and 1 + gamma
    where not. The step a falls from 1 to 0.01 along a cosine, both in units of the box. The closest
    misclassified point is returned. Deterministic. Norm: L2.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> ddn(jax.random.key(0), lambda x: x, x, y).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    del key
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("ddn", norm, L2)
    check_scale("ddn", bounds)
    at_least_one("ddn", steps=steps)
    positive("ddn", radius=radius, gamma=gamma)
    unit = bounds[1] - bounds[0]

    def ascend(point: Array) -> tuple[Array, Array]:
        logits, pull = jax.vjp(lambda point: logits_fn(point).astype(x.dtype), point)
        by_loss, by_margin = (
            jax.grad(lambda logits, f=f: f(logits, y).sum())(logits)
            for f in (cross_entropy, margin)
        )
        saturated = (by_loss == 0).all(1)
        wrong = misclassified(lambda logits: logits, logits, y)
        return pull(select(saturated, by_margin, by_loss))[0], wrong

    def body(step: Array, carry: tuple) -> tuple:
        point, length, best, least = carry
        grad, wrong = ascend(point)
        best, least = _keep(best, least, x, point, wrong, norm)
        rate = unit * _cosine(step, steps, 1.0, 0.01, x.dtype)
        moved = point - x + rate * norm.direction(finite(grad)).astype(x.dtype)
        length = jnp.where(wrong, (1 - gamma) * length, (1 + gamma) * length)
        moved = expand(length, x) * norm.direction(moved)
        return jnp.clip(x + moved, *bounds), length, best, least

    length = jnp.full(x.shape[0], unit * radius, x.dtype)
    start = x, length, x, jnp.full_like(length, jnp.inf)
    point, _, best, least = jax.lax.fori_loop(0, steps, body, start)
    wrong = misclassified(logits_fn, point, y)
    return jax.lax.stop_gradient(_keep(best, least, x, point, wrong, norm)[0])


@in_single
def fmn(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    gamma: float = 0.05,
) -> Array:
    """`d <- P(d + a g/||g||_2, e)`: the projection on a ball whose radius e adapts (2102.12827).

    Fast minimum norm (Pintor et al.): g is the gradient of the margin. Until an example is first
    misclassified, e is the length of d plus the distance to the boundary of the linearised model,
    `|margin| / ||g||_*`. That length is taken before d is clipped to the box; the paper takes it
    after, and then it may never grow. From then on e shrinks by the factor 1 - gamma where the
    point is misclassified, never above the best length found, and grows by 1 + gamma where it is
    not. The step a falls from 1 to 0.01 in units of the box, gamma to a fiftieth, along cosines.
    The closest misclassified point is returned. Unlike in the paper e grows by at least a
    thousandth: near the boundary the linearised model's distance is almost 0. Deterministic. Norms:
    L1, L2, LINF.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> fmn(jax.random.key(0), lambda x: x, x, y).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    del key
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("fmn", norm, L1, L2, LINF)
    check_scale("fmn", bounds)
    at_least_one("fmn", steps=steps)
    positive("fmn", gamma=gamma)
    unit = bounds[1] - bounds[0]

    def total(point: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = logits_fn(point).astype(x.dtype)
        values = margin(logits, y)
        return values.sum(), (values, misclassified(lambda logits: logits, logits, y))

    def body(step: Array, carry: tuple) -> tuple:
        point, length, radius, best, least = carry
        grad, (value, wrong) = jax.grad(total, has_aux=True)(point)
        grad = finite(grad)
        best, least = _keep(best, least, x, point, wrong, norm)
        broken = least < jnp.inf
        slope = norm.dual(grad)
        ahead = jnp.where(slope > 0, jnp.abs(value) / jnp.where(slope > 0, slope, 1.0), unit)
        change = _cosine(step, steps, gamma, gamma / 50, x.dtype)
        # On the boundary, and where the box cuts every step, ahead is almost 0.
        ahead = jnp.maximum(ahead, jnp.maximum(1e-3 * length, nudge(x, norm, bounds)))
        grown = jnp.where(broken, (1 + change) * radius, length + ahead)
        radius = jnp.where(wrong, jnp.minimum((1 - change) * radius, least), grown)
        rate = unit * _cosine(step, steps, 1.0, 0.01, x.dtype)
        moved = norm.project(point - x + rate * L2.direction(grad), radius)
        return jnp.clip(x + moved, *bounds), norm.size(moved), radius, best, least

    zero = jnp.zeros(x.shape[0], x.dtype)
    start = x, zero, zero, x, jnp.full_like(zero, jnp.inf)
    point, _, _, best, least = jax.lax.fori_loop(0, steps, body, start)
    wrong = misclassified(logits_fn, point, y)
    return jax.lax.stop_gradient(_keep(best, least, x, point, wrong, norm)[0])


@in_single
def basic_iterative(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 10,
    radius: float = 0.3,
    growths: int = 20,
    bisections: int = 20,
) -> Array:
    """`x <- clip(ball(x + (e/6) d))` at radii e that grow by 3/2 until one fools; then bisected.

    The protocol that 1810.00953 measured with: iterative FGSM, or its l_2 form, 10 steps in the
    cross entropy's direction d from the image itself. e begins at `radius` in units of the
    box, for L2 times the root of the number of pixels. The closest misclassified point is returned;
    a failure is x itself, whose distance is inf (that evaluation wrote 0). The attack is weak: a
    stronger one finds smaller distances. Norms: L2, LINF.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> basic_iterative(jax.random.key(0), lambda x: x, x, y).round(2)
    Array([[0.5, 0.5]], dtype=float32)
    """
    del key
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("basic_iterative", norm, L2, LINF)
    check_scale("basic_iterative", bounds)
    at_least_one("basic_iterative", steps=steps, growths=growths, bisections=bisections)
    positive("basic_iterative", radius=radius)
    first = (
        radius * (bounds[1] - bounds[0]) * (math.prod(x.shape[1:]) ** 0.5 if norm is L2 else 1.0)
    )

    def total(point: Array) -> tuple[Array, Array]:
        logits = logits_fn(point)
        return cross_entropy(logits.astype(x.dtype), y).sum(), misclassified(lambda z: z, logits, y)

    def at(eps: Array, best: Array, least: Array) -> tuple[Array, Array, Array]:
        """`steps` at a radius per example: whether they fooled, and the closest point so far."""

        def judged(point: Array, wrong: Array, seen: tuple) -> tuple:
            fooled, best, least = seen
            return fooled | wrong, *_keep(best, least, x, point, wrong, norm)

        def step(_: int, carry: tuple) -> tuple:
            # A point is judged when its gradient is taken; the first is the image, which is right.
            point, seen = carry
            grad, wrong = jax.grad(total, has_aux=True)(point)
            moved = point + expand(eps / 6, x) * norm.direction(finite(grad)).astype(x.dtype)
            moved = x + norm.project(moved - x, eps).astype(x.dtype)
            return jnp.clip(moved, *bounds), judged(point, wrong, seen)

        nothing = jnp.zeros(y.shape, bool)
        point, seen = jax.lax.fori_loop(0, steps, step, (x, (nothing, best, least)))
        return judged(point, misclassified(logits_fn, point, y), seen)

    def body(carry: tuple) -> tuple:
        # Not fooled at `low`; fooled at `high`, inf while the radius still grows.
        low, high, best, least, grown, halved = carry
        grows = high == jnp.inf
        eps = jnp.where(grows, jnp.where(low > 0, 1.5 * low, first), (low + high) / 2)
        active = jnp.where(grows, grown < growths, halved < bisections)
        fooled, best, least = at(jnp.where(active, eps, 0.0), best, least)
        return (
            jnp.where(active & ~fooled, eps, low),
            jnp.where(active & fooled, eps, high),
            best,
            least,
            grown + (active & grows).astype(jnp.int32),
            halved + (active & ~grows).astype(jnp.int32),
        )

    def goes_on(carry: tuple) -> Array:
        *_, high, _, _, grown, halved = carry
        return jnp.where(high == jnp.inf, grown < growths, halved < bisections).any()

    wrong = misclassified(logits_fn, x, y)
    zero, count = jnp.zeros(y.shape, x.dtype), jnp.zeros(y.shape, jnp.int32)
    # An image that is misclassified already has nothing left to bisect.
    start = (
        zero,
        jnp.where(wrong, 0.0, jnp.full_like(zero, jnp.inf)),
        x,
        jnp.where(wrong, 0.0, jnp.full_like(zero, jnp.inf)),
        count,
        jnp.where(wrong, bisections, count),
    )
    return jax.lax.stop_gradient(jax.lax.while_loop(goes_on, body, start)[2])


def _cosine(step: Array, steps: int, first: float, last: float, dtype: jnp.dtype) -> Array:
    """From `first` at step 0 to `last` at the end, half a cosine."""
    share = (1 + jnp.cos(jnp.pi * step.astype(dtype) / steps)) / 2
    return last + (first - last) * share


def _keep(
    best: Array, least: Array, x: Array, point: Array, wrong: Array, norm: Norm
) -> tuple[Array, Array]:
    """The closer of the best point so far and a point that counts if it is misclassified."""
    size = norm.size(point - x).astype(least.dtype)
    # The points of one sphere are equally far, to rounding: the first of them stays.
    closer = wrong & (size < (1 - 1e-5) * least)
    return select(closer, point, best), jnp.where(closer, size, least)
