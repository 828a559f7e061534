"""Elementwise operations on intervals: what they make of boxes, and between what their slopes lie.

A rule takes a box `(low, high)` for each argument, and returns a box of the value and for each
argument a box of the partial slope.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["AFFINE", "ELEMENTWISE", "Box", "Rule", "hull", "most", "product"]

Box = tuple[Any, Any]
Rule = Callable[..., tuple[Box, tuple[Box, ...]]]
ONE, MINUS = (1.0, 1.0), (-1.0, -1.0)


def hull(*values: Any) -> Box:
    return reduce(jnp.minimum, values), reduce(jnp.maximum, values)


def product(a: Box, b: Box) -> Box:
    return hull(a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1])


def most(a: Box) -> Array:
    return jnp.maximum(jnp.abs(a[0]), jnp.abs(a[1]))


def _slack(a: Array, b: Array) -> Array:
    """Below this, a difference of a and b is rounding: kinks lie on the edges of cells."""
    tiny = float(jnp.finfo(jnp.result_type(a)).eps) ** (2 / 3)
    return tiny * (1 + jnp.minimum(jnp.abs(a), jnp.abs(b)))


def _sides(a: Box, b: Box) -> tuple[Array, Array]:
    """Whether `a >= b` is sure, and whether `a <= b` is; both where all are equal."""
    return a[0] >= b[1] - _slack(a[0], b[1]), a[1] <= b[0] + _slack(a[1], b[0])


def _divide(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    clear = (b[0] > 0) | (b[1] < 0)
    inverse = jnp.where(clear, 1 / b[1], -jnp.inf), jnp.where(clear, 1 / b[0], jnp.inf)
    value = product(a, inverse)
    return value, (inverse, product(product(value, inverse), MINUS))


def _maximum(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    above, below = _sides(a, b)
    first = jnp.where(above, 1.0, 0.0), jnp.where(below & ~above, 0.0, 1.0)
    value = jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1])
    return value, (first, (1 - first[1], 1 - first[0]))


def _minimum(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    (low, high), slopes = _maximum(product(a, MINUS), product(b, MINUS))
    return (-high, -low), slopes


def _absolute(a: Box) -> tuple[Box, tuple[Box, ...]]:
    value, (up, down) = _maximum(a, product(a, MINUS))
    least = jnp.maximum(value[0], 0.0)
    return (least, value[1]), ((up[0] - down[1], up[1] - down[0]),)


def _power(a: Box, y: int) -> tuple[Box, tuple[Box, ...]]:
    if y < 1:
        raise ValueError(f"No bound for the power {y} of a value that depends on x; want y >= 1.")

    def power(y: int) -> Box:
        if y % 2 or y == 0:
            return a[0] ** y, a[1] ** y
        near = jnp.maximum(jnp.maximum(a[0], -a[1]), 0.0)
        return near**y, most(a) ** y

    return power(y), (product(power(y - 1), (float(y), float(y))),)


def _convex(f: Callable, slope: Callable, least: float, a: Box) -> tuple[Box, tuple[Box, ...]]:
    """Increasing on `[least, inf)`, with a slope that is monotone."""
    low, high = jnp.maximum(a[0], least), jnp.maximum(a[1], least)
    return (f(low), f(high)), (hull(slope(low), slope(high)),)


def _sigmoid(f: Callable, slope: Callable, a: Box) -> tuple[Box, tuple[Box, ...]]:
    """Increasing, with a slope that is even and falls from 0 on."""
    near = jnp.maximum(jnp.maximum(a[0], -a[1]), 0.0)
    return (f(a[0]), f(a[1])), ((slope(most(a)), slope(near)),)


def _compare(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    """`a > b`: (1, 1) where it is sure, (0, 0) where its opposite is, (1, 0) where `a = b`."""
    above, below = _sides(a, b)
    value = jnp.where(above, 1.0, 0.0), jnp.where(below, 0.0, 1.0)
    return value, ((-1.0, 1.0), (-1.0, 1.0))


def _select(which: Box, *cases: Box) -> tuple[Box, tuple[Box, ...]]:
    """Continuous if both cases agree where they meet; where that is not seen, of slope inf."""
    if len(cases) != 2:
        raise ValueError(f"No bound for a select_n of {len(cases)} cases; want 2.")
    off, on = cases
    yes, no = which[0] >= 1, which[1] <= 0
    low, high = (jnp.where(yes, t, f) for f, t in zip(off, on, strict=True))
    both = hull(*on, *off)
    meet = both[1] - both[0] <= _slack(*both)
    jump = jnp.where((yes ^ no) | (yes & meet), 0.0, jnp.inf)
    value = jnp.where(yes ^ no, low, both[0]), jnp.where(yes ^ no, high, both[1])
    pick, other = jnp.where(yes, 1.0, 0.0), jnp.where(yes, 0.0, 1.0)
    return value, ((-jump, jump), (other, other), (pick, pick))


def _erf_slope(x: Array) -> Array:
    return 2 / math.sqrt(math.pi) * jnp.exp(-x * x)


def _erfc(a: Box) -> tuple[Box, tuple[Box, ...]]:
    (_, _), (slope,) = _sigmoid(jax.lax.erf, _erf_slope, a)
    return (jax.lax.erfc(a[1]), jax.lax.erfc(a[0])), (product(slope, MINUS),)


def _logistic_slope(x: Array) -> Array:
    return jax.lax.logistic(x) * jax.lax.logistic(-x)


ELEMENTWISE: dict[str, Rule] = {
    "add": lambda a, b: ((a[0] + b[0], a[1] + b[1]), (ONE, ONE)),
    "sub": lambda a, b: ((a[0] - b[1], a[1] - b[0]), (ONE, MINUS)),
    "neg": lambda a: ((-a[1], -a[0]), (MINUS,)),
    "mul": lambda a, b: (product(a, b), (b, a)),
    "div": _divide,
    "max": _maximum,
    "min": _minimum,
    "abs": _absolute,
    "square": partial(_power, y=2),
    "integer_pow": _power,
    "exp": partial(_convex, jnp.exp, jnp.exp, -math.inf),
    "expm1": partial(_convex, jnp.expm1, jnp.exp, -math.inf),
    "log": partial(_convex, jnp.log, lambda x: 1 / x, 0.0),
    "log1p": partial(_convex, jnp.log1p, lambda x: 1 / (1 + x), -1.0),
    "sqrt": partial(_convex, jnp.sqrt, lambda x: 0.5 / jnp.sqrt(x), 0.0),
    "tanh": partial(_sigmoid, jnp.tanh, lambda x: 1 / jnp.cosh(x) ** 2),
    "logistic": partial(_sigmoid, jax.lax.logistic, _logistic_slope),
    "erf": partial(_sigmoid, jax.lax.erf, _erf_slope),
    "erfc": _erfc,
    "gt": _compare,
    "ge": _compare,
    "lt": lambda a, b: _compare(b, a),
    "le": lambda a, b: _compare(b, a),
    "select_n": _select,
}
AFFINE = {"add", "sub", "neg", "mul", "div"}
