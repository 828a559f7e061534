"""The norm of an attack, its dual, and the direction that pairs them (Theorem 2.2 of 1810.00953).

Every attack, penalty and distance is written once, for any `Norm`. All functions take a batch
`v [B, ...]` and treat each example by itself. They compute in float32 or wider and have finite
derivatives at `v = 0`, to second order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = [
    "L1",
    "L2",
    "LINF",
    "NORMS",
    "Norm",
    "NormLike",
    "by_name",
    "expand",
    "finite",
    "largest",
    "lp",
    "random_in_ball",
    "select",
    "wide",
]


class Norm(NamedTuple):
    """An l_p norm on examples, as four functions.

    Attributes:
      name: how tables and pictures write it.
      p: its exponent, `1 <= p <= inf`.
      size: `||v||_p`, `[B, ...] -> [B]`.
      dual: `max {<a, g> : ||a||_p <= 1} = ||g||_q`, `1/p + 1/q = 1`, `[B, ...] -> [B]`.
      direction: the `a` that attains it: `||a||_p = 1`, `<a, g> = ||g||_q`; 0 where `g = 0`.
      project: `(v, eps) -> v` in the ball of radius `eps` (a number or `[B]`).
    """

    name: str
    p: float
    size: Callable[[Array], Array]
    dual: Callable[[Array], Array]
    direction: Callable[[Array], Array]
    project: Callable[[Array, ArrayLike], Array]

    def __repr__(self) -> str:
        return self.name.upper() if self.name in NORMS else f"lp({self.p:g})"


NormLike = Norm | str  # "l2" for L2


def expand(s: ArrayLike, v: Array) -> Array:
    """`s`, a number or `[B]`, in the type of `v [B, ...]` and shaped to broadcast against it."""
    s = jnp.asarray(s, v.dtype)
    return s.reshape(s.shape + (1,) * (v.ndim - s.ndim))


def select(mask: Array, a: Array, b: Array) -> Array:
    """Row i of `a` where `mask[i]`, of `b` elsewhere: `[B], [B, ...], [B, ...] -> [B, ...]`."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)


def finite(g: Array) -> Array:
    """A gradient with 0 for each entry that is not finite, such as a square root's at 0."""
    return jnp.where(jnp.isfinite(g), g, 0.0)


def wide(v: Array) -> Array:
    """In float32, or its own type where that is wider: strict promotion refuses to mix them."""
    return v if jnp.finfo(v.dtype).bits >= 32 else v.astype(jnp.float32)


def largest(v: Array) -> Array:
    """`max_i v_i` over the last axis; its derivative is that of the first entry that attains it.

    `jnp.max` finds that entry by comparison, and has the derivative 0/0 where a compiled program
    computes the entries a second time and rounds them differently.
    """
    return jnp.take_along_axis(v, jnp.argmax(v, -1, keepdims=True), -1)[..., 0]


def _flat(v: Array) -> Array:
    # Not -1, which is ambiguous for arrays without pixels or examples.
    return wide(v).reshape(v.shape[0], math.prod(v.shape[1:]))


def _power_size(v: Array, p: float) -> Array:
    """`(sum |v|^p)^(1/p)` for finite p, without overflow, underflow or a NaN derivative at 0."""
    v = jnp.abs(_flat(v))
    if p == 1:
        return v.sum(1)
    # Divided by its largest entry, a gradient of 1e-30 (a saturated network's) keeps its norm.
    # The norm does not depend on this scale, so its derivative may ignore it.
    scale = jax.lax.stop_gradient(v.max(1, keepdims=True, initial=0.0))
    scale = jnp.where((scale > 0) & (scale < jnp.inf), scale, 1.0)
    v = v / scale
    # Both selections of the double `where` matter: the inner one keeps 0 out of the power, whose
    # derivative is infinite there, and the outer one restores the value. NaN is kept.
    entries = jnp.where(v == 0, 0.0, jnp.where(v == 0, 1.0, v) ** p)
    total = entries.sum(1)
    root = jnp.where(total == 0, 1.0, total) ** (1 / p)
    return jnp.where(total == 0, 0.0, root) * scale[:, 0]


def _size(v: Array, p: float) -> Array:
    if p == math.inf:
        return largest(jnp.abs(_flat(v))) if v.size else jnp.zeros(v.shape[0], wide(v).dtype)
    return _power_size(v, p)


def _direction(g: Array, p: float) -> Array:
    flat = _flat(g)
    if p == math.inf or not g.size:
        step = jnp.sign(flat)
    elif p == 1:
        # All the weight on one coordinate: at equal entries the first, not a share for each.
        top = jnp.argmax(jnp.abs(flat), axis=1)
        step = jnp.sign(flat) * jax.nn.one_hot(top, flat.shape[1], dtype=flat.dtype)
    else:
        q = p / (p - 1)
        # The direction does not depend on this scale, so its derivative may ignore it.
        size = jax.lax.stop_gradient(jnp.abs(flat).max(1, keepdims=True))
        flat = flat / jnp.where(size > 0, size, 1.0)
        still = flat == 0  # where the power has an infinite derivative, for p above 2
        step = jnp.sign(flat) * jnp.where(
            still, 0.0, jnp.where(still, 1.0, jnp.abs(flat)) ** (q - 1)
        )
        length = _power_size(step, p)[:, None]
        step = step / jnp.where(length > 0, length, 1.0)
    return step.reshape(g.shape)


