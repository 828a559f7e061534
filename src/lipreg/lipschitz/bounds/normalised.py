"""Vectors over their length or deviation: `u g(||u||)`, as in RMS and layer normalisation.

With the elasticity `e = q g'(q) / g(q)` of g in `q = ||u||^2`, the Jacobian in u is
`g (1 + 2 e w w^T)`, w the unit vector along u. Its norm is `g max(1, |1 + 2 e|)`: that of g alone
for `g = (s q + c)^(-1/2)`, `1 / (sqrt(q) + c)` and `1 / max(sqrt(q), c)`, whose elasticities lie in
`[-1/2, 0]`. A product of boxes would multiply the range of u with the slope of g. Entries may have
factors of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds.intervals import largest, most, outward, reciprocal, times, upper
from lipreg.lipschitz.bounds.roots import (
    Deviation,
    Root,
    each_in,
    grouped,
    moved_from,
    part_of,
    size,
    summed_over,
)
from lipreg.lipschitz.bounds.values import Value, settle

__all__ = ["centred", "normalised", "variance"]


class Elastic(NamedTuple):
    """That `low <= q w' / w <= high` holds for a value w of q, if `valid`, and `w >= 0` if `sign`.

    `even` says that it is the same function for all entries. `q` are the sums of squares, and
    `index` says of which of them each entry is a value.
    """

    low: float
    high: float
    valid: Array
    sign: Array
    even: Array
    q: Root | None = None
    index: np.ndarray = np.zeros(0, int)


def normalised(name: str, args: list, roots: list) -> Array | None:
    """A bound of `||dv|| / ||dx||` for `v = u g(||u||)`, or None where v has another form."""
    if name not in ("mul", "div") or not all(isinstance(a, Value) for a in args):
        return None
    for k, other in ((0, 1), (1, 0)) if name == "mul" else ((0, 1),):
        found = _elastic(args[other])
        if found is None or found.q is None:
            continue
        sign = 1 if name == "mul" else -1
        steepest = max(1.0, *(abs(1 + 2 * sign * e) for e in (found.low, found.high)))
        box = roots[other].box if name == "mul" else reciprocal(roots[other].box)
        for way, zeros, factor in _vectors(args[k]):
            group, valid = _group(found.q, way)
            if group is not None and each_in(found.index, group):
                lip = times(upper(largest(most(box)) * factor * steepest), size(way))
                return jnp.where(valid & zeros & found.valid, lip, jnp.inf)
    return None


def _group(q: Root, way: Root) -> tuple[np.ndarray | None, Array]:
    """To which of the sums each entry of the vector is added, if they are those of its squares."""
    sure = jnp.ones((), bool)
    if q.squares and q.sums:
        return grouped(q.squares[0], q.sums[1], way), sure
    if q.variance and way.centred:
        a, b = q.variance, way.centred
        group = grouped(a.of, a.group, b.of)
        if group is not None and np.array_equal(group, b.group):
            return group, a.valid & b.valid
    return None, sure


def _vectors(value: Value) -> Iterator[tuple[Root, Array, Array]]:
    """The value, and what it is less zeros that were added and factors: if so, and the largest."""
    zeros, factor = jnp.ones((), bool), jnp.ones(())
    yield settle(value), zeros, factor
    while value.straight and value.name != "neg":
        (source,) = value.sources
        (constant,) = (a for a in value.args if a is not source)
        if value.name in ("add", "sub"):
            zeros = zeros & (constant == 0).all()
        else:
            box = constant, constant
            box = reciprocal(box) if value.name == "div" else box
            factor = outward((factor, factor * largest(most(box))))[1]
        value = source
        yield settle(value), zeros, factor


def _elastic(value: Value) -> Elastic | None:
    if value.rule is None:
        return _leaf(value.root)
    if value.name not in {"add", "max", "min", "mul", "div", "sqrt", "rsqrt", "select_n"}:
        return None
    parts = []
    for a in value.args:
        part = _elastic(a) if isinstance(a, Value) else _constant(a)
        if part is None:
            return None
        parts.append(part)
    if value.name == "select_n":
        if isinstance(value.args[0], Value):
            return None
        never = [(value.args[0] != k).all() for k in range(len(parts) - 1)]
        cases = [p._replace(sign=p.sign | no) for p, no in zip(parts[1:], never, strict=True)]
        parts = [cases[0]._replace(even=cases[0].even & parts[0].even), *cases[1:]]
    every = lambda flags: reduce(jnp.logical_and, list(flags))
    valid, sign, even = (every(p[k] for p in parts) for k in (2, 3, 4))
    low, high = min(p.low for p in parts), max(p.high for p in parts)
    first, last = parts[0], parts[-1]
    if value.name == "mul":
        low, high = first.low + last.low, first.high + last.high
    elif value.name == "div":
        low, high = first.low - last.high, first.high - last.low
    elif value.name == "sqrt":
        low, high = low / 2, high / 2
    elif value.name == "rsqrt":
        low, high = -high / 2, -low / 2
    else:  # between those of the parts, and the same for a whole group only if these are
        valid = valid & even
    if value.name == "add":  # the mean of both, weighed by what they are
        valid = valid & sign
    moving = [p for p in parts if p.q is not None]
    if not moving:
        return Elastic(low, high, valid, sign, even)
    q, index = moving[0].q, moving[0].index
    same = all(p.q is q and np.array_equal(p.index, index) for p in moving)
    return Elastic(low, high, valid, sign, even, q, index) if same else None


def _constant(a: Array) -> Elastic:
    a = jnp.asarray(a)
    even = jnp.isnan(a).all() | (a == a.reshape(-1)[:1].sum()).all()
    return Elastic(0.0, 0.0, jnp.ones((), bool), (a >= 0).all(), even)


def _leaf(root: Root) -> Elastic | None:
    """Sums of squares themselves, or a value of them that was moved."""
    origin, (whole, index) = moved_from(root), part_of(root)
    sure = jnp.ones((), bool)
    if (origin.squares and origin is whole) or origin.variance:
        return Elastic(1.0, 1.0, sure, sure, sure, whole, index)
    found = origin.made and _elastic(origin.made)
    if not found or found.q is None or index.min(initial=0) < 0:
        return None
    if found.q is whole:
        return found._replace(index=index)
    _, there = part_of(origin)
    if len(np.unique(there)) != there.size or there.min(initial=0) < 0:
        return None
    place = np.zeros(whole.rows.size, int)
    place[there.reshape(-1)] = np.arange(there.size)
    return found._replace(index=found.index.reshape(-1)[place[index]])


def centred(name: str, args: list, roots: list) -> Deviation | None:
    """`w - mean(w)`, the mean a sum over its number of entries."""
    if name != "sub" or not all(isinstance(a, Value) for a in args):
        return None
    group, found = summed_over(roots[0], roots[1]), _mean(args[1])
    return Deviation(roots[0], group, found[1]) if found and group is not None else None


def variance(name: str, args: list, roots: list) -> Deviation | None:
    """`mean(w^2) - mean(w)^2`, which is the mean of the squares of `w - mean(w)`."""
    if name != "sub" or not all(isinstance(a, Value) for a in args):
        return None
    squares, square = _mean(args[0]), args[1].squared and _mean(args[1].squared)
    if not squares or not square or not squares[0].squares:
        return None
    (q, valid), (s, also) = squares, square
    w = squares[0].squares[0]
    if q.sums is None or s.sums is None or s.sums[0] is not w:
        return None
    if not np.array_equal(q.sums[1], s.sums[1]) or roots[0].rows.shape != roots[1].rows.shape:
        return None
    in_order = np.arange(q.rows.size)
    if any(not np.array_equal(part_of(root)[1].reshape(-1), in_order) for root in roots):
        return None
    return Deviation(w, q.sums[1], valid & also)


def _mean(value: Value) -> tuple[Root, Array] | None:
    """The sums that the value is, over the number of their terms, and whether it is that number."""
    made = moved_from(value.root).made if value.rule is None else value
    if made is None or made.name != "div" or not isinstance(made.args[0], Value):
        return None
    source = made.args[0]
    sums = part_of(source.root)[0]
    direct = source.rule is None and moved_from(source.root) is sums
    if isinstance(made.args[1], Value) or not direct or sums.sums is None:
        return None
    terms = sums.sums[1].size // max(sums.rows.size, 1)
    return sums, (jnp.asarray(made.args[1]) == terms).all()
