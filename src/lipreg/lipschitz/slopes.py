"""Elementwise operations on intervals: boxes of their values and of their slopes.

A rule takes a box `(low, high)` for each argument, and returns a box of the value and for each
argument a box of the partial slope. Boxes are rounded outwards; 0, and values that are only
compared, moved or negated, stay exact, so that kinks are located exactly.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "AFFINE",
    "ANY",
    "COMPARED",
    "CONDITIONS",
    "ELEMENTWISE",
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
    "times",
    "upper",
]

Box = tuple[Any, Any]
Rule = Callable[..., tuple[Box, tuple[Box, ...]]]
ONE, MINUS, ANY = (1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0)

# Units in the last place: twice the largest error measured of XLA's functions (erfc's tail).
FUNCTIONS = 64


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
    return outward(hull(*(times(x, y) for x in a for y in b)))


def plus(a: Box, b: Box) -> Box:
    return outward((a[0] + b[0], a[1] + b[1]))


def negative(a: Box) -> Box:
    return -a[1], -a[0]


def most(a: Box) -> Array:
    return jnp.maximum(jnp.abs(a[0]), jnp.abs(a[1]))


def _function(low: Any, high: Any, least: float = -math.inf, greatest: float = math.inf) -> Box:
    """The box of computed values that are known to lie between two numbers."""
    low, high = outward((low, high), FUNCTIONS)
    tiny = float(jnp.finfo(low.dtype).tiny)  # a value that underflows is not 0
    return jnp.maximum(low - tiny, least), jnp.minimum(high + tiny, greatest)


def divide(a: Box, b: Box) -> Box:
    return _divide(a, b)[0]


def _divide(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    clear = (b[0] > 0) | (b[1] < 0)
    safe = tuple(jnp.where(clear, end, 1.0) for end in b)
    inverse = outward((1 / safe[1], 1 / safe[0]))
    inverse = jnp.where(clear, inverse[0], -jnp.inf), jnp.where(clear, inverse[1], jnp.inf)
    value = product(a, inverse)
    return value, (inverse, negative(product(value, inverse)))


def _maximum(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    above, below = a[0] >= b[1], a[1] <= b[0]
    first = jnp.where(above, 1.0, 0.0), jnp.where(below & ~above, 0.0, 1.0)
    value = jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1])
    return value, (first, (1 - first[1], 1 - first[0]))


def _minimum(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    value, slopes = _maximum(negative(a), negative(b))
    return negative(value), slopes


def _clamp(least: Box, a: Box, greatest: Box) -> tuple[Box, tuple[Box, ...]]:
    value, slopes = _maximum(least, a)
    value, (inner, last) = _minimum(value, greatest)
    return value, (product(slopes[0], inner), product(slopes[1], inner), last)


def _absolute(a: Box) -> tuple[Box, tuple[Box, ...]]:
    value, (up, down) = _maximum(a, negative(a))
    least = jnp.maximum(value[0], 0.0)
    return (least, value[1]), ((up[0] - down[1], up[1] - down[0]),)


def _sign(a: Box) -> tuple[Box, tuple[Box, ...]]:
    low, high = jnp.sign(a[0]), jnp.sign(a[1])
    return (low, high), ((jnp.zeros_like(low), jnp.where(low == high, 0.0, jnp.inf)),)


def _power(a: Box, y: int) -> tuple[Box, tuple[Box, ...]]:
    if y < 1:
        raise ValueError(f"No bound for the power {y} of a value that depends on x; want y >= 1.")

    def power(y: int) -> Box:
        if y % 2 or y == 0:
            return outward((a[0] ** y, a[1] ** y), 2.0 * y)
        near = jnp.maximum(jnp.maximum(a[0], -a[1]), 0.0)
        return outward((near**y, most(a) ** y), 2.0 * y)

    return power(y), (product(power(y - 1), (float(y), float(y))),)


def _monotone(
    f: Callable,
    slope: Callable,
    a: Box,
    *,
    domain: float = -math.inf,
    least: float = -math.inf,
    sign: int = 1,
) -> tuple[Box, tuple[Box, ...]]:
    """Increasing, with sign -1 decreasing, from `domain` on, with a monotone slope."""
    low, high = jnp.maximum(a[0], domain), jnp.maximum(a[1], domain)
    ends, slopes = (f(low), f(high))[::sign], hull(slope(low), slope(high))
    # The slope does not change sign.
    slopes = _function(*slopes, least=0.0) if sign > 0 else _function(*slopes, greatest=0.0)
    return _function(*ends, least=least), (slopes,)


def _sigmoid(
    f: Callable, slope: Callable, a: Box, *, least: float = -1.0
) -> tuple[Box, tuple[Box, ...]]:
    """Increasing from `least` to 1, with an even slope that decreases from 0 on."""
    near = jnp.maximum(jnp.maximum(a[0], -a[1]), 0.0)
    return _function(f(a[0]), f(a[1]), least, 1.0), (_function(slope(most(a)), slope(near), 0.0),)


def _compare(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    """`a > b`: (1, 1) where it is sure, (0, 0) where its opposite is, (1, 0) where `a = b`."""
    value = jnp.where(a[0] >= b[1], 1.0, 0.0), jnp.where(a[1] <= b[0], 0.0, 1.0)
    return value, (ANY, ANY)


def _finite(a: Box) -> tuple[Box, tuple[Box, ...]]:
    """Whether values are in the range of float32, in which most functions compute."""
    sure = jnp.where(most(a) <= float(jnp.finfo(jnp.float32).max), 1.0, 0.0)
    return (sure, jnp.ones_like(sure)), (ANY,)


def _select(which: Box, *cases: Box) -> tuple[Box, tuple[Box, ...]]:
    """Continuous if both cases agree where the condition switches; otherwise the slope is inf.

    They agree if their boxes there, points up to rounding, intersect. The condition's own slope is
    not used: at a kink it may be 0 on one side.
    """
    if len(cases) != 2:
        raise ValueError(f"No bound for a select_n of {len(cases)} cases; want 2.")
    off, on = cases
    yes, no = which[0] >= 1, which[1] <= 0
    sure, tie = yes ^ no, yes & no
    both = hull(*on, *off)
    meet = jnp.maximum(on[0], off[0]) <= jnp.minimum(on[1], off[1])
    jump = jnp.where(sure | (tie & meet), 0.0, jnp.inf)
    low, high = (
        jnp.where(sure, jnp.where(yes, t, f), end) for f, t, end in zip(off, on, both, strict=True)
    )
    pick = jnp.where(yes & ~no, 1.0, 0.0), jnp.where(no & ~yes, 0.0, 1.0)
    return (low, high), ((-jump, jump), (1 - pick[1], 1 - pick[0]), pick)


def _erf_slope(x: Array) -> Array:
    return 2 / math.sqrt(math.pi) * jnp.exp(-x * x)


def _erfc(a: Box) -> tuple[Box, tuple[Box, ...]]:
    _, (slope,) = _sigmoid(jax.lax.erf, _erf_slope, a)
    return _function(jax.lax.erfc(a[1]), jax.lax.erfc(a[0]), 0.0, 2.0), (negative(slope),)


def _logistic_slope(x: Array) -> Array:
    return jax.lax.logistic(x) * jax.lax.logistic(-x)


ELEMENTWISE: dict[str, Rule] = {
    "add": lambda a, b: (plus(a, b), (ONE, ONE)),
    "sub": lambda a, b: (plus(a, negative(b)), (ONE, MINUS)),
    "neg": lambda a: (negative(a), (MINUS,)),
    "mul": lambda a, b: (product(a, b), (b, a)),
    "div": _divide,
    "max": _maximum,
    "min": _minimum,
    "clamp": _clamp,
    "abs": _absolute,
    "sign": _sign,
    "square": partial(_power, y=2),
    "integer_pow": _power,
    "exp": partial(_monotone, jnp.exp, jnp.exp, least=0.0),
    "expm1": partial(_monotone, jnp.expm1, jnp.exp, least=-1.0),
    "log": partial(_monotone, jnp.log, lambda x: 1 / x, domain=0.0),
    "log1p": partial(_monotone, jnp.log1p, lambda x: 1 / (1 + x), domain=-1.0),
    "sqrt": partial(_monotone, jnp.sqrt, lambda x: 0.5 / jnp.sqrt(x), domain=0.0, least=0.0),
    "rsqrt": partial(
        _monotone,
        jax.lax.rsqrt,
        lambda x: -0.5 * jax.lax.rsqrt(x) / x,
        domain=0.0,
        least=0.0,
        sign=-1,
    ),
    "tanh": partial(_sigmoid, jnp.tanh, lambda x: 1 / jnp.cosh(x) ** 2),
    "logistic": partial(_sigmoid, jax.lax.logistic, _logistic_slope, least=0.0),
    "erf": partial(_sigmoid, jax.lax.erf, _erf_slope),
    "erfc": _erfc,
    "gt": _compare,
    "ge": _compare,
    "lt": lambda a, b: _compare(b, a),
    "le": lambda a, b: _compare(b, a),
    "is_finite": _finite,
    "select_n": _select,
}
AFFINE = {"add", "sub", "neg", "mul", "div"}
COMPARED = {"gt", "ge", "lt", "le"}
CONDITIONS = {*COMPARED, "is_finite"}  # their values are true, false or either
