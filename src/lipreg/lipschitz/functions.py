"""The Lipschitz constant of a function: exact where it is linear, else estimated from below.

A function is `f: [B, ...] -> [B]` or `[B, K]` and takes examples one by one. A constant is that of
`||f(u) - f(v)||_label_norm <= L ||u - v||_norm`. What a search finds, at however many points, is
never more than the constant: an estimate certifies nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.box import Bounds, check_inside, within
from lipreg.contracts import at_least_one
from lipreg.keys import example_keys
from lipreg.norms import (
    L1,
    L2,
    LINF,
    NormLike,
    by_name,
    expand,
    finite,
    largest,
    select,
    wide,
)
from lipreg.tracing import output

__all__ = [
    "Constant",
    "Pairs",
    "ascended_pairs",
    "gradient_norms",
    "of_function",
    "of_linear",
    "operator_norm",
]


GROWTH, DECAY = 2.0, 0.5  # of a step's length after it succeeded, and after it failed


class Constant(NamedTuple):
    """A Lipschitz constant and what it is worth.

    Attributes:
      value: the number.
      kind: "exact", "certified" (proved, from above) or "estimate" (from below).
    """

    value: float
    kind: str


class Pairs(NamedTuple):
    """Pairs of points and their difference quotients.

    Attributes:
      x1, x2: `[B, ...]`.
      quotients: `||f(x1) - f(x2)|| / ||x1 - x2||`, `[B]`.
    """

    x1: Array
    x2: Array
    quotients: Array


def operator_norm(a: Array, *, norm: NormLike = L2, label_norm: NormLike = LINF) -> Array:
    """`max {||A v||_label_norm : ||v||_norm <= 1}` of matrices `[B, K, ...]`, `[B]`.

    In closed form: any norm to l_inf (the largest dual norm of a row), l_1 to any norm (the largest
    norm of a column), l_2 to l_2 (the largest singular value). The others are hard to compute:
    l_inf to l_1 is NP-hard (Rohn 2000).

    Raises: ValueError for other pairs of norms.

    >>> a = jnp.array([[[3.0, 4.0], [1.0, 0.0]]])
    >>> operator_norm(a), operator_norm(a, norm=LINF)
    (Array([5.], dtype=float32), Array([7.], dtype=float32))
    """
    norm, label_norm = by_name(norm), by_name(label_norm)
    a = wide(a.reshape(*a.shape[:2], -1))
    if label_norm == LINF:
        return largest(jax.vmap(norm.dual, 1, 1)(a))
    if norm == L1:
        return largest(jax.vmap(label_norm.size, 2, 1)(a))
    if norm == label_norm == L2:
        # Scaled, since the squares of a saturated network's gradient would underflow.
        # The norm does not depend on this scale, so its derivative may ignore it.
        scale = jax.lax.stop_gradient(jnp.abs(a).max((1, 2)))
        a = a / expand(jnp.where(scale > 0, scale, 1.0), a)
        squares = jnp.linalg.eigvalsh(jnp.einsum("bkn,bln->bkl", a, a, precision="highest"))
        return jnp.sqrt(jnp.maximum(largest(squares), 0.0)) * scale
    raise ValueError(
        f"No closed form from {norm.name} to {label_norm.name}; choose any norm to linf, l1 to any "
        "norm, or l2 to l2."
    )


def gradient_norms(
    f: Callable[[Array], Array], x: Array, *, norm: NormLike = L2, label_norm: NormLike = LINF
) -> Array:
    """`||Df(x)||`, the operator norm of the Jacobian from `norm` to `label_norm`, `[B]`.

    Where f is scalar this is the dual norm of its gradient, as in J2-Lip (1810.00953). K outputs
    take K backward passes, in one batch K times as large.

    Raises: ValueError as `operator_norm` does, and where f returns neither `[B]` nor `[B, K]`.

    >>> gradient_norms(lambda x: (x**2).sum(1), jnp.array([[3.0, 4.0]]))
    Array([10.], dtype=float32)
    """
    norm, label_norm = by_name(norm), by_name(label_norm)
    _check(f, x)
    out, pull = jax.vjp(lambda x: f(x).reshape(x.shape[0], -1), x)
    outputs = jnp.eye(out.shape[1], dtype=out.dtype)
    jacobian = jax.vmap(lambda e: pull(jnp.broadcast_to(e, out.shape))[0], out_axes=1)(outputs)
    scalar = out.shape[1] == 1  # there all norms of a label are its size
    return operator_norm(jacobian, norm=norm, label_norm=LINF if scalar else label_norm)


def of_function(
    f: Callable[[Array], Array], x: Array, *, norm: NormLike = L2, label_norm: NormLike = LINF
) -> Constant:
    """`max_x ||Df(x)|| <= Lip(f)` over the points x `[B, ...]`: an estimate from below.

    >>> of_function(lambda x: (x**2).sum(1), jnp.array([[3.0, 4.0], [0.0, 1.0]]))
    Constant(value=10.0, kind='estimate')
    """
    norm, label_norm = by_name(norm), by_name(label_norm)
    return Constant(float(gradient_norms(f, x, norm=norm, label_norm=label_norm).max()), "estimate")


def of_linear(w: ArrayLike, *, norm: NormLike = L2, label_norm: NormLike = LINF) -> Constant:
    """`||W||` from `norm` to `label_norm`, the constant of `x -> W x`, W `[K, N]`, in float64.

    For a layer `x @ w`, hand in `w.T`.

    Raises: ValueError as `operator_norm` does, and where W is not a matrix.

    >>> of_linear([[3.0, 4.0], [1.0, 0.0]])
    Constant(value=5.0, kind='exact')
    """
    norm, label_norm = by_name(norm), by_name(label_norm)
    w = np.asarray(w)
    if w.ndim != 2:
        raise ValueError(f"W has shape {list(w.shape)}; want a matrix [K, N].")
    with jax.enable_x64(True):
        matrix = jnp.asarray(w.astype(np.float64))[None]
        value = operator_norm(matrix, norm=norm, label_norm=label_norm)[0]
    return Constant(float(value), "exact")


def ascended_pairs(
    key: Array,
    f: Callable[[Array], Array],
    x: Array,
    *,
    norm: NormLike = L2,
    label_norm: NormLike = LINF,
    eps: ArrayLike = 0.1,
    steps: int = 20,
    step_size: float = 0.2,
    bounds: Bounds = (0.0, 1.0),
    unroll: int | bool = 1,
) -> Pairs:
    """`max_{u, v} ||f(u) - f(v)|| / ||u - v||` by ascent of both, from x (CLIP, 2103.12531).

    Each pair starts as x and a point at the distance `eps`, in `norm`. Its ends move along the
    quotient's steepest directions, by turns in the same and in opposite ones: at first by the
    fraction `step_size` of their distance, then by more after a move that raised the quotient and
    by less after one that did not, which is taken back. So more steps never find less. No pair
    comes closer than eps, so that rounding of f, some `1e-7 |f| / eps`, is not taken for slope.
    `bounds` is the box that pairs stay in, `(-inf, inf)` for none; `unroll` is that of
    `lax.fori_loop`. Points in half precision are searched in float32.

    Raises: ValueError for x outside bounds, an old-style key, eps of 0, steps below 1, and
    where f returns neither `[B]` nor `[B, K]`.

    >>> pairs = ascended_pairs(jax.random.key(0), lambda x: 3 * x[:, 0], jnp.full((1, 2), 0.5))
    >>> pairs.quotients.round(2)
    Array([3.], dtype=float32)
    """
    norm, label_norm = by_name(norm), by_name(label_norm)
    _check(f, x)
    at_least_one("ascended_pairs", steps=steps)
    if not isinstance(eps, Tracer) and not (np.asarray(eps) > 0).all():
        raise ValueError(f"eps = {eps}; the distance of a pair must be more than 0.")
    check_inside(x, bounds)
    low, high = bounds
    given, x = partial(jax.lax.convert_element_type, new_dtype=x.dtype), wide(x)

    def quotient(u: Array, v: Array) -> Array:
        u, v = given(u), given(v)
        gap = label_norm.size((wide(f(u)) - wide(f(v))).reshape(x.shape[0], -1))
        length = norm.size(wide(u) - wide(v))
        return jnp.where(length > 0, gap / jnp.where(length > 0, length, 1.0), 0.0)

    def fit(u: Array, v: Array) -> tuple[Array, Array]:
        """The pair stretched to eps where it is shorter, then shifted into the box."""
        length = norm.size(u - v)
        apart = jnp.maximum(eps / jnp.where(length > 0, length, 1.0), 1.0)
        half = jnp.clip((u - v) / 2 * expand(apart, x), (low - high) / 2, (high - low) / 2)
        middle = jnp.clip((u + v) / 2, low + jnp.abs(half), high - jnp.abs(half))
        return jnp.clip(middle + half, low, high), jnp.clip(middle - half, low, high)

    def ascend(t: Array, carry: tuple[Pairs, Array]) -> tuple[Pairs, Array]:
        best, rates = carry
        u, v, _ = best
        to_u, to_v = jax.grad(lambda u, v: quotient(u, v).sum(), (0, 1))(u, v)
        # In the same direction (1) or in opposite ones (-1), which is much steeper: if one move did
        # both, the pair would turn and stay where it is.
        turn = t % 2
        sign = (1 - 2 * turn).astype(x.dtype)
        slope = finite(to_u) + sign * finite(to_v)
        if norm.p < 2:  # few entries move: those that can in the box
            both = within(within(slope, u, bounds), v, bounds)
            slope = jnp.where(turn == 0, both, slope)
        move = norm.direction(slope).astype(x.dtype)
        move = expand(rates[turn] * norm.size(u - v), x) * move
        u, v = fit(u + move, v + sign * move)
        tried = Pairs(u, v, quotient(u, v))
        better = tried.quotients > best.quotients
        best = Pairs(*(select(better, a, b) for a, b in zip(tried, best, strict=True)))
        return best, rates.at[turn].multiply(jnp.where(better, GROWTH, DECAY))

    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))
    away = norm.direction(noise(example_keys(key, x.shape[0]))).astype(x.dtype)
    u, v = fit(x, x + expand(eps, x) * away)
    start = Pairs(u, v, quotient(u, v))
    rates = jnp.full((2, x.shape[0]), step_size, start.quotients.dtype)
    best, _ = jax.lax.fori_loop(0, steps, ascend, (start, rates), unroll=unroll)
    return jax.lax.stop_gradient(Pairs(given(best.x1), given(best.x2), best.quotients))


def _check(f: Callable[[Array], Array], x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; want floating points [B, ...].")
    out = output(f, x)
    if not hasattr(out, "shape") or out.ndim not in (1, 2) or out.shape[0] != x.shape[0]:
        got = list(out.shape) if hasattr(out, "shape") else type(out).__name__
        raise ValueError(f"f must return [{x.shape[0]}] or [{x.shape[0]}, K]; it returned {got}.")
