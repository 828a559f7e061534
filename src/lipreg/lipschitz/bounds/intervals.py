"""Interval arithmetic: boxes `(low, high)`, rounded outwards.

0, and values that are only compared, moved or negated, stay exact, so that kinks are located
exactly.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "ANY",
    "MINUS",
    "ONE",
    "UNDERFLOW",
    "Box",
    "Rule",
    "divide",
    "hull",
    "largest",
    "length",
    "most",
    "negative",
    "outward",
    "plus",
    "product",
    "reciprocal",
    "times",
    "upper",
]

Box = tuple[Any, Any]
Rule = Callable[..., tuple[Box, tuple[Box, ...]]]  # the value and the slope in each argument
UNDERFLOW = 1e-280  # more than what a square lacks that is below the smallest number
ONE, MINUS, ANY = (1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0)


def hull(*values: Any) -> Box:
    return reduce(jnp.minimum, values), reduce(jnp.maximum, values)


# Jitted, so that many calls are traced once.
@partial(jax.jit, static_argnames="ulps")
def outward(a: Box, ulps: float = 2.0) -> Box:
    """The box widened by `ulps` units in the last place; NaN becomes unbounded.

    A low end of inf becomes the largest finite number, a high end of -inf the lowest, so that
    sums of boxes are never `inf - inf`.
    """
    info = jnp.finfo(jnp.result_type(*a))
    unit, far = ulps * float(info.eps), float(info.max)

    def farther(end: Array, sign: int) -> Array:
        past = jnp.where(sign * end < 0, -sign * far, sign * jnp.inf)  # inf or NaN
        return jnp.where(jnp.isfinite(end), end + sign * unit * jnp.abs(end), past)

    return farther(a[0], -1), farther(a[1], 1)


def upper(a: Any) -> Array:
    """An upper bound, with inf for NaN."""
    return jnp.where(jnp.isnan(a), jnp.inf, a)


def largest(a: Array) -> Array:
    """The largest of some sizes; 0 if there are none."""
    return a.max(initial=0.0)


def length(a: Array) -> Array:
    """`||a||_2`, computed relative to the largest entry, lest squares underflow."""
    unit = largest(jnp.abs(a))
    return upper(jnp.linalg.norm(a / jnp.where(unit > 0, unit, 1.0)) * unit)


def times(a: Any, b: Any) -> Array:
    """`a b` with `0 inf = 0`: an infinite bound stands for a finite number."""
    return jnp.where((a == 0) | (b == 0), 0.0, a * b)


def product(a: Box, b: Box) -> Box:
    if a is ONE:
        return b
    return negative(b) if a is MINUS else _product(a, b)


@jax.jit
def _product(a: Box, b: Box) -> Box:
    corners = [(x, y, times(x, y)) for x in a for y in b]
    low, high = hull(*(xy for *_, xy in corners))
    tiny = float(jnp.finfo(jnp.result_type(low)).tiny)
    lost = [(x != 0) & (y != 0) & (jnp.abs(xy) < tiny) for x, y, xy in corners]  # to an underflow
    room = jnp.where(reduce(jnp.logical_or, lost), tiny, 0.0)
    return outward((low - room, high + room))


def plus(a: Box, b: Box) -> Box:
    return outward((a[0] + b[0], a[1] + b[1]))


def negative(a: Box) -> Box:
    return -a[1], -a[0]


def most(a: Box) -> Array:
    return jnp.maximum(jnp.abs(a[0]), jnp.abs(a[1]))


def reciprocal(a: Box) -> Box:
    """All numbers, where 0 is in the box."""
    clear = (a[0] > 0) | (a[1] < 0)
    safe = tuple(jnp.where(clear, end, 1.0) for end in a)
    inverse = outward((1 / safe[1], 1 / safe[0]))
    return jnp.where(clear, inverse[0], -jnp.inf), jnp.where(clear, inverse[1], jnp.inf)


def divide(a: Box, b: Box) -> Box:
    return product(a, reciprocal(b))
