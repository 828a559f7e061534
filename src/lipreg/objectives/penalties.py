"""Objectives that penalise the loss's gradient in its input.

The contract is `(loss, x, y, *, ...) -> (scalar, parts)`.
`loss(x [B, ...], y) -> values [B]` has its parameters bound; with running statistics it returns
`(values, aux)`, and `aux` comes back as `parts["aux"]`. `frozen` is a second view of the same
model, with its running statistics, where the gradient of one example does not depend on the
others: attack directions come from it. It defaults to `loss`. An objective that has an `f` is
handed the network itself by `train.make_step`: class probabilities `[B, K]`, frozen.

Every name in `__all__` is an objective. Its keyword-only arguments without a default are its
strengths: they may be traced, so one compilation serves a sweep. The others (`norm`, `method`,
`top_k`, ...) are static. `norm` is the norm of the *attack*; what is penalised is its dual norm
of the gradient. `parts` are scalars that name the pieces:
`loss` (mean at the clean x), `grad_norm` and `max_grad_norm` (over the batch, in the dual norm).
Entries of a gradient that are not finite count as 0 in directions. Parts and penalties computed
from such a gradient are not finite, so that it is noticed.

To first order in eps the three methods of `j1` and `j2` agree:
- `attack`: the loss at `x + eps d`, `d` the direction of steepest ascent. One more backward pass
  and no second derivative; what Finlay, Oberman & Abbasi ran.
- `penalty`: the gradient norm itself, differentiated exactly (reverse over reverse).
- `difference`: `(l(x + h d) - l(x)) / h`, or central with `order=2` (1905.11468). On a relu
  network it sees kinks that the exact derivative does not: there it is a different regulariser.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.attacks.start import Bounds
from lipreg.lipschitz.functions import ascended_pairs, gradient_norms
from lipreg.norms import L2, LINF, Norm, expand, finite, lp, wide

__all__ = ["grad_lp", "j0", "j1", "j2", "j2_lip", "lip_excess", "tikhonov"]

Loss = Callable[[Array, Array], Any]
Parts = dict[str, Any]

METHODS = ("attack", "penalty", "difference")


def strengths(objective: Callable[..., Any]) -> tuple[str, ...]:
    """The names of an objective's traced strengths: `strengths(j2_lip) == ("eps", "lam")`."""
    parameters = inspect.signature(objective).parameters.values()
    required = (p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    return tuple(p.name for p in required)


def _evaluate(loss: Loss, x: Array, y: Array) -> tuple[Array, Any]:
    out = loss(x, y)
    values, aux = out if isinstance(out, tuple) else (out, None)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"A loss returns one value per example, [{x.shape[0]}]; this one has shape "
            f"{list(values.shape)}."
        )
    return wide(values), aux


def value_and_input_grad(loss: Loss, x: Array, y: Array) -> tuple[Array, Array, Any]:
    """`l(x)`, `grad_x l(x)` and the loss's aux: `[B]`, `[B, ...]`, anything or None.

    Exact where the loss of one example does not depend on the others; under batch statistics row i
    is the derivative of the batch's *sum* in `x_i`.
    """

    def total(x: Array) -> tuple[Array, tuple[Array, Any]]:
        values, aux = _evaluate(loss, x, y)
        return values.sum(), (values, aux)

    grad, (values, aux) = jax.grad(total, has_aux=True)(x)
    return values, grad, aux


def _report(values: Array, sizes: Array, aux: Any) -> Parts:
    parts = {"loss": values.mean(), "grad_norm": sizes.mean(), "max_grad_norm": sizes.max()}
    return parts if aux is None else parts | {"aux": aux}


def _ascent(loss: Loss, x: Array, y: Array, norm: Norm) -> tuple[Array, Array, Array]:
    """Values, dual norms and steepest directions, none of them differentiated in the parameters."""
    values, grad, _ = value_and_input_grad(loss, x, y)
    return jax.lax.stop_gradient((values, norm.dual(grad), norm.direction(finite(grad))))


def _moved(x: Array, length: ArrayLike, direction: Array) -> Array:
    """`x + length direction`, computed in float32 where x is in half precision."""
    return (wide(x) + expand(length, direction) * direction).astype(x.dtype)


def _penalised(
    loss: Loss,
    frozen: Loss | None,
    x: Array,
    y: Array,
    norm: Norm,
    method: str,
    h: float,
    order: int,
) -> tuple[Array, Array, Any]:
    """Values [B] and gradient norms [B], both differentiable in the parameters, and the aux."""
    if method == "penalty":
        values, grad, aux = value_and_input_grad(loss, x, y)
        return values, norm.dual(grad), aux
    if method != "difference":
        raise ValueError(f"No method {method!r} here; choose penalty or difference.")
    if order not in (1, 2):
        raise ValueError(f"No difference of order {order!r}; choose 1 or 2.")
    _, _, direction = _ascent(frozen or loss, x, y, norm)
    values, aux = _evaluate(loss, x, y)
    ahead, _ = _evaluate(loss, _moved(x, h, direction), y)
    if order == 1:
        return values, (ahead - values) / h, aux
    behind, _ = _evaluate(loss, _moved(x, -h, direction), y)
    return values, (ahead - behind) / (2 * h), aux


