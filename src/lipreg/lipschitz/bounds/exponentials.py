"""Softmax, its logarithm and log-sum-exp: each one map of the logits z, p the softmax.

Their Jacobians in z are `diag(p) - p p^T`, `1 - 1 p^T` and `p^T`, of norms of at most 1/2,
`sqrt(n)` and 1, where boxes would multiply the ranges of `exp` and `1 / sum`. What is subtracted
from z before, its maximum, is the same for all of a group, and changes none of them.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds.intervals import Box, largest, most, outward, times
from lipreg.lipschitz.bounds.roots import (
    Offset,
    Root,
    entries,
    moved_from,
    part_of,
    size,
    summed_over,
)
from lipreg.lipschitz.bounds.values import Value, settle

__all__ = ["Map", "narrowed", "one_map", "shifted", "without_common"]


class Map(NamedTuple):
    """What is known of `v = f(z)`: `||dv|| <= lip ||dx||`, `|dv_i| <= row ||dx||`, and a box."""

    lip: Array
    row: Array
    box: Box
    logsumexp: tuple[Root, np.ndarray] | None = None


def shifted(name: str, args: list, roots: list) -> Offset | None:
    """Where `v = z + s` or `z - s` and entries of s are the same number."""
    if name not in ("add", "sub") or any(root is None for root in roots):
        return None
    for k, other in ((0, 1), (1, 0)):
        found = entries(roots[other]) if name == "add" or k == 0 else None
        if found and len(np.unique(found[1])) < roots[k].rows.size == found[1].size:
            return Offset(args[k], *found, 1 if name == "add" else -1)
    return None


def without_common(value: Value) -> Value:
    """The value less what is added to all of its entries, which is in no difference of two."""
    while value.rule is None and value.root.offset:
        if len(np.unique(value.root.offset.same)) > 1:
            break
        value = value.root.offset.value
    return value


def one_map(name: str, args: list, roots: list) -> Map | None:
    """A softmax, its logarithm or a log-sum-exp, or None where v has another form."""
    if len(args) != 2 or not all(isinstance(a, Value) for a in args):
        return None
    if name == "div":
        return _softmax(*args, *roots)
    if name == "add":
        return _logsumexp(*args, *roots) or _logsumexp(*args[::-1], *roots[::-1])
    return _log_softmax(*args, *roots) if name == "sub" else None


def narrowed(root: Root, known: Map) -> Root:
    """The root, whose entries are no pieces of another, with what is known of it besides."""
    low, high = jnp.maximum(root.box[0], known.box[0]), jnp.minimum(root.box[1], known.box[1])
    ones = jnp.ones_like(root.rows)
    sizes = times(most(root.slope), root.rows)
    better = known.lip < times(root.lip, largest(most(root.slope)))
    slope = jnp.where(better, ones, root.slope[0]), jnp.where(better, ones, root.slope[1])
    return dataclasses.replace(
        root,
        box=(low, high),
        slope=slope,
        lip=jnp.where(better, known.lip, root.lip),
        rows=jnp.where(better, jnp.minimum(sizes, known.row), root.rows),
        whole=None,
        index=None,
        logsumexp=known.logsumexp,
    )


def _softmax(e: Value, total: Value, way: Root, sums: Root) -> Map | None:
    if e.name != "exp" or total.rule is not None or moved_from(sums) is not part_of(sums)[0]:
        return None
    group = summed_over(way, sums)
    if group is None:
        return None
    lip = size(_logits(e.args[0], group)) / 2
    return Map(lip, lip, (0.0, 1.0))


def _logsumexp(log: Value, shift: Value, _: Root, moved: Root) -> Map | None:
    """`log(sum(exp(z - s))) + s`."""
    found, place = _log_of_sum(log), entries(moved)
    if found is None or place is None:
        return None
    a, group, own = found
    offset = settle(a).offset
    if offset is None or offset.sign > 0 or offset.origin is not place[0]:
        return None
    flat, each = group.reshape(-1), own.reshape(-1)
    count = flat.max(initial=-1) + 1
    if place[1].shape != own.shape or len(np.unique(each)) != each.size or each.size != count:
        return None
    at = np.zeros(count, int)
    at[each] = place[1].reshape(-1)
    if not (at[flat] == offset.same.reshape(-1)).all():
        return None
    z = settle(offset.value)
    (low, high), lip = _range(z, group), size(z)
    in_order = np.array_equal(each, np.arange(count))
    return Map(lip, lip, (low[own], high[own]), (z, group) if in_order else None)


def _log_softmax(a: Value, log: Value, way: Root, sums: Root) -> Map | None:
    """`a - log(sum(exp(a)))`."""
    found, origin = _log_of_sum(log), moved_from(sums)
    if found is not None and settle(found[0]) is way:
        group, index = found[1], found[2]
    elif origin.logsumexp and origin.logsumexp[0] is way and part_of(sums)[0] is origin:
        group, index = origin.logsumexp[1], part_of(sums)[1]
    else:
        return None
    if index.ndim != group.ndim or not (np.broadcast_to(index, group.shape) == group).all():
        return None
    z = _logits(a, group)
    lip, (_, high) = size(z), _range(z, group)
    n = _members(group)
    return Map(
        lip * math.sqrt(n), lip * math.sqrt(2), (outward((z.box[0] - high[group],) * 2)[0], 0.0)
    )


def _log_of_sum(value: Value) -> tuple[Value, np.ndarray, np.ndarray] | None:
    """a, its groups and the group of each entry, where the value is `log(sum(exp(a)))`."""
    if value.rule is None and moved_from(value.root).made is not None:
        value, moved = moved_from(value.root).made, value.root
    else:
        moved = value.root
    if value.name != "log":
        return None
    source = value.sources[0]
    source = source.sources[0] if source.name == "abs" else source
    whole, index = part_of(moved)
    if source.rule is not None or whole.sums is None or moved_from(source.root) is not whole:
        return None
    e = whole.sums[0].made
    return (e.args[0], whole.sums[1], index) if e is not None and e.name == "exp" else None


def _logits(a: Value, group: np.ndarray) -> Root:
    """z, where `a = z - s` and s is the same for all of a group; else a."""
    root = settle(a)
    if root.offset is None:
        return root
    pairs = np.stack([group.reshape(-1), root.offset.same.reshape(-1)])
    alike = np.unique(pairs, axis=1).shape[1] == len(np.unique(pairs[0]))
    return settle(root.offset.value) if alike else root


def _members(group: np.ndarray) -> int:
    return int(np.bincount(group.reshape(-1)).max(initial=1))


def _range(z: Root, group: np.ndarray) -> tuple[Any, Any]:
    """Of the log-sum-exp of each group: from its maximum on, up to `log(n)` above it."""
    flat = group.reshape(-1)
    ends = [jnp.full(flat.max(initial=-1) + 1, -jnp.inf, z.rows.dtype) for _ in range(2)]
    low, high = (e.at[flat].max(z_.reshape(-1)) for e, z_ in zip(ends, z.box, strict=True))
    return outward((low, high + math.log(_members(group)) * (1 + 1e-15)))
