"""Attacks that follow the gradient: one step (`fgsm`) and many (`pgd`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.attacks.copies import Targets, strongest_copy
from lipreg.attacks.precision import in_single
from lipreg.boundary import score
from lipreg.box import Bounds, within
from lipreg.contracts import (
    LogitsFn,
    LogitsLoss,
    at_least_one,
    check_inputs,
    check_radius,
    not_negative,
)
from lipreg.losses import cross_entropy
from lipreg.norms import L2, LINF, Norm, NormLike, by_name, expand, finite, random_in_ball, select


@in_single
def fgsm(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    loss: LogitsLoss = cross_entropy,
) -> Array:
    """`x + eps d`, `d` the steepest direction of the norm: `sign(g)` in l_inf (1412.6572).

    In norms below l_2, d uses only entries that can move in the box. Deterministic: `key` is there
    for the common contract.

    >>> fgsm(jax.random.key(0), lambda x: x, jnp.array([[0.6, 0.4]]), jnp.array([0]), 0.1)
    Array([[0.5, 0.5]], dtype=float32)
    """
    del key
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_radius(eps)
    grad = finite(jax.grad(lambda x: loss(logits_fn(x), y).sum())(x))
    direction = _direction(grad, x, norm, bounds)
    x_adv = jnp.clip(x + expand(eps, x) * direction, *bounds)
    return jax.lax.stop_gradient(x_adv)


@in_single
def pgd(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
    loss: LogitsLoss = cross_entropy,
    steps: int = 20,
    step_size: float | None = None,
    momentum: float = 0.0,
    random_start: bool = True,
    restarts: int = 1,
    targets: Targets = 0,
    unroll: int | bool = 1,
) -> Array:
    """`x <- box(ball(x + a eps d))`, d the norm's steepest direction (Madry et al., 1706.06083).

    With LINF and `random_start=False` this is iterative FGSM (1607.02533), with L2 the l_2 PGD of
    1810.00953, with `momentum=1` the momentum iterative FGSM (1710.06081: gradients of unit dual
    norm are accumulated).

    In norms below l_2, where a step changes few entries, d uses only those that can move in the
    box. `step_size` is the fraction `a` of eps that one step moves, by default `2.5 / steps`.
    `restarts` and `targets` (a number of the likeliest wrong classes, or classes `[B, T]`, each
    approached by descending its own loss; 0 for the untargeted attack) run as one batch,
    `restarts * max(targets, 1)` times as large. Of all the points that an example visits the one
    with the largest margin is kept: it is misclassified if any of them was.
    `unroll` is `lax.fori_loop`'s; on CPU, where XLA runs a convolution's gradient in a loop many
    times slower, `unroll=True` helps a network that does not use `lipreg.convolution.conv`.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> x_adv = pgd(jax.random.key(0), lambda x: x, x, y, 0.5, random_start=False)
    >>> x_adv.round(2)
    Array([[0.25, 0.75]], dtype=float32)
    """
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    at_least_one("pgd", steps=steps)
    rate = 2.5 / steps if step_size is None else step_size
    not_negative("pgd", step_size=rate)

    def one(
        keys: Array, x: Array, y: Array, eps: Array, target: Array | None
    ) -> tuple[Array, Array]:
        def ascend(x_adv: Array) -> tuple[Array, Array]:
            """The gradient to follow, and the margin at the point where it was taken."""

            def total(x_adv: Array) -> tuple[Array, Array]:
                logits = logits_fn(x_adv)
                value = loss(logits, y) if target is None else -loss(logits, target)
                return value.sum(), score(logits, y)

            grad, found = jax.grad(total, has_aux=True)(x_adv)
            return finite(grad), found

        def keep(best: tuple[Array, Array], x_adv: Array, found: Array) -> tuple[Array, Array]:
            better = found > best[1]
            return select(better, x_adv, best[0]), jnp.where(better, found, best[1])

        def body(_: int, carry: tuple) -> tuple:
            x_adv, velocity, best = carry
            grad, found = ascend(x_adv)
            best = keep(best, x_adv, found)
            if momentum:
                size = norm.dual(grad)
                velocity = momentum * velocity + grad / expand(jnp.where(size > 0, size, 1.0), grad)
                grad = velocity
            moved = x_adv + expand(rate * eps, x) * _direction(grad, x_adv, norm, bounds)
            inside = x + norm.project(moved - x, eps).astype(x.dtype)
            return jnp.clip(inside, *bounds), velocity, best

        start = x
        if random_start:
            start = jnp.clip(x + expand(eps, x) * random_in_ball(keys, x, norm), *bounds)
        nothing = jnp.full(y.shape, -jnp.inf, jax.eval_shape(ascend, x)[1].dtype)
        carry = start, jnp.zeros_like(x), (x, nothing)
        x_adv, _, best = jax.lax.fori_loop(0, steps, body, carry, unroll=unroll)
        return keep(best, x_adv, score(logits_fn(x_adv), y))

    return strongest_copy(one, key, logits_fn, x, y, eps, restarts=restarts, targets=targets)


def _direction(grad: Array, x: Array, norm: Norm, bounds: Bounds) -> Array:
    """The norm's steepest direction; below l_2, where few entries change, among those that can
    move in the box.
    """
    grad = within(grad, x, bounds) if norm.p < 2 else grad
    return norm.direction(grad).astype(x.dtype)
