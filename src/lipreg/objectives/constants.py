"""The loss and a penalty on a Lipschitz constant, the batch's maximum: `j2_lip`, `lip_excess`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.lipschitz.functions import gradient_norms
from lipreg.losses import cross_entropy
from lipreg.norms import L2, Norm, NormLike, by_name, largest
from lipreg.objectives.contract import (
    LogitsFn,
    Loss,
    Parts,
    ascent,
    bind,
    logits_only,
    moved,
    value_and_grad,
    with_aux,
)
from lipreg.objectives.methods import Method, difference, first_order, pairs

__all__ = ["j2_lip", "lip_excess"]

POINTS = ("clean", "attacked")


def j2_lip(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    lam: ArrayLike,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    norm: NormLike = L2,
    method: Method = "attack",
    top_k: int = 1,
    points: str = "clean",
) -> tuple[Array, Parts]:
    """`J2-Lip = J2 + lam max ||grad l(x)||_2`, the maximum over the batch (1810.00953, "tulip").

    The derivative of a maximum is that of the example which attains it: `top_k=1` needs second
    derivatives of that one example only, in the frozen view, and a step costs about what J2's
    does. `top_k=k` averages the k largest gradient norms. `top_k=0` is the full form: the
    maximum of all B, differentiated through `logits_fn` itself. Without batch statistics `top_k=1`
    and the full form are equal in value and gradient. With them they differ, as the views do: on a
    small CNN their parameter gradients have a cosine of 0.75. To differentiate the one example
    inside its batch's statistics would cost what the full form does.

    `points` are where the maximum is taken: `"clean"`, at x, as the formula has it, or
    `"attacked"`, at `x + eps d`, as the authors' code has it, for one more backward pass. The
    choice is no detail: on that CNN the two parameter gradients have a cosine of 0 to 0.1
    (benchmarks/largest_gradient.py).

    `lam` is per example. The authors weigh the gradient of the batch *mean*: their 0.1 is 0.1/B
    here.

    >>> half = lambda logits, y: (logits**2).sum(1) / 2
    >>> j2_lip(lambda x: x, jnp.eye(3), jnp.zeros(3, int), eps=0.0, lam=1.0, loss=half)[0]
    Array(1.5, dtype=float32)
    """
    norm = by_name(norm)
    if points not in POINTS:
        raise ValueError(f"No points {points!r}; choose clean or attacked.")
    if not 0 <= top_k <= x.shape[0]:
        raise ValueError(
            f"top_k = {top_k} in a batch of {x.shape[0]}; choose 0 (all) to {x.shape[0]}."
        )
    trained, still = bind(logits_fn, loss), bind(frozen or logits_fn, loss)
    value, sizes, parts = first_order(trained, still, x, y, eps, norm, method)
    if points == "attacked":
        # With method="attack" this repeats a pass, of which the compiler keeps one copy.
        x = jax.lax.stop_gradient(moved(x, eps, ascent(still, x, y, norm)[2]))
        _, sizes, _ = ascent(still, x, y, norm)
    elif top_k and method != "attack" and (frozen or isinstance(method, difference)):
        # Norms, and of the frozen view; of a difference's pass the compiler keeps one copy.
        _, sizes, _ = ascent(still, x, y, norm)
    if top_k:
        _, top = jax.lax.top_k(jax.lax.stop_gradient(sizes), top_k)
        lip = norm.dual(value_and_grad(still, x[top], y[top])[1]).mean()
    else:
        lip = largest(norm.dual(value_and_grad(trained, x, y)[1]))
    return value + lam * lip, parts | {"lip": lip}


def _gradient(f: Callable[[Array], Array], x: Array, norm: Norm) -> Array:
    """The largest norm of a gradient of an f_k, differentiable at the example that attains it."""
    top = jax.lax.stop_gradient(gradient_norms(f, x, norm=norm)).argmax()[None]
    return gradient_norms(f, x[top], norm=norm)[0]


def lip_excess(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    lam: ArrayLike,
    L0: ArrayLike,
    loss: Loss = cross_entropy,
    frozen: LogitsFn | None = None,
    output: Callable[[Array], Array] = jax.nn.softmax,
    norm: NormLike = L2,
    method: str | pairs = "gradient",
) -> tuple[Array, Parts]:
    """`E l(x) + lam max(Lip(f) - L0, 0)` (Oberman & Calder 1808.09540, J^Lip,n).

    `f = output(logits)` of the frozen view: with softmax the network as the theorems have it,
    labels in the simplex. Lip(f), from `norm` to l_inf, is estimated from below on the batch:
    `method="gradient"` takes the largest norm of a gradient of an f_k, `pairs(steps)` the largest
    quotient over pairs of points. The derivative of the maximum is that of the one example
    or pair that attains it. L0 is the constant of the data, `lipschitz.of_data`.

    >>> same, none = lambda logits: logits, lambda logits, y: 0 * logits[:, 0]
    >>> x, y = jnp.eye(3), jnp.zeros(3, int)
    >>> lip_excess(lambda x: 3 * x, x, y, lam=2.0, L0=1.0, loss=none, output=same)[0]
    Array(4., dtype=float32)
    """
    norm = by_name(norm)
    values, aux = bind(logits_fn, loss)(x, y)
    still = logits_only(frozen or logits_fn)
    f = lambda x: output(still(x))

    if isinstance(method, pairs):
        lip = method(f, x, norm)
    elif method == "gradient":
        lip = _gradient(f, x, norm)
    else:
        raise ValueError(f"No method {method!r} here; choose gradient or pairs(steps, bounds).")
    excess = jnp.maximum(lip - L0, 0.0)
    parts = with_aux({"loss": values.mean(), "lip": lip}, aux)
    return values.mean() + lam * excess, parts
