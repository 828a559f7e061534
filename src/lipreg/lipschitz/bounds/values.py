"""Elementwise expressions on a root, and their bounds."""

import dataclasses
from functools import cached_property, partial, reduce
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds import ellipsoids
from lipreg.lipschitz.bounds.conditions import COMPARED, CONDITIONS
from lipreg.lipschitz.bounds.elementwise import AFFINE, KINKED
from lipreg.lipschitz.bounds.intervals import (
    ANY,
    Box,
    Rule,
    divide,
    length,
    most,
    negative,
    outward,
    plus,
    product,
    upper,
)
from lipreg.lipschitz.bounds.roots import Root, part_of

__all__ = [
    "Comparison",
    "Value",
    "bound",
    "evaluate",
    "settle",
    "steepest",
]


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
        """Whether it is affine in the root."""
        return self.rule is None or (self.straight and self.sources[0].affine)

    @property
    def straight(self) -> bool:
        """Whether it is affine in its source; a quotient is if its divisor is a constant."""
        once = self.name in AFFINE and len(self.sources) == 1
        return once and (self.name != "div" or isinstance(self.args[0], Value))

    @property
    def squared(self) -> "Value | None":
        """v, where this is `v^2`."""
        twice = self.name == "mul" and self.args[0] is self.args[1]
        twice |= self.name == "square"
        twice |= isinstance(self.rule, partial) and self.rule.keywords == {"y": 2}
        return self.sources[0] if twice else None

    @cached_property
    def bends(self) -> int:
        """How many operations, one after the other, are curved."""
        curved = self.rule is not None and not self.straight and self.name not in KINKED
        return curved + max((a.bends for a in self.sources), default=0)

    @property
    def tangled(self) -> bool:
        """Whether boxes alone would lose how things depend on each other: several paths lead to the
        root, or one through several curves; or a condition switches cases, whose values are to be
        compared there."""
        several = self.name == "select_n" or len(self.sources) > 1 or self.bends > 1
        return several or any(a.tangled for a in self.sources)

    @cached_property
    def kinks(self) -> dict[int, Any]:
        """The constants, by identity, that something is compared with."""
        known = {k: c for a in self.sources for k, c in a.kinks.items()}
        constants = [a for a in self.args if not isinstance(a, Value)]
        compared = self.name in KINKED - {"select_n"}
        return known | {id(c): c for c in constants if compared}

    @property
    def start(self) -> "Value":
        """The affine value that the nonlinear operations set out from."""
        return self if self.affine else self.sources[0].start

    # Once per value, so that whatever is made of it knows that it is the same.
    @cached_property
    def bound(self) -> tuple[Box, Box, Box]:
        return _bound(self)

    @cached_property
    def settled(self) -> Root:
        return _settle(self)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`larger > smaller`, or `>=`, of values of two roots: all that a `where` can do with it is
    choose between the two."""

    larger: Value
    smaller: Value


def bound(value: Value) -> tuple[Box, Box, Box]:
    """Boxes of the value and its slope, and of the slope of the affine part that comes first."""
    return value.bound


def settle(value: Value) -> Root:
    """The value as a root of its own, bounded now."""
    return value.settled


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
        if value.name in COMPARED:
            out = _sure(out, *pairs)
        like = box[0]
        full = lambda v: jnp.broadcast_to(jnp.asarray(v, like.dtype), like.shape)
        seen[value] = jax.tree.map(full, (out, slope))
    return seen[value]


def _sure(out: Box, a: tuple[Box, Any], b: tuple[Box, Any]) -> Box:
    """A comparison of two boxes that touch is sure only where they can be equal at one end alone.

    There a jump is looked for, as at all ends of cells. So it is if the difference is strictly
    monotone; a value that is clipped may be equal to its limit anywhere inside.
    """
    (left, rising), (right, other) = a, b
    still = jnp.zeros_like(left[0]), jnp.zeros_like(left[0])
    low, high = plus(rising or still, negative(other or still))
    touch = (left[0] == right[1]) ^ (left[1] == right[0])
    unsure = touch & (low <= 0) & (high >= 0)
    return jnp.where(unsure, 0.0, out[0]), jnp.where(unsure, 1.0, out[1])


# Activations have their kinks at small multiples of 1/2, bend between and are straight far out.
_TAIL = 4 * 1.2 ** np.arange(1, 44)
MOST = 16  # constants that an expression compares with and that get edges of their own
EDGES = np.concatenate([[-np.inf], -_TAIL[::-1], np.arange(-64, 65) / 16, _TAIL, [np.inf]])


def _bound(value: Value) -> tuple[Box, Box, Box]:
    box, start = value.root.box, value.start
    zero = jnp.zeros_like(box[0])
    shift, scale = evaluate(start, (zero, zero))
    if not value.tangled:
        return *evaluate(value, box), scale
    ((values, slopes),), _ = _by_cells([value], start, shift, scale)
    return values, slopes, scale


def steepest(values: list[Value]) -> Array:
    """`max (sum_k slope_k^2)^(1/2)` of several values of one root, at the same place.

    `relu(w)` and `relu(-w)` have slope 1 where the other has 0.
    """
    root, start = values[0].root, values[0].start
    zero = jnp.zeros_like(root.box[0])
    return _by_cells(values, start, *evaluate(start, (zero, zero)))[1]


def _by_cells(
    values: list[Value], start: Value, shift: Box, scale: Box
) -> tuple[list[tuple[Box, Box]], Array]:
    """Boxes and slopes of each value and the length of their slopes, from cell to cell."""
    box = start.root.box
    least, greatest = evaluate(start, box)[0]
    kinks = _own_edges(values, least)

    def cell(hulls: Any, edges: Array, whole: bool = False) -> tuple[Any, None]:
        """The hulls widened by one cell: values and slopes, and the jump, if any, at its end."""
        begin, end = (jnp.clip(edge, least, greatest) for edge in edges)
        if not whole:
            for kink in kinks:  # which divides the cell: see below
                end = jnp.where((begin < kink) & (kink < end), begin, end)
        # Cells divide the affine part, not the root: there kinks lie exactly on edges.
        parts = jax.tree.map(lambda *v: jnp.stack(v), (begin, end), (end, end))
        # A cell outside of the box is clipped to a point, whose only slope is that of a jump.
        empty = (begin == end) & (least < greatest)
        found, sizes = [], []
        for values, slopes in jax.vmap(within)(parts):
            low, high = (
                jnp.where(jnp.isfinite(s[1]), jnp.where(empty, nothing, s[0]), s[1])
                for s, nothing in zip(slopes, (jnp.inf, -jnp.inf), strict=True)
            )
            found.append(((values[0].min(0), values[1].max(0)), (low, high)))
            sizes.append(jnp.where(low <= high, most((low, high)), 0.0))
        widen = lambda a, b: (jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1]))
        hulls, longest = hulls
        widened = [
            (widen(a[0], b[0]), widen(a[1], b[1])) for a, b in zip(hulls, found, strict=True)
        ]
        size = reduce(jnp.hypot, sizes)
        return (widened, jnp.maximum(longest, upper(size))), None

    def within(part: Box) -> list[tuple[Box, Box]]:
        low, high = divide(plus(part, (-shift[1], -shift[0])), scale)
        # A constant affine part has the same value at every root.
        moves = (scale[0] > 0) | (scale[1] < 0)
        low = jnp.where(moves, jnp.clip(low, *box), box[0])
        high = jnp.where(moves, jnp.clip(high, *box), box[1])
        seen = {start: (part, scale)}
        return [evaluate(value, (low, high), seen) for value in values]

    # The first is empty: a jump at the box's own end.
    ends = np.concatenate([EDGES[:1], EDGES])
    pairs = jnp.asarray(np.stack([ends[:-1], ends[1:]], 1), box[0].dtype)
    nothing = jnp.full_like(box[0], jnp.inf), jnp.full_like(box[0], -jnp.inf)
    begin = [(nothing, nothing) for _ in values], jnp.zeros_like(box[0])
    found, _ = jax.lax.scan(cell, begin, pairs)
    if kinks:
        both = jnp.stack([pair for kink in kinks for pair in _around(kink, kinks)])
        found, _ = jax.lax.scan(partial(cell, whole=True), found, both)
    return found


def _own_edges(values: list[Value], like: Array) -> list[Array]:
    """The constants c that the values are compared with, and -c, as of `|x| > c`; unless too many.

    Those between two cells leave the slopes of both sides, and no bound if there is a jump.
    """
    constants = {k: c for value in values for k, c in value.kinks.items()}
    if len(constants) > MOST:
        return []
    full = lambda c: jnp.broadcast_to(jnp.asarray(c, like.dtype), like.shape)
    both = [full(sign * c) for c in constants.values() for sign in (1, -1)]
    return [jnp.where(jnp.isnan(kink), 0.0, kink) for kink in both]


def _around(kink: Array, kinks: list[Array]) -> list[Array]:
    """The cells before and after a kink, as far as the next edge or kink."""
    edges = jnp.asarray(EDGES, kink.dtype)
    right = jnp.searchsorted(edges, kink, side="right")
    left = jnp.searchsorted(edges, kink, side="left")
    low, high = edges[jnp.maximum(left - 1, 0)], edges[jnp.minimum(right, len(EDGES) - 1)]
    for other in kinks:
        low = jnp.where(other < kink, jnp.maximum(low, other), low)
        high = jnp.where(other > kink, jnp.minimum(high, other), high)
    return [jnp.stack([low, kink]), jnp.stack([kink, high])]


def _settle(value: Value) -> Root:
    root = value.root
    if value.rule is None and root.norm is None:
        return root
    box, slope, scale = bound(value)
    centre = root.centre and evaluate(value, root.centre)[0]
    inside = None
    if root.ellipsoid is not None:
        low, high = (end.reshape(-1) for end in slope)
        inside = ellipsoids.through_units(low, high, root.ellipsoid)
    if root.norm is None:
        whole, index = part_of(root)
        slope = product(slope, root.slope)
        found = Root(box, centre, slope, root.lip, root.rows, ellipsoid=inside, made=value)
        return dataclasses.replace(found, whole=whole, index=index)
    # The affine part joins the weights before it, the rest waits for the weights after it.
    unit = most(scale)
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1.0)
    rows = unit * root.rows
    lip = jnp.minimum(upper(root.norm(unit)), length(rows))
    units, slope = (root, slope), product(slope, outward((1 / unit, 1 / unit)))
    return Root(box, centre, slope, lip, rows, ellipsoid=inside, units=units, made=value)
