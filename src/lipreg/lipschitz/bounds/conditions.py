"""Comparisons, what is made of them, and the choice between two cases, on intervals.

The box of a condition is (1, 1) where it is true, (0, 0) where it is false, (0, 1) where it may be
either, and (1, 0) at a point where it switches, and where both cases are to be compared.
"""

import jax.numpy as jnp

from lipreg.lipschitz.bounds.intervals import ANY, Box, hull, most

__all__ = ["COMPARED", "CONDITIONS", "ORDERED", "RULES"]


def greater(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    """`a > b`: (1, 1) where it is sure, (0, 0) where its opposite is, (1, 0) where `a = b`."""
    value = jnp.where(a[0] >= b[1], 1.0, 0.0), jnp.where(a[1] <= b[0], 0.0, 1.0)
    return value, (ANY, ANY)


def equal(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    """`a = b`: (1, 0) at a point where it is, (0, 0) where it is at one end at most."""
    switch = (a[0] > a[1]) | (b[0] > b[1])  # of two conditions
    sure = (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])
    apart = (a[0] >= b[1]) | (a[1] <= b[0])
    value = jnp.where(sure, 1.0, 0.0), jnp.where(sure | apart, 0.0, 1.0)
    known = jnp.where((a[0] < a[1]) | (b[0] < b[1]), 0.0, 1.0)
    value = jnp.where(switch, known, value[0]), jnp.where(switch, 1 - known, value[1])
    return value, (ANY, ANY)


def negated(a: Box) -> tuple[Box, tuple[Box, ...]]:
    return (1 - a[1], 1 - a[0]), (ANY,)


def both(a: Box, b: Box) -> tuple[Box, tuple[Box, ...]]:
    """`a & b`: false where one is, else anything where one is anything."""
    false = ((a[0] <= 0) & (a[1] <= 0)) | ((b[0] <= 0) & (b[1] <= 0))
    anything = ((a[0] < a[1]) | (b[0] < b[1])) & ~false
    value = jnp.minimum(a[0], b[0]), jnp.minimum(a[1], b[1])
    return (jnp.where(anything, 0.0, value[0]), jnp.where(anything, 1.0, value[1])), (ANY, ANY)


def finite(a: Box) -> tuple[Box, tuple[Box, ...]]:
    """Whether values are in the range of float32, in which most functions compute."""
    sure = jnp.where(most(a) <= float(jnp.finfo(jnp.float32).max), 1.0, 0.0)
    return (sure, jnp.ones_like(sure)), (ANY,)


def select(which: Box, *cases: Box) -> tuple[Box, tuple[Box, ...]]:
    """Continuous if both cases agree where the condition switches; otherwise the slope is inf.

    They agree if their boxes there, points up to rounding, intersect. The condition's own slope is
    not used: at a kink it may be 0 on one side.
    """
    if len(cases) != 2:
        raise ValueError(f"No bound for a select_n of {len(cases)} cases; want 2.")
    off, on = cases
    yes, no = which[0] >= 1, which[1] <= 0
    sure, tie = yes ^ no, yes & no
    any_of = hull(*on, *off)
    meet = jnp.maximum(on[0], off[0]) <= jnp.minimum(on[1], off[1])
    jump = jnp.where(sure | (tie & meet), 0.0, jnp.inf)
    low, high = (
        jnp.where(sure, jnp.where(yes, t, f), end)
        for f, t, end in zip(off, on, any_of, strict=True)
    )
    pick = jnp.where(yes & ~no, 1.0, 0.0), jnp.where(no & ~yes, 0.0, 1.0)
    return (low, high), ((-jump, jump), (1 - pick[1], 1 - pick[0]), pick)


RULES = {
    "gt": greater,
    "ge": greater,
    "lt": lambda a, b: greater(b, a),
    "le": lambda a, b: greater(b, a),
    "eq": equal,
    "ne": lambda a, b: (negated(equal(a, b)[0])[0], (ANY, ANY)),
    "is_finite": finite,
    "not": negated,
    "and": both,
    "or": lambda a, b: (negated(both(negated(a)[0], negated(b)[0])[0])[0], (ANY, ANY)),
    "select_n": select,
}
ORDERED = {"gt", "ge", "lt", "le"}
COMPARED = {*ORDERED, "eq", "ne"}
CONDITIONS = {*RULES} - {"select_n"}
