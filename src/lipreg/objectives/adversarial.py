"""Adversarial training: the loss at attacked images, `pgd_at`, `fgsm_rs`, `n_fgsm`, and the balance
of clean and attacked ones, `trades`, `mart`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.box import Bounds
from lipreg.keys import example_keys
from lipreg.losses import cross_entropy, divergence, margin
from lipreg.norms import LINF, NormLike, by_name, wide
from lipreg.objectives import inner
from lipreg.objectives.contract import (
    LogitsFn,
    Loss,
    Parts,
    bind,
    logits_only,
    loss_values,
    moved,
    outputs,
    with_aux,
)

__all__ = ["fgsm_rs", "mart", "n_fgsm", "pgd_at", "trades"]


def pgd_at(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    attack: inner.Attack = "pgd(steps=10)",
) -> tuple[Array, Parts]:
    """`E l(x')`, x' what an attack finds in the ball: adversarial training (1706.06083).

    `attack` is any of ours with its options, `"apgd(steps=5)"`, `"ddn(steps=20)"`, an outsider's
    `"package.module:name"`, or a function on the contract of `attacks`. It attacks the frozen view
    and ascends a loss of its own, cross entropy as a rule, whatever `loss` is: the ascent of a
    smoothed one goes the wrong way where the network is surer than its target.

    PGD by default takes ten steps of eps/4, as Madry et al. do at 8/255, and returns the point with
    the largest margin. Cost: 24 forward units, two for each step, one for the last point's margin,
    three to train.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> pgd_at(lambda x: 10 * x, x, y, eps=0.1, key=jax.random.key(0))[0].round(4)
    Array(0.6931, dtype=float32)
    """
    norm = by_name(norm)
    still = logits_only(frozen or logits_fn)
    x_adv = inner.inner(attack)(key, still, x, y, eps, norm=norm, bounds=bounds)
    values, aux = bind(logits_fn, loss)(x_adv, y)
    return values.mean(), with_aux({"loss_adv": values.mean()}, aux)


def fgsm_rs(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    alpha: float = 1.25,
) -> tuple[Array, Parts]:
    """`E l(ball(x + eps u + alpha eps d))`, u random in the unit ball (Wong et al. 2001.03994).

    "Fast is better than free": one step along the steepest direction d at `x + eps u`, projected
    onto the ball. It is `pgd_at(attack="fgsm_rs(alpha=1.25)")`. Cost: 5 forward units.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> fgsm_rs(lambda x: 10 * x, x, y, eps=0.1, key=jax.random.key(0), alpha=2.0)[0].round(4)
    Array(0.6931, dtype=float32)
    """
    norm = by_name(norm)
    return pgd_at(
        logits_fn,
        x,
        y,
        eps=eps,
        key=key,
        loss=loss,
        frozen=frozen,
        norm=norm,
        bounds=bounds,
        attack=partial(inner.fgsm_rs, alpha=alpha),
    )


def n_fgsm(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    k: float = 2.0,
    alpha: float = 1.0,
) -> tuple[Array, Parts]:
    """`E l(x + k eps u + alpha eps d)`, u random in the unit ball (de Jorge et al. 2202.01181).

    As `fgsm_rs`, with more noise and no projection: points are up to `(k + alpha) eps` from x. It
    is `pgd_at(attack="n_fgsm(k=2.0)")`. Cost: 5 forward units.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> n_fgsm(lambda x: 10 * x, x, y, eps=0.1, key=jax.random.key(0), k=0.0)[0].round(4)
    Array(0.6931, dtype=float32)
    """
    norm = by_name(norm)
    return pgd_at(
        logits_fn,
        x,
        y,
        eps=eps,
        key=key,
        loss=loss,
        frozen=frozen,
        norm=norm,
        bounds=bounds,
        attack=partial(inner.n_fgsm, k=k, alpha=alpha),
    )


def trades(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    beta: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 10,
    step_size: float | None = None,
    noise: float = 1e-3,
    unroll: int = 1,
) -> tuple[Array, Parts]:
    """`E[l(x) + beta max KL(p(x) || p(x'))]`, p the softmax, x' in the ball (TRADES, 1901.08573).

    x' ascends the divergence in the frozen view, as the authors' does, from `x + noise N(0, I)`,
    for at x its gradient is 0: `steps` steps of `step_size eps`, by default `2.5 / steps`. The
    gradient in the weights goes through p(x) and p(x'); aux is that of the clean images. Zhang et
    al. take beta = 6. Cost: 27 forward units, two for each step, one for p(x), six for two passes.

    >>> x, y = jnp.array([[0.5, 0.5]]), jnp.array([0])
    >>> trades(lambda x: 10 * x, x, y, eps=0.1, beta=1.0, key=jax.random.key(0))[1]["kl"].round(1)
    Array(0.4, dtype=float32)
    """
    norm = by_name(norm)
    still = logits_only(frozen or logits_fn)
    target = jax.lax.stop_gradient(still(x))
    draw = lambda key: jax.random.normal(key, x.shape[1:], wide(x).dtype)
    start = jnp.clip(moved(x, noise, jax.vmap(draw)(example_keys(key, len(x)))), *bounds)
    x_adv = inner.ascend(
        lambda point: divergence(still(point), target),
        start,
        x,
        eps,
        norm=norm,
        bounds=bounds,
        steps=steps,
        step_size=step_size,
        unroll=unroll,
    )
    logits, aux = outputs(logits_fn, x)
    attacked, _ = outputs(logits_fn, x_adv)
    value, gap = loss_values(loss, logits, x, y).mean(), divergence(attacked, logits).mean()
    return value + beta * gap, with_aux({"loss": value, "kl": gap}, aux)


def mart(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    beta: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    attack: inner.Attack = "pgd(steps=10)",
) -> tuple[Array, Parts]:
    """`E[l(x') - log(1 - max_{j != y} p_j(x')) + beta KL(p(x) || p(x')) (1 - p_y(x))]`.

    Wang et al. (ICLR 2020), "misclassification-aware": the first two terms are their boosted cross
    entropy, so that beta = 0 is not `pgd_at`; the divergence counts where the clean image is
    unsure. As in their code, 1.0001 stands for the 1 in the logarithm. x' is what `attack` finds,
    as in `pgd_at`. aux is that of the attacked images. Their beta is 5 or 6. Cost: 27 forward
    units.

    >>> x, y = jnp.array([[0.5, 0.5]]), jnp.array([0])
    >>> mart(lambda x: 10 * x, x, y, eps=0.0, beta=6.0, key=jax.random.key(0))[0].round(3)
    Array(1.386, dtype=float32)
    """
    norm = by_name(norm)
    still = logits_only(frozen or logits_fn)
    x_adv = inner.inner(attack)(key, still, x, y, eps, norm=norm, bounds=bounds)
    attacked, aux = outputs(logits_fn, x_adv)
    logits, _ = outputs(logits_fn, x)
    values = loss_values(loss, attacked, x, y)
    likely = jnp.exp(-cross_entropy(attacked, y))
    other = margin(jax.nn.softmax(wide(attacked)), y) + likely
    gaps, unsure = divergence(attacked, logits), 1 - jnp.exp(-cross_entropy(logits, y))
    value = (values - jnp.log(1.0001 - other) + beta * gaps * unsure).mean()
    return value, with_aux({"loss_adv": values.mean(), "kl": gaps.mean()}, aux)