def j0(loss: Loss, x: Array, y: Array, *, frozen: Loss | None = None) -> tuple[Array, Parts]:
    """`J0 = E l(x)`.

    >>> j0(lambda x, y: (x**2).sum(1), jnp.ones((4, 3)), None)[0]
    Array(3., dtype=float32)
    """
    del frozen  # part of the contract; a plain mean has no directions
    values, aux = _evaluate(loss, x, y)
    parts = {"loss": values.mean()}
    return values.mean(), parts if aux is None else parts | {"aux": aux}


def _first_order(
    loss: Loss,
    frozen: Loss | None,
    x: Array,
    y: Array,
    eps: ArrayLike,
    norm: Norm,
    method: str,
    h: float,
    order: int,
) -> tuple[Array, Array, Parts]:
    """`E[l + eps ||grad l||_*]` by the method asked for, the gradient norms [B], and the parts."""
    if method not in METHODS:
        raise ValueError(f"No method {method!r}; choose one of {', '.join(METHODS)}.")
    if method == "attack":
        values, sizes, direction = _ascent(frozen or loss, x, y, norm)
        penalised, aux = _evaluate(loss, _moved(x, eps, direction), y)
    else:
        values, sizes, aux = _penalised(loss, frozen, x, y, norm, method, h, order)
        penalised = values + eps * sizes
    return penalised.mean(), sizes, _report(values, sizes, aux)


def j1(
    loss: Loss,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    norm: Norm = LINF,
    method: str = "attack",
    frozen: Loss | None = None,
    h: float = 1e-2,
    order: int = 1,
) -> tuple[Array, Parts]:
    """`J1 = E[l(x) + eps ||grad l(x)||_1]`; to first order, training on FGSM (1810.00953, J^1).

    `eps` is the radius in l_inf, in pixel units. The authors' eps is a Euclidean length: their
    step is `eps sign(g) / sqrt(N)` for N pixels.

    >>> j1(lambda x, y: x.sum(1), jnp.ones((4, 3)), None, eps=0.5)[0]
    Array(4.5, dtype=float32)
    """
    value, _, parts = _first_order(loss, frozen, x, y, eps, norm, method, h, order)
    return value, parts


def j2(
    loss: Loss,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    norm: Norm = L2,
    method: str = "attack",
    frozen: Loss | None = None,
    h: float = 1e-2,
    order: int = 1,
) -> tuple[Array, Parts]:
    """`J2 = E[l(x) + eps ||grad l(x)||_2]`; to first order, one l_2 step (1810.00953, J^2).

    >>> j2(lambda x, y: 3 * x[:, 0], jnp.ones((4, 3)), None, eps=0.5)[0]
    Array(4.5, dtype=float32)
    """
    value, _, parts = _first_order(loss, frozen, x, y, eps, norm, method, h, order)
    return value, parts


def j2_lip(
    loss: Loss,
    x: Array,
    y: Array,
    *,
    eps: ArrayLike,
    lam: ArrayLike,
    norm: Norm = L2,
    method: str = "attack",
    top_k: int = 1,
    frozen: Loss | None = None,
    h: float = 1e-2,
    order: int = 1,
) -> tuple[Array, Parts]:
    """`J2-Lip = J2 + lam max ||grad l(x)||_2`, the maximum over the batch (1810.00953, "tulip").

    The derivative of a maximum is that of the example which attains it: `top_k=1` needs second
    derivatives of that one example only, in the frozen view, and a step costs about what J2's
    does. `top_k=k` averages the k largest gradient norms. `top_k=0` is the full form: the
    maximum of all B, differentiated through `loss` itself. Without batch statistics `top_k=1`
    and the full form are equal in value and gradient; with them they differ, as the views do.

    `lam` is per example. The authors weigh the gradient of the batch *mean*: their 0.1 is 0.1/B
    here. Their term is taken at the attacked inputs; this one at x, where the direction's
    backward pass has already found the largest.

    >>> j2_lip(lambda x, y: (x**2).sum(1) / 2, jnp.eye(3), None, eps=0.0, lam=1.0)[0]
    Array(1.5, dtype=float32)
    """
    value, sizes, parts = _first_order(loss, frozen, x, y, eps, norm, method, h, order)
    if not top_k:
        _, grad, _ = value_and_input_grad(loss, x, y)
        lip = norm.dual(grad).max()
    elif 1 <= top_k <= x.shape[0]:
        _, top = jax.lax.top_k(jax.lax.stop_gradient(sizes), top_k)
        _, grad, _ = value_and_input_grad(frozen or loss, x[top], jax.tree.map(lambda a: a[top], y))
        lip = norm.dual(grad).mean()
    else:
        raise ValueError(
            f"top_k = {top_k} in a batch of {x.shape[0]}; choose 0 (all) to {x.shape[0]}."
        )
    return value + lam * lip, parts | {"lip": lip}


