"""How far the loss is from linear in a ball, penalised: `grad_align`, `elle`, `cure`, `llr`.

Where the loss is linear one step attacks as well as many: these terms keep training on one step
from catastrophic overfitting, or take the place of the attack. They compare the loss or its
gradient at several points, in the frozen view, where both are the example's own; the loss that they
are added to is that of the view in training.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.box import Bounds
from lipreg.contracts import check_radius
from lipreg.keys import example_keys
from lipreg.losses import cross_entropy
from lipreg.norms import L2, LINF, NormLike, by_name, expand, finite, wide
from lipreg.objectives import inner
from lipreg.objectives.contract import (
    LogitsFn,
    Loss,
    Parts,
    bind,
    logits_only,
    moved,
    value_and_grad,
    with_aux,
)

__all__ = ["cure", "elle", "grad_align", "llr"]


def _product(a: Array, b: Array) -> Array:
    """`<a, b>` of each example, `[B]`."""
    return (wide(a) * wide(b)).sum(tuple(range(1, a.ndim)))


def grad_align(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    lam: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, Parts]:
    """`E[l(x + eps d) + lam (1 - cos(grad l(x), grad l(x + eps u)))]` (GradAlign, 2007.02617).

    d is the steepest direction of cross entropy at x, whatever l is, as in `pgd_at`, u random in
    the unit ball. As in the code of Andriushchenko & Flammarion, only the second gradient is
    differentiated in the weights, and the mean of the cosines leaves out examples with a gradient
    of 0. Their lam on CIFAR-10 is 0.2 at 8/255, ten times that at 16/255. Cost: 11 forward units, 2
    for the first gradient, 3 to train on the step, 6 for the second gradient; 2 more where `loss`
    is not cross entropy.

    >>> first = lambda logits, y: logits[:, 0]
    >>> x, y, key = jnp.full((2, 3), 0.5), jnp.ones(2, int), jax.random.key(0)
    >>> grad_align(lambda x: 3 * x, x, y, eps=0.1, lam=1.0, key=key, loss=first)[0].round(4)
    Array(1.8, dtype=float32)
    """
    norm = by_name(norm)
    still = bind(frozen or logits_fn, loss)
    grad = jax.lax.stop_gradient(value_and_grad(still, x, y)[1])
    _, other, _ = value_and_grad(still, inner.near(key, x, eps, norm, bounds), y)
    counted = (L2.size(grad) != 0) & (L2.size(other) != 0)  # NaN counts
    cosines = jnp.where(counted, _product(L2.direction(grad), L2.direction(other)), 1.0)
    bend = (1 - cosines).sum() / jnp.maximum(counted.sum(dtype=cosines.dtype), 1)
    if loss is not cross_entropy:
        grad = value_and_grad(bind(frozen or logits_fn, cross_entropy), x, y)[1]
    step = jax.lax.stop_gradient(inner.steepest(grad, x, norm, bounds))
    values, aux = bind(logits_fn, loss)(jnp.clip(moved(x, eps, step), *bounds), y)
    return values.mean() + lam * bend, with_aux({"loss_adv": values.mean(), "bend": bend}, aux)


def elle(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    lam: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    attack: inner.Attack = "fgsm",
) -> tuple[Array, Parts]:
    """`E[l(x') + lam (l((1 - s) a + s b) - (1 - s) l(a) - s l(b))^2]` (ELLE, 2401.11618).

    a and b are random in the ball about x, s in [0, 1], one of each for an example. x' is what
    `attack` finds, as in `pgd_at`: `"fgsm"` or `"n_fgsm"` in the paper. No second derivatives. The
    authors' lam is some thousands, 5e3 to 1e4 at large eps. Cost: 14 forward units, 5 to train on
    FGSM and 3 for each loss.

    >>> first = lambda logits, y: logits[:, 0]
    >>> x, y, key = jnp.full((2, 3), 0.5), jnp.zeros(2, int), jax.random.key(0)
    >>> elle(lambda x: x**2, x, y, eps=0.0, lam=1.0, key=key, loss=first)[0]
    Array(0.25, dtype=float32)
    """
    norm = by_name(norm)
    still = frozen or logits_fn
    to_attack, to_a, to_b, to_share = jax.random.split(key, 4)
    a, b = (inner.near(to, x, eps, norm, bounds) for to in (to_a, to_b))
    draw = lambda key: jax.random.uniform(key, dtype=wide(x).dtype)
    share = jax.vmap(draw)(example_keys(to_share, len(x)))
    between = (wide(a) + expand(share, wide(a)) * (wide(b) - wide(a))).astype(x.dtype)
    at = lambda point: bind(still, loss)(point, y)[0]
    bend = jnp.square(at(between) - (1 - share) * at(a) - share * at(b)).mean()
    run = inner.inner(attack)
    x_adv = run(to_attack, logits_only(still), x, y, eps, norm=norm, bounds=bounds)
    values, aux = bind(logits_fn, loss)(x_adv, y)
    return values.mean() + lam * bend, with_aux({"loss_adv": values.mean(), "bend": bend}, aux)


def cure(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    lam: ArrayLike,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    squared: bool = True,
) -> tuple[Array, Parts]:
    """`E[l(x) + lam ||grad l(x + eps d) - grad l(x)||_2^2]` (CURE, 1811.09716).

    The curvature along the steepest direction d, which is not differentiated. The authors' step h
    is a Euclidean length, `eps sqrt(N)` for LINF and N pixels, and grows as they train (here by
    `train.ramp` with `train.ramped=eps`). `squared=False` is their code, with lam 4. Cost: 15
    forward units, 3 for the loss and 6 for each gradient; 12 where the views are one.

    >>> half = lambda logits, y: (logits**2).sum(1) / 2
    >>> cure(lambda x: x, jnp.eye(4), jnp.zeros(4, int), eps=0.5, lam=1.0, norm=L2, loss=half)[0]
    Array(0.75, dtype=float32)
    """
    norm = by_name(norm)
    check_radius(eps)
    still = bind(frozen or logits_fn, loss)
    _, grad, _ = value_and_grad(still, x, y)
    direction = norm.direction(finite(jax.lax.stop_gradient(grad)))
    _, ahead, _ = value_and_grad(still, moved(x, eps, direction), y)
    sizes = L2.size(wide(ahead) - wide(grad))
    bend = (jnp.square(sizes) if squared else sizes).mean()
    values, aux = bind(logits_fn, loss)(x, y)
    return values.mean() + lam * bend, with_aux({"loss": values.mean(), "bend": bend}, aux)


def llr(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    lam: ArrayLike,
    mu: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 2,
    step_size: float | None = None,
    unroll: int = 1,
) -> tuple[Array, Parts]:
    """`E[l(x) + lam g(v) + mu |<v, grad l(x)>|]`, v the maximum in the ball of the error
    `g(v) = |l(x + v) - l(x) - <v, grad l(x)>|` (LLR, Qin et al. 1907.02610).

    v ascends g from a random point of the ball, `steps` steps of `step_size eps`, by default
    `2.5 / steps`, along steepest directions; the authors' are two steps of Adam. Their lam and mu
    on CIFAR-10 are 4 and 3. Cost: 16 forward units, 3 for the loss, 6 for the gradient, two for
    each step and 3 for g.

    >>> first = lambda logits, y: logits[:, 0]
    >>> x, y, key = jnp.full((2, 3), 0.5), jnp.zeros(2, int), jax.random.key(0)
    >>> llr(lambda x: 3 * x, x, y, eps=0.1, lam=1.0, mu=0.0, key=key, loss=first)[0].round(4)
    Array(1.5, dtype=float32)
    """
    norm = by_name(norm)
    still = bind(frozen or logits_fn, loss)
    here, grad, _ = value_and_grad(still, x, y)

    def error(point: Array, here: Array, grad: Array) -> tuple[Array, Array]:
        along = _product(wide(point) - wide(x), grad)
        return jnp.abs(still(point, y)[0] - here - along), along

    fixed = jax.lax.stop_gradient((here, grad))
    farthest = inner.ascend(
        lambda point: error(point, *fixed)[0],
        inner.near(key, x, eps, norm, bounds),
        x,
        eps,
        norm=norm,
        bounds=bounds,
        steps=steps,
        step_size=step_size,
        unroll=unroll,
    )
    bend, along = error(farthest, here, grad)
    values, aux = bind(logits_fn, loss)(x, y)
    value = (values + lam * bend + mu * jnp.abs(along)).mean()
    return value, with_aux({"loss": values.mean(), "bend": bend.mean()}, aux)
