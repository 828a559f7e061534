"""Attacks that follow the gradient: one step (`fgsm`) and many (`pgd`)."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.attacks.start import (
    Bounds,
    LogitsFn,
    LogitsLoss,
    check_inputs,
    example_keys,
    uniform_in_ball,
)
from lipreg.losses import cross_entropy, margin
from lipreg.norms import L2, LINF, Norm, expand


def fgsm(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: Norm = LINF,
    bounds: Bounds = (0.0, 1.0),
    loss: LogitsLoss = cross_entropy,
) -> Array:
    """`x + eps d`, `d` the steepest direction of the norm: `sign(g)` in l_inf (1412.6572).

    Deterministic: `key` is there for the common contract.

    >>> fgsm(jax.random.key(0), lambda x: x, jnp.array([[0.6, 0.4]]), jnp.array([0]), 0.1)
    Array([[0.5, 0.5]], dtype=float32)
    """
    del key
    check_inputs(logits_fn, x, y, bounds)
    grad = jax.grad(lambda x: loss(logits_fn(x), y).sum())(x)
    x_adv = jnp.clip(x + expand(eps, x) * norm.direction(grad).astype(x.dtype), *bounds)
    return jax.lax.stop_gradient(x_adv)


def pgd(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: Norm = L2,
    bounds: Bounds = (0.0, 1.0),
    loss: LogitsLoss = cross_entropy,
    steps: int = 20,
    step_size: float | None = None,
    momentum: float = 0.0,
    random_start: bool = True,
    restarts: int = 1,
    targets: int = 0,
    unroll: int | bool = 1,
) -> Array:
    """`x <- box(ball(x + a eps d))`, d the norm's steepest direction (Madry et al., 1706.06083).

    With LINF and `random_start=False` this is iterative FGSM (1607.02533), with L2 the l_2 PGD of
    1810.00953, with `momentum=1` the momentum iterative FGSM (1710.06081: gradients of unit dual
    norm are accumulated).

    `step_size` is the fraction `a` of eps that one step moves, by default `2.5 / steps`.
    `restarts` and `targets` (the so many likeliest wrong classes, each approached by descending
    its own loss; 0 for the untargeted attack) run as one batch, `restarts * max(targets, 1)` times
    as large. Of all the points that an example visits the one with the largest margin is kept:
    it is misclassified if any of them was.
    `unroll` is `lax.fori_loop`'s; on CPU, where XLA runs a convolution's gradient in a loop many
    times slower, `unroll=True` helps a network that does not use `lipreg.convolution.conv`.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> x_adv = pgd(jax.random.key(0), lambda x: x, x, y, 0.5, random_start=False)
    >>> x_adv.round(2)
    Array([[0.25, 0.75]], dtype=float32)
    """
    check_inputs(logits_fn, x, y, bounds)
    for name, value in {"steps": steps, "restarts": restarts}.items():
        if value < 1:
            raise ValueError(f"pgd: {name} = {value}; it must be at least 1.")
    batch = x.shape[0]
    classes = jax.eval_shape(logits_fn, x).shape[1]
    if not 0 <= targets < classes:
        raise ValueError(
            f"pgd: targets = {targets} of {classes} classes; choose 0 to {classes - 1}."
        )
    rate = 2.5 / steps if step_size is None else step_size
    copies = restarts * max(targets, 1)

    def tile(a: Array) -> Array:
        """[B, ...] -> [copies * B, ...], copy by copy."""
        return jnp.tile(a, (copies,) + (1,) * (a.ndim - 1))

    x0, labels, radius = tile(x), tile(y), jnp.broadcast_to(jnp.asarray(eps, x.dtype), (batch,))
    radius = tile(radius)
    wrong = labels
    if targets:
        scores = jnp.where(jax.nn.one_hot(y, classes, dtype=bool), -jnp.inf, logits_fn(x))
        _, likeliest = jax.lax.top_k(scores, targets)
        wrong = jnp.tile(likeliest.T.reshape(-1), restarts)

    def ascend(x_adv: Array) -> tuple[Array, Array]:
        """The gradient to follow, and the margin at the point where it was taken."""

        def total(x_adv: Array) -> tuple[Array, Array]:
            logits = logits_fn(x_adv)
            value = -loss(logits, wrong) if targets else loss(logits, labels)
            return value.sum(), margin(logits, labels)

        return jax.grad(total, has_aux=True)(x_adv)

    def keep(best: tuple[Array, Array], x_adv: Array, score: Array) -> tuple[Array, Array]:
        better = score > best[1]
        rows = better.reshape(better.shape + (1,) * (x.ndim - 1))
        return jnp.where(rows, x_adv, best[0]), jnp.where(better, score, best[1])

    def body(_: int, carry: tuple) -> tuple:
        x_adv, velocity, best = carry
        grad, score = ascend(x_adv)
        best = keep(best, x_adv, score)
        if momentum:
            size = norm.dual(grad)
            velocity = momentum * velocity + grad / expand(jnp.where(size > 0, size, 1.0), grad)
            grad = velocity
        moved = x_adv + expand(rate * radius, x) * norm.direction(grad).astype(x.dtype)
        inside = x0 + norm.project(moved - x0, radius).astype(x.dtype)
        return jnp.clip(inside, *bounds), velocity, best

    start = x0
    if random_start:
        keys = example_keys(key, batch)
        copy_keys = jax.vmap(lambda c: jax.vmap(lambda k: jax.random.fold_in(k, c))(keys))(
            jnp.arange(copies)
        ).reshape(-1)
        noise = uniform_in_ball(copy_keys, x0, norm)
        start = jnp.clip(x0 + expand(radius, x) * noise, *bounds)
    nothing = jnp.full(labels.shape, -jnp.inf, jax.eval_shape(logits_fn, x).dtype)
    x_adv, _, best = jax.lax.fori_loop(
        0, steps, body, (start, jnp.zeros_like(x0), (x0, nothing)), unroll=unroll
    )
    x_adv, score = keep(best, x_adv, margin(logits_fn(x_adv), labels))
    # Of the copies of an example, the one with the largest margin.
    winner = jnp.argmax(score.reshape(copies, batch), axis=0)
    chosen = x_adv.reshape((copies, *x.shape))[winner, jnp.arange(batch)]
    return jax.lax.stop_gradient(chosen)