def lip_excess(
    loss: Loss,
    x: Array,
    y: Array,
    *,
    lam: ArrayLike,
    L0: ArrayLike,
    f: Callable[[Array], Array] | None = None,
    norm: Norm = L2,
    method: str = "gradient",
    steps: int = 5,
    bounds: Bounds = (0.0, 1.0),
    frozen: Loss | None = None,
) -> tuple[Array, Parts]:
    """`E l(x) + lam max(Lip(f) - L0, 0)` (Oberman & Calder 1808.09540, J^Lip,n).

    `f: [B, ...] -> [B, K]` is the network as the theorems have it, labels in the simplex; without
    it the constant is that of the loss. Lip(f), from `norm` to l_inf, is what the batch shows, an
    estimate from below: by `method="gradient"` the largest norm of a gradient of an f_k; by
    `"pairs"` the largest quotient `|f_k(u) - f_k(v)| / ||u - v||`, u and v ascended in `steps` from
    each x (CLIP, 2103.12531) inside `bounds`, the data's box. The derivative of the maximum is
    that of the one example or pair that attains it. L0 is the constant of the data,
    `lipschitz.of_data`.

    >>> f = lambda x: 3 * x
    >>> lip_excess(lambda x, y: 0 * x[:, 0], jnp.eye(2), None, lam=2.0, L0=1.0, f=f)[0]
    Array(4., dtype=float32)
    """
    values, aux = _evaluate(loss, x, y)

    def at(y: Array) -> Callable[[Array], Array]:
        return f if f is not None else lambda x: _evaluate(frozen or loss, x, y)[0]

    if method == "gradient":
        top = jax.lax.stop_gradient(gradient_norms(at(y), x, norm=norm)).argmax()[None]
        lip = gradient_norms(at(jax.tree.map(lambda a: a[top], y)), x[top], norm=norm)[0]
    elif method == "pairs":
        # What draws the first directions need not change: the batches do.
        pairs = ascended_pairs(jax.random.key(0), at(y), x, norm=norm, steps=steps, bounds=bounds)
        top = pairs.quotients.argmax()[None]
        one, u, v = at(jax.tree.map(lambda a: a[top], y)), pairs.x1[top], pairs.x2[top]
        lip = jnp.abs(wide(one(u)) - wide(one(v))).max() / norm.size(wide(u) - wide(v))[0]
    else:
        raise ValueError(f"No method {method!r} here; choose gradient or pairs.")
    parts = {"loss": values.mean(), "lip": lip}
    excess = jnp.maximum(lip - L0, 0.0)
    return values.mean() + lam * excess, parts if aux is None else parts | {"aux": aux}


def tikhonov(
    loss: Loss,
    x: Array,
    y: Array,
    *,
    lam: ArrayLike,
    norm: Norm = L2,
    method: str = "penalty",
    frozen: Loss | None = None,
    h: float = 1e-2,
    order: int = 1,
) -> tuple[Array, Parts]:
    """`E[l(x) + lam/2 ||grad l(x)||_*^2]` (Finlay & Oberman, 1905.11468).

    The authors' form is `method="difference"` with `h = 0.01` and lam 0.1 or 1.

    >>> tikhonov(lambda x, y: 3 * x[:, 0], jnp.ones((4, 3)), None, lam=2.0)[0]
    Array(12., dtype=float32)
    """
    values, sizes, aux = _penalised(loss, frozen, x, y, norm, method, h, order)
    return (values + lam / 2 * jnp.square(sizes)).mean(), _report(values, sizes, aux)


def grad_lp(
    loss: Loss,
    x: Array,
    y: Array,
    *,
    lam: ArrayLike,
    p: float = 2.0,
    norm: Norm = L2,
    method: str = "penalty",
    frozen: Loss | None = None,
    h: float = 1e-2,
    order: int = 1,
) -> tuple[Array, Parts]:
    """`E l(x) + lam (E ||grad l(x)||_*^p)^(1/p)`: the gradient's L^p(rho) norm, p = 1 to inf.

    Total variation at p = 1 (the J2 penalty), the batch's Lipschitz estimate at p = inf: the two
    ends that 1810.00953 names, and what lies between.

    >>> grad_lp(lambda x, y: (x**2).sum(1) / 2, jnp.eye(3), None, lam=1.0, p=float("inf"))[0]
    Array(1.5, dtype=float32)
    """
    values, sizes, aux = _penalised(loss, frozen, x, y, norm, method, h, order)
    mean = lp(p).size(sizes[None])[0] / sizes.size ** (1 / p)
    return values.mean() + lam * mean, _report(values, sizes, aux)
