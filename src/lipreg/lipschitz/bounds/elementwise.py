"""Elementwise operations on intervals: boxes of their values and of their slopes.

A rule takes a box `(low, high)` for each argument, and returns a box of the value and for each
argument a box of the partial slope.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.lipschitz.bounds import conditions
from lipreg.lipschitz.bounds.intervals import (
    MINUS,
    ONE,
    Box,
    Rule,
    divide,
    hull,
    most,
    negative,
    outward,
    plus,
    product,
    reciprocal,
)

__all__ = ["AFFINE", "ELEMENTWISE", "KINKED"]

# Units in the last place: twice the largest error measured of XLA's functions (erfc's tail).
FUNCTIONS = 64


def _function(low: Any, high: Any, least: float = -math.inf, greatest: float = math.inf) -> Box:
    """The box of computed values that are known to lie between two numbers."""
    low, high = outward((low, high), FUNCTIONS)
    tiny = float(jnp.finfo(low.dtype).tiny)  # a value that underflows is not 0
    return jnp.maximum(low - tiny, least), jnp.minimum(high + tiny, greatest)


def _divide(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    inverse = reciprocal(b)
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
    def power(y: int) -> Box:
        if y < 0:
            return divide(ONE, power(-y))
        if y % 2 or y == 0:
            return outward((a[0] ** y, a[1] ** y), 2.0 * y)
        near = jnp.maximum(jnp.maximum(a[0], -a[1]), 0.0)
        return outward((near**y, most(a) ** y), 2.0 * y)

    return power(y), (product(power(y - 1), (float(y), float(y))),)


def _pow(a: Box, y: Box) -> tuple[Box, tuple[Box, ...]]:
    """`a^y`: monotone in each for `a >= 0`, and of the sign `(-1)^y` where a < 0 and y is whole."""
    whole = (y[0] == y[1]) & (jnp.floor(y[0]) == y[0])

    def power(y: Box, odd: Array) -> Box:
        def above(low: Any, high: Any) -> Box:
            powers = (_from(0.0, partial(_to, e), end) for end in (low, high) for e in y)
            return _function(*hull(*powers), least=0.0)

        right, left = above(*a), above(-a[1], -a[0])
        left = jnp.where(odd, -left[1], left[0]), jnp.where(odd, -left[0], left[1])
        mirrored, straight = whole & (a[0] < 0), ~whole | (a[1] >= 0)
        low, high = (
            (jnp.where(straight, r, end), jnp.where(mirrored, m, end))
            for r, m, end in zip(right, left, (jnp.inf, -jnp.inf), strict=True)
        )
        return jnp.minimum(*low), jnp.maximum(*high)

    odd = jnp.mod(y[0], 2.0) == 1
    value, less = power(y, odd), plus(y, MINUS)
    logarithm, _ = _monotone(jnp.log, jnp.reciprocal, a, domain=0.0)
    return value, (product(y, power(less, ~odd)), product(value, logarithm))


def _to(e: Any, x: Any) -> Array:
    return jnp.power(x, e)


def _from(domain: float, f: Callable, x: Any) -> Array:
    """f(x), or what it is at the domain's end, for x before that: the 0 of XLA may be -0."""
    if domain == -math.inf:
        return f(x)
    return jnp.where(x > domain, f(x), f(jnp.full_like(x, domain)))


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
    values, slopes = ([_from(domain, g, end) for end in a] for g in (f, slope))
    ends, slopes = values[::sign], hull(*slopes)
    # The slope does not change sign.
    slopes = _function(*slopes, least=0.0) if sign > 0 else _function(*slopes, greatest=0.0)
    return _function(*ends, least=least), (slopes,)


def _sigmoid(
    f: Callable, slope: Callable, a: Box, *, least: float = -1.0, greatest: float = 1.0
) -> tuple[Box, tuple[Box, ...]]:
    """Increasing from `least` to `greatest`, with an even slope that decreases from 0 on."""
    near = jnp.maximum(jnp.maximum(a[0], -a[1]), 0.0)
    value = _function(f(a[0]), f(a[1]), least, greatest)
    return value, (_function(slope(most(a)), slope(near), 0.0),)


def _wave(f: Callable, top: float, a: Box) -> Box:
    """A sine or cosine, which is 1 at `top`: what it is at the ends, and 1 and -1 in between."""
    low, high = hull(f(a[0]), f(a[1]))

    def inside(point: float) -> Array:
        turn, room = 2 * math.pi, 1e-12 * (1 + most(a))
        first = jnp.ceil((a[0] - room - point) / turn)
        return first <= jnp.floor((a[1] + room - point) / turn)

    low = jnp.where(inside(top + math.pi), -1.0, low)
    return _function(low, jnp.where(inside(top), 1.0, high), -1.0, 1.0)


def _sin(a: Box) -> tuple[Box, tuple[Box, ...]]:
    return _wave(jnp.sin, math.pi / 2, a), (_wave(jnp.cos, 0.0, a),)


def _cos(a: Box) -> tuple[Box, tuple[Box, ...]]:
    return _wave(jnp.cos, 0.0, a), (negative(_wave(jnp.sin, math.pi / 2, a)),)


def _erf_slope(x: Array) -> Array:
    return 2 / math.sqrt(math.pi) * jnp.exp(-x * x)


def _erfc(a: Box) -> tuple[Box, tuple[Box, ...]]:
    _, (slope,) = _sigmoid(jax.lax.erf, _erf_slope, a)
    return _function(jax.lax.erfc(a[1]), jax.lax.erfc(a[0]), 0.0, 2.0), (negative(slope),)


def _power_of_2(x: Array) -> Array:
    return jnp.power(2.0, x)


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
    "pow": _pow,
    "exp": partial(_monotone, jnp.exp, jnp.exp, least=0.0),
    # XLA's own exp2 is wrong by hundreds of units in the last place.
    "exp2": partial(_monotone, _power_of_2, lambda x: math.log(2) * _power_of_2(x), least=0.0),
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
    "atan": partial(
        _sigmoid,
        jnp.arctan,
        lambda x: 1 / (1 + x * x),
        least=-math.nextafter(math.pi / 2, 2.0),
        greatest=math.nextafter(math.pi / 2, 2.0),
    ),
    "asinh": partial(
        _sigmoid,
        jnp.arcsinh,
        lambda x: 1 / jnp.sqrt(1 + x * x),
        least=-math.inf,
        greatest=math.inf,
    ),
    "sin": _sin,
    "cos": _cos,
    "erf": partial(_sigmoid, jax.lax.erf, _erf_slope),
    "erfc": _erfc,
    **conditions.RULES,
}
AFFINE = {"add", "sub", "neg", "mul", "div"}
# These are straight between their kinks.
KINKED = {"max", "min", "clamp", "abs", "sign", *conditions.RULES}
