"""What the walk knows about a number that depends on x: a root, and an expression built on it."""

import dataclasses
from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.slopes import (
    AFFINE,
    ANY,
    CONDITIONS,
    Box,
    Rule,
    divide,
    length,
    most,
    outward,
    plus,
    product,
    upper,
)

__all__ = ["Root", "Value", "bound", "evaluate", "settle"]


@dataclasses.dataclass(frozen=True, eq=False)
class Root:
    """w in `box`, `dw = slope * dh`, `||dh|| <= lip ||dx||`, `|dh_i| <= rows_i ||dx||`.

    A matrix or convolution also has `norm(c)`, a bound of `||diag(c) dh|| / ||dx||` for constants
    `c >= 0`, which replaces lip; a matrix has `matrix`, with `dh = matrix u` and `||u|| <= ||dx||`.
    Their slope is 1.
    """

    box: Box
    centre: Box | None  # w at the centre of a ball, if there is one
    slope: Box
    lip: Any  # None beside norm
    rows: Array
    norm: Callable[[Array], Array] | None = None
    matrix: Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An elementwise expression on a root: the root itself, or `rule` of values and constants."""

    root: Root
    name: str = ""
    rule: Rule | None = None
    args: tuple[Any, ...] = ()

    @property
    def sources(self) -> list["Value"]:
        return [a for a in self.args if isinstance(a, Value)]

    @property
    def affine(self) -> bool:
        """Whether it is affine in the root; a quotient is if its divisor is a constant."""
        once = self.name in AFFINE and len(self.sources) == 1 and self.sources[0].affine
        return self.rule is None or (once and (self.name != "div" or self.args[0] in self.sources))

    @property
    def tangled(self) -> bool:
        """Whether several paths lead to the root, whose dependence boxes alone would lose; or a
        condition switches cases, whose values are to be compared there."""
        return (
            self.name == "select_n" or len(self.sources) > 1 or any(a.tangled for a in self.sources)
        )

    @property
    def start(self) -> "Value":
        """The affine value that the nonlinear operations set out from."""
        return self if self.affine else self.sources[0].start


def evaluate(value: Value, box: Box, seen: dict | None = None) -> tuple[Box, Box]:
    """Boxes of the value and of its slope in the root, for roots in `box`."""
    seen = {} if seen is None else seen
    if value not in seen and value.rule is None:
        seen[value] = box, (jnp.ones_like(box[0]), jnp.ones_like(box[0]))
    if value not in seen:
        pairs = [
            evaluate(a, box, seen) if isinstance(a, Value) else ((a, a), None) for a in value.args
        ]
        out, partials = cast(Rule, value.rule)(*(box for box, _ in pairs))
        slopes = [product(d, s) for d, (_, s) in zip(partials, pairs, strict=True) if s is not None]
        slope = ANY if value.name in CONDITIONS else reduce(plus, slopes)
        like = box[0]
        full = lambda v: jnp.broadcast_to(jnp.asarray(v, like.dtype), like.shape)
        seen[value] = jax.tree.map(full, (out, slope))
    return seen[value]


# Activations have their kinks at small multiples of 1/2, bend between and are straight far out.
_TAIL = 4 * 1.2 ** np.arange(1, 44)
EDGES = np.concatenate([[-np.inf], -_TAIL[::-1], np.arange(-64, 65) / 16, _TAIL, [np.inf]])


def bound(value: Value) -> tuple[Box, Box, Box]:
    """Boxes of the value and its slope, and of the slope of the affine part that comes first."""
    box, start = value.root.box, value.start
    zero = jnp.zeros_like(box[0])
    shift, scale = evaluate(start, (zero, zero))
    if not value.tangled:
        return *evaluate(value, box), scale
    least, greatest = evaluate(start, box)[0]

    def cell(hull: tuple[Box, Box], edges: Array) -> tuple[tuple[Box, Box], None]:
        """The hull widened by one cell: its values and slopes, and the jump, if any, at its end."""
        begin, end = (jnp.clip(edge, least, greatest) for edge in edges)
        # Cells divide the affine part, not the root: there kinks lie exactly on edges.
        parts = jax.tree.map(lambda *v: jnp.stack(v), (begin, end), (end, end))
        values, slopes = jax.vmap(within)(parts)
        # A cell outside of the box is clipped to a point, whose only slope is that of a jump.
        empty = (begin == end) & (least < greatest)
        inner = jnp.where(empty, jnp.inf, slopes[0][0]), jnp.where(empty, -jnp.inf, slopes[1][0])
        ends = (jnp.where(jnp.isfinite(s[1]), i, s[1]) for s, i in zip(slopes, inner, strict=True))
        now = (values[0].min(0), values[1].max(0)), tuple(ends)
        widen = lambda a, b: (jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1]))
        return (widen(hull[0], now[0]), widen(hull[1], now[1])), None

    def within(part: Box) -> tuple[Box, Box]:
        low, high = divide(plus(part, (-shift[1], -shift[0])), scale)
        # A constant affine part has the same value at every root.
        moves = (scale[0] > 0) | (scale[1] < 0)
        low = jnp.where(moves, jnp.clip(low, *box), box[0])
        high = jnp.where(moves, jnp.clip(high, *box), box[1])
        return evaluate(value, (low, high), {start: (part, scale)})

    pairs = jnp.asarray(np.stack([EDGES[:-1], EDGES[1:]], 1), box[0].dtype)
    nothing = jnp.full_like(box[0], jnp.inf), jnp.full_like(box[0], -jnp.inf)
    (values, slopes), _ = jax.lax.scan(cell, (nothing, nothing), pairs)
    return values, slopes, scale


def settle(value: Value) -> Root:
    """The value as a root of its own, bounded now."""
    root = value.root
    box, slope, scale = bound(value)
    centre = root.centre and evaluate(value, root.centre)[0]
    if root.norm is None:
        return Root(box, centre, product(slope, root.slope), root.lip, root.rows)
    # The affine part joins the weights before it, the rest waits for the weights after it.
    unit = most(scale)
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1.0)
    rows = unit * root.rows
    lip = jnp.minimum(upper(root.norm(unit)), length(rows))
    return Root(box, centre, product(slope, outward((1 / unit, 1 / unit))), lip, rows)
