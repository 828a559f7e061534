"""The loss and a penalty on its gradient: `j0`, `j1`, `j2`, `tikhonov`, `grad_lp`; on the Jacobian
of the logits: `jacobian`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.contracts import at_least_one
from lipreg.keys import example_keys, fold_in
from lipreg.losses import cross_entropy
from lipreg.norms import L2, LINF, NormLike, by_name, lp, wide
from lipreg.objectives.contract import (
    LogitsFn,
    Loss,
    Parts,
    bind,
    loss_values,
    outputs,
    report,
    with_aux,
)
from lipreg.objectives.methods import Method, first_order, gradient_sizes

__all__ = ["grad_lp", "j0", "j1", "j2", "jacobian", "tikhonov"]


def j0(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
) -> tuple[Array, Parts]:
    """`J0 = E l(x)`.

    >>> j0(lambda x: x, jnp.zeros((4, 2)), jnp.zeros(4, int))[0]
    Array(0.6931472, dtype=float32)
    """
    del frozen  # part of the contract; a plain mean has no directions
    values, aux = bind(logits_fn, loss)(x, y)
    return values.mean(), with_aux({"loss": values.mean()}, aux)


def j1(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    method: Method = "attack",
) -> tuple[Array, Parts]:
    """`J1 = E[l(x) + eps ||grad l(x)||_1]`; to first order, training on FGSM (1810.00953, J^1).

    `eps` is the radius in l_inf, in pixel units. The authors' eps is a Euclidean length: their
    step is `eps sign(g) / sqrt(N)` for N pixels.

    >>> total = lambda logits, y: logits.sum(1)
    >>> j1(lambda x: x, jnp.ones((4, 3)), jnp.zeros(4, int), eps=0.5, loss=total)[0]
    Array(4.5, dtype=float32)
    """
    norm = by_name(norm)
    views = bind(logits_fn, loss), bind(frozen or logits_fn, loss)
    value, _, parts = first_order(*views, x, y, eps, norm, method)
    return value, parts


def j2(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = L2,
    method: Method = "attack",
) -> tuple[Array, Parts]:
    """`J2 = E[l(x) + eps ||grad l(x)||_2]`; to first order, one l_2 step (1810.00953, J^2).

    >>> first = lambda logits, y: logits[:, 0]
    >>> j2(lambda x: 3 * x, jnp.ones((4, 3)), jnp.zeros(4, int), eps=0.5, loss=first)[0]
    Array(4.5, dtype=float32)
    """
    norm = by_name(norm)
    views = bind(logits_fn, loss), bind(frozen or logits_fn, loss)
    value, _, parts = first_order(*views, x, y, eps, norm, method)
    return value, parts


def tikhonov(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    lam: ArrayLike,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = L2,
    method: Method = "penalty",
) -> tuple[Array, Parts]:
    """`E[l(x) + lam/2 ||grad l(x)||_*^2]` (Finlay & Oberman, 1905.11468).

    The authors' form is `method=difference(h=0.01)` with lam 0.1 or 1.

    >>> first = lambda logits, y: logits[:, 0]
    >>> tikhonov(lambda x: 3 * x, jnp.ones((4, 3)), jnp.zeros(4, int), lam=2.0, loss=first)[0]
    Array(12., dtype=float32)
    """
    norm = by_name(norm)
    views = bind(logits_fn, loss), bind(frozen or logits_fn, loss)
    values, sizes, aux = gradient_sizes(*views, x, y, norm, method)
    return (values + lam / 2 * jnp.square(sizes)).mean(), report(values, sizes, aux)


def grad_lp(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    lam: ArrayLike,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    p: float = 2.0,
    norm: NormLike = L2,
    method: Method = "penalty",
) -> tuple[Array, Parts]:
    """`E l(x) + lam (E ||grad l(x)||_*^p)^(1/p)`: the gradient's L^p(rho) norm, p = 1 to inf.

    Total variation at p = 1 (the J2 penalty), the batch's Lipschitz estimate at p = inf: the two
    ends that 1810.00953 names, and all norms between them.

    >>> half = lambda logits, y: (logits**2).sum(1) / 2
    >>> y = jnp.zeros(3, int)
    >>> grad_lp(lambda x: x, jnp.eye(3), y, lam=1.0, p=float("inf"), loss=half)[0]
    Array(1.5, dtype=float32)
    """
    norm = by_name(norm)
    views = bind(logits_fn, loss), bind(frozen or logits_fn, loss)
    values, sizes, aux = gradient_sizes(*views, x, y, norm, method)
    mean = lp(p).size(sizes[None])[0] / sizes.size ** (1 / p)
    return values.mean() + lam * mean, report(values, sizes, aux)


def jacobian(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    lam: ArrayLike,
    key: Array,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    projections: int = 1,
) -> tuple[Array, Parts]:
    """`E[l(x) + lam/2 ||dz/dx||_F^2]`, z the logits (Hoffman, Roberts & Yaida 1908.02729).

    `||dz/dx||_F^2 = K E ||v dz/dx||_2^2` over random unit vectors v of the K logits: an unbiased
    estimate from `projections` of them for each example. The authors' lam is 0.01. Cost: 3 forward
    units and 3 more for each projection.

    >>> x, y, key = jnp.eye(2), jnp.zeros(2, int), jax.random.key(0)
    >>> jacobian(lambda x: 3 * x, x, y, lam=2.0, key=key)[1]["jacobian"].round(4)
    Array(18., dtype=float32)
    """
    del frozen  # part of the contract; the Jacobian is that of the pass that is trained
    at_least_one("jacobian", projections=projections)
    logits, pull, aux = jax.vjp(lambda x: outputs(logits_fn, x), x, has_aux=True)
    keys, classes = example_keys(key, len(x)), logits.shape[1]
    draw = jax.vmap(lambda key: jax.random.normal(key, (classes,), wide(logits).dtype))

    def square(i: int) -> Array:
        (projected,) = pull(L2.direction(draw(fold_in(keys, i))).astype(logits.dtype))
        return jnp.square(L2.size(wide(projected)))

    squares = jnp.stack([square(i) for i in range(projections)]).mean(0) * classes
    values = loss_values(loss, logits, x, y)
    parts = {"loss": values.mean(), "jacobian": squares.mean()}
    return (values + lam / 2 * squares).mean(), with_aux(parts, aux)
