"""Radii from a gradient and a bound of the curvature, and the curvature itself.

Second derivatives say something about networks that have them: with `c2relu`, `silu` or `softplus`.
Those of a relu network vanish where they exist, and it bends where they do not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.certificates.constants import (
    Certificate,
    certificate,
    checked_logits,
    checked_value,
    gaps,
)
from lipreg.contracts import LogitsFn, at_least_one
from lipreg.keys import example_keys
from lipreg.lipschitz.functions import Constant
from lipreg.norms import L2, wide
from lipreg.tracing import output, snapshot

__all__ = ["largest_curvature", "second_order"]


def second_order(logits_fn: LogitsFn, x: Array, y: Array, *, curvature: Constant) -> Certificate:
    """`min_j (-||g_j|| + sqrt(||g_j||^2 + 2 C m_j)) / C`, `m_j = z_y - z_j`, in l2 (1905.11468).

    `g_j` is the gradient of m_j at x, and `m_j(x + v) >= m_j - ||g_j|| ||v|| - C/2 ||v||^2` with C
    at least the largest eigenvalue of the Hessian of `-m_j = z_j - z_y`: the largest one, since
    only curvature towards the other class brings it nearer, and 0 where all are negative. One C
    serves all j. The paper takes the runner-up j alone, which is no bound: another class may have
    the larger margin and be nearer. All j cost K backward passes, in one batch K times as large.
    Estimated by `largest_curvature`, C is a maximum over points and gives an estimate. The paper's
    margin is that of probabilities: hand in `lambda x: softmax(f(x))` for logits_fn.

    Raises: ValueError for a curvature that is not a `Constant`, negative or not a number, and for x
      in half precision, where a gradient with respect to it is rounded.

    >>> f = lambda x: jnp.concatenate([jnp.ones((len(x), 1)), x + x**2 / 2], 1)  # crosses 1 there
    >>> second_order(f, jnp.zeros((1, 1)), jnp.array([0]), curvature=Constant(1.0, "exact"))
    Certificate(radius=Array([0.7320508], dtype=float32), kind='certified')
    """
    if wide(x).dtype != x.dtype:
        raise ValueError(f"second_order: x is {x.dtype}; want float32: gradients would be rounded.")
    logits = checked_logits(logits_fn, x, y)
    value = checked_value("second_order", curvature, Constant).astype(logits.dtype)
    margins, pull = jax.vjp(lambda x: gaps(logits_fn(x).astype(logits.dtype), y), x)
    each = jnp.eye(margins.shape[1], dtype=logits.dtype)
    spread = lambda e: jnp.broadcast_to(e, margins.shape)
    slope = jax.vmap(lambda e: L2.dual(pull(spread(e))[0]), out_axes=1)(each)
    # The root, written without a difference of nearly equal numbers and without a division by C.
    # It is the same for margins of another scale: of this one no square is too small for a float.
    scale = jax.lax.stop_gradient(jnp.maximum(slope, margins))
    scale = jnp.where(scale > 0, scale, 1.0)
    steep, gap = slope / scale, margins / scale
    square = steep**2 + 2 * (value / scale) * gap
    root = 2 * gap / (steep + jnp.sqrt(jnp.where(square > 0, square, jnp.inf)))
    # Where nothing moves, the gap never closes, or is closed already.
    still = (slope == 0) & ((value == 0) | (margins == 0))
    root = jnp.where(still, jnp.where(margins > 0, jnp.inf, 0.0), root)
    return certificate(logits, root.min(1), curvature.kind)


def largest_curvature(
    key: Array,
    f: Callable[[Array], Array],
    x: Array,
    *,
    steps: int = 50,
    unroll: int | bool = 1,
) -> Array:
    """`max eig D^2 f(x)` of each example, `[B]`, by Lanczos (1950) on Hessian-vector products.

    f is `[B, ...] -> [B]`. As many `steps` as x has entries find it; fewer find a smaller
    number, soon only a little smaller. It is the largest eigenvalue with its sign, which bounds how
    fast f may grow; the largest of `-f` is minus the smallest of f. A product is a gradient of
    `<grad f, v>`, reverse over reverse. All vectors are kept, `[B, steps, ...]`, and made
    orthogonal to each other (twice is enough), since with rounding errors Lanczos finds the largest
    again and again. The start is random, from `fold_in(key, row)`; `unroll` is that of
    `lax.fori_loop`.

    Raises: ValueError where f returns no `[B]`, an old-style key, steps below 1.

    >>> f = lambda x: 3 * x[:, 0] ** 2 - 5 * x[:, 1] ** 2
    >>> largest_curvature(jax.random.key(0), f, jnp.zeros((1, 2))).astype("float16")
    Array([6.], dtype=float16)
    """
    at_least_one("largest_curvature", steps=steps)
    f = snapshot(f)
    out = output(f, x)
    if getattr(out, "shape", None) != x.shape[:1]:
        got = list(out.shape) if hasattr(out, "shape") else type(out).__name__
        raise ValueError(f"f must return [{x.shape[0]}]; it returned {got}.")
    batch, pixels = x.shape[0], x[0].size
    steps = min(steps, pixels)
    dot = partial(jnp.einsum, precision="highest")

    def product(v: Array) -> Array:
        along = lambda x: jnp.sum(jax.grad(lambda x: f(x).sum())(x) * v.reshape(x.shape))
        return jax.grad(along)(x).reshape(v.shape)

    def extend(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, diagonal, beside = carry
        v = basis[:, k]
        w = product(v)
        diagonal = diagonal.at[:, k].set(dot("bn,bn->b", v, w))
        for _ in range(2):
            w = w - dot("bkn,bk->bn", basis, dot("bkn,bn->bk", basis, w))
        # Below the rounding of the largest so far the Krylov space is complete: 0 ends it.
        size = L2.size(w)
        scale = jnp.maximum(jnp.abs(diagonal), beside).max(1)
        size = jnp.where(size > 10 * jnp.finfo(x.dtype).eps * scale, size, 0.0)
        unit = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1.0), 0.0)
        return basis.at[:, k + 1].set(w * unit[:, None]), diagonal, beside.at[:, k].set(size)

    draw = jax.vmap(lambda key: jax.random.normal(key, (pixels,), x.dtype))
    start = L2.direction(draw(example_keys(key, batch)))
    basis = jnp.zeros((batch, steps + 1, pixels), x.dtype).at[:, 0].set(start)
    empty = jnp.zeros((batch, steps), x.dtype)
    basis, diagonal, beside = jax.lax.fori_loop(
        0, steps, extend, (basis, empty, empty), unroll=unroll
    )
    # Steps after its end have added nothing: they get a number that is not above the largest.
    used = (basis[:, :-1] != 0).any(2)
    diagonal = jnp.where(used, diagonal, diagonal[:, :1])
    tridiagonal = lambda d, e: jnp.diag(d) + jnp.diag(e, 1) + jnp.diag(e, -1)
    return jnp.linalg.eigvalsh(jax.vmap(tridiagonal)(diagonal, beside[:, :-1])).max(1)
