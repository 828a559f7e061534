"""Free adversarial training: one backward pass moves the weights and the perturbation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.box import Bounds
from lipreg.contracts import check_radius
from lipreg.losses import cross_entropy
from lipreg.norms import LINF, NormLike, by_name, expand, finite, wide
from lipreg.objectives.contract import LogitsFn, Loss, Parts, bind, moved, with_aux

__all__ = ["free_at"]


def free_at(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    carried: Array | None = None,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Array, Parts]:
    """`E l(x + delta)`, then `delta <- ball(delta + eps d)` (Shafahi et al. 1904.12843).

    d is the steepest direction of the very loss that is trained, in the trained view. delta is
    `carried` from step to step, of `x`'s shape, 0 at first: `parts["carried"]` is the next one. The
    authors replay each batch 8 times (`train.replay`) and divide the epochs by 8. Cost: 3 forward
    units, since both derivatives share a backward pass.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> value, parts = free_at(lambda x: 10 * x, x, y, eps=0.1)
    >>> value.round(4), parts["carried"].round(1)
    (Array(0.1269, dtype=float32), Array([[-0.1,  0.1]], dtype=float32))
    """
    norm = by_name(norm)
    check_radius(eps)
    del frozen
    delta = wide(jnp.zeros_like(x) if carried is None else carried)
    evaluate = bind(logits_fn, loss)

    def total(x_adv: Array) -> tuple[Array, Array]:
        values, aux = evaluate(x_adv, y)
        return values.mean(), aux

    at = moved(x, 1.0, delta)
    x_adv = jnp.clip(at, *bounds)
    (value, aux), grad = jax.value_and_grad(total, has_aux=True)(x_adv)
    # A pixel beyond the box does not move the image; on its border, clip has the derivative 1/2.
    grad = jnp.where(at == x_adv, finite(wide(grad)), 0.0)
    following = norm.project(delta + expand(eps, delta) * norm.direction(grad), eps)
    return value, with_aux({"loss_adv": value, "carried": jax.lax.stop_gradient(following)}, aux)