def _project(v: Array, eps: ArrayLike, p: float) -> Array:
    v = wide(v)
    if not v.size:
        return v
    if p == math.inf:
        radius = expand(eps, v)
        return jnp.clip(v, -radius, radius)
    radius = jnp.broadcast_to(jnp.asarray(eps, v.dtype), v.shape[:1])
    if p == 1:
        # Outside, every entry shrinks by one amount, the maximum over k of the amounts that bring
        # the sum of the k largest entries to the radius. Counted from the largest entry, it is
        # exact for small radii.
        flat = jnp.abs(v.reshape(v.shape[0], -1))
        inside = flat.sum(1) <= radius
        flat = flat - flat.max(1, keepdims=True)
        counts = jnp.arange(1, flat.shape[1] + 1, dtype=v.dtype)
        sums = jnp.cumsum(jnp.sort(flat, axis=1, descending=True), axis=1)
        shrink = ((sums - radius[:, None]) / counts[None]).max(1, keepdims=True)
        left = jnp.sign(v) * jnp.maximum(flat - shrink, 0.0).reshape(v.shape)
        return jnp.where(expand(inside.astype(v.dtype), v) > 0, v, left)
    size = _power_size(v, p)
    shrink = jnp.minimum(1.0, radius / jnp.where(size > 0, size, 1.0))
    return v * expand(shrink, v)


def lp(p: float) -> Norm:
    """`||v||_p = (sum |v_i|^p)^(1/p)`, its dual `||g||_q` with `1/p + 1/q = 1`, and the maximiser.

    The maximiser of `<a, g>` over `||a||_p <= 1` is `a = sign(g) |g|^(q-1) / ||g||_q^(q-1)`
    (Theorem 2.2 of 1810.00953): `sign(g)` for p = inf, `g/||g||_2` for p = 2, and for p = 1 the
    sign of the largest entry, there alone.
    `project` is the nearest point in l_2 for p = 1, 2 and inf; for another p it shrinks towards
    the centre, which ends in the ball but not at the nearest point.
    Equal p give the same object, so a norm is a good static argument of `jax.jit`.

    Raises: ValueError where p < 1.

    >>> lp(2).size(jnp.array([[3.0, 4.0]])), lp(2).direction(jnp.array([[3.0, 4.0]]))
    (Array([5.], dtype=float32), Array([[0.6, 0.8]], dtype=float32))
    """
    # functools.cache tells 2 from 2.0.
    return _lp(float(p))


@functools.cache
def _lp(p: float) -> Norm:
    if not p >= 1:
        raise ValueError(f"No l_p norm with p = {p:g}; choose 1 <= p <= inf.")
    q = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
    return Norm(
        name="linf" if p == math.inf else f"l{p:g}",
        p=p,
        size=lambda v: _size(v, p),
        dual=lambda g: _size(g, q),
        direction=lambda g: _direction(g, p),
        project=lambda v, eps: _project(v, eps, p),
    )


L1, L2, LINF = lp(1.0), lp(2.0), lp(math.inf)
NORMS = {norm.name: norm for norm in (L1, L2, LINF)}


def by_name(norm: NormLike) -> Norm:
    """The norm that `l1`, `l2` or `linf` stands for; a norm is returned as it is.

    Raises: ValueError for another name, and for what is no norm.

    >>> by_name("linf"), by_name(L1)
    (LINF, L1)
    """
    if isinstance(norm, Norm):
        return norm
    if not isinstance(norm, str) or norm not in NORMS:
        raise ValueError(f"No norm {norm!r}; choose one of {', '.join(NORMS)}, or lp(p).")
    return NORMS[norm]


def random_in_ball(keys: Array, x: Array, norm: Norm) -> Array:
    """A random point of the unit ball, one key per example; uniform in l_inf, in other norms of
    uniform size: nearly all of a ball's volume is at its surface when there are hundreds of pixels,
    and an attack would first have to undo noise of full size.
    """
    shape, dtype, n = x.shape[1:], x.dtype, math.prod(x.shape[1:])
    if not n:
        return x

    def start(key: Array) -> Array:
        if norm.p == math.inf:
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
        to_point, to_size = jax.random.split(key)
        if norm.p == 2:  # random.ball, for any p, draws slow gamma samples
            point = jax.random.normal(to_point, (1, n), dtype)
        else:
            point = jax.random.ball(to_point, n, norm.p, dtype=dtype)[None]
        size = jax.random.uniform(to_size, (1,), dtype) / jnp.maximum(norm.size(point), 1e-30)
        return (point * size[:, None]).reshape(shape)

    return jax.vmap(start)(keys)
