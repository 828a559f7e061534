"""Several values at once: pieces of one whole, and what is made of them together.

Pairs `(max(a, b), min(a, b))` and sorted entries are the entries in another order, and no two of
them change by more together than the entries did. So MaxMin and GroupSort count once (1811.05381).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds.intervals import (
    Box,
    Rule,
    largest,
    length,
    most,
    product,
    times,
    upper,
)
from lipreg.lipschitz.bounds.roots import Root, part_of
from lipreg.lipschitz.bounds.values import Value, evaluate, settle, steepest

__all__ = [
    "combine",
    "concatenate",
    "constant",
    "extreme",
    "move",
    "ordered",
    "plain",
    "root_of_squares",
]

TOGETHER = 4  # values of one root whose slopes are looked at in one place


def plain(box: Box, centre: Box | None, lip: Any, rows: Array) -> Root:
    ones = jnp.ones_like(rows)
    return Root(box, centre, (ones, ones), lip, rows)


def constant(a: Array, centre: bool) -> Root:
    return plain((a, a), (a, a) if centre else None, jnp.zeros((), a.dtype), jnp.zeros_like(a))


def _together(roots: Sequence[Root], masks: Sequence[Array] | None = None) -> Array:
    """A bound of `||(m_1 dh_1, m_2 dh_2, ...)|| / ||dx||`: pieces of one whole count once."""
    counts: dict[Root, Any] = {}
    for k, root in enumerate(roots):
        whole, index = part_of(root)
        there = index.reshape(-1)
        if masks is None:
            more = np.bincount(there[there >= 0], minlength=whole.rows.size)
        else:
            squares = jnp.where(there >= 0, jnp.square(masks[k].reshape(-1)), 0.0)
            more = jnp.zeros(whole.rows.size).at[np.maximum(there, 0)].add(squares)
        counts[whole] = counts.get(whole, 0) + more
    sizes = [times(whole.lip, jnp.sqrt(largest(n * 1.0))) for whole, n in counts.items()]
    return length(jnp.stack(list(map(upper, sizes))))


# Numpy's, for where entries come from: they are not traced.
PLACES: dict[str, Callable[[np.ndarray, dict], Any]] = {
    "reshape": lambda a, p: a.reshape(p["new_sizes"]),
    "transpose": lambda a, p: a.transpose(p["permutation"]),
    "squeeze": lambda a, p: a.squeeze(tuple(p["dimensions"])),
    "rev": lambda a, p: np.flip(a, p["dimensions"]),
    "slice": lambda a, p: a[
        tuple(
            slice(*each)
            for each in zip(
                p["start_indices"], p["limit_indices"], p["strides"] or (1,) * a.ndim, strict=True
            )
        )
    ],
    "split": lambda a, p: np.split(a, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "broadcast_in_dim": lambda a, p: _broadcast(a, p["shape"], p["broadcast_dimensions"]),
    "copy": lambda a, p: a,
    "copy_p": lambda a, p: a,
    "name": lambda a, p: a,
}


def _broadcast(a: np.ndarray, shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    sides = [1] * len(shape)
    for axis, side in zip(axes, a.shape, strict=True):
        sides[axis] = side
    return np.broadcast_to(a.reshape(sides), shape)


def move(
    name: str,
    params: dict,
    apply: Callable,
    apply_slopes: Callable,
    root: Root,
    copies: Callable[[Array], Any],
) -> list[Root]:
    """Entries moved, left out, copied or padded; the norm is the root of the number of copies."""
    columns = lambda box: list(zip(*(apply(end) for end in box), strict=True))
    boxes, slopes = columns(root.box), list(zip(*map(apply_slopes, root.slope), strict=True))
    centres = columns(root.centre) if root.centre else [None] * len(boxes)
    rows = apply_slopes(root.rows)
    lip = root.lip * jnp.sqrt(copies(rows[0]))
    moved = [Root(b, c, s, lip, r) for b, c, s, r in zip(boxes, centres, slopes, rows, strict=True)]
    if name not in PLACES:
        return moved
    whole, index = part_of(root)
    own = PLACES[name](np.arange(index.size).reshape(index.shape), params)
    own = own if isinstance(own, list) else [own]
    if len(moved) == 1 and moved[0].rows.size == root.rows.size and name != "slice":
        moved = [dataclasses.replace(moved[0], squares=root.squares)]  # the same entries, elsewhere
    return [_placed(m, root, whole, index, o) for m, o in zip(moved, own, strict=True)]


def _placed(moved: Root, root: Root, whole: Root, index: np.ndarray, own: np.ndarray) -> Root:
    """The moved root, whose entries are those at `own` of the root before, with its place."""
    inside = root.ellipsoid
    if inside is not None:
        chosen = inside.matrix[own.reshape(-1)][:, own.reshape(-1)]
        small = own.size <= len(inside.matrix)
        inside = inside._replace(matrix=chosen) if small else None
    place = {"whole": whole, "index": index.reshape(-1)[own], "origin": root.origin or root}
    moved = dataclasses.replace(moved, ellipsoid=inside, **place)
    return dataclasses.replace(moved, lip=jnp.minimum(moved.lip, _together([moved])))


def concatenate(name: str, axis: int, args: list) -> Root:
    """`||d(v_1, v_2, ...)||^2 <= sum_k lip_k^2 ||dx||^2`, in which pieces of one whole count once.

    Values of one root, such as relu(w) and relu(-w), have the longest vector of their slopes.
    """
    values = [a for a in args if isinstance(a, Value)]
    pieces = [settle(a) if isinstance(a, Value) else a for a in args]
    centred = all(r.centre for r in pieces if isinstance(r, Root))
    roots = [r if isinstance(r, Root) else constant(r, centred) for r in pieces]
    join = lambda parts: getattr(jnp, name)(parts, axis=axis)
    box, centre, slope, rows = (
        jax.tree.map(lambda *parts: join(parts), *parts)
        for parts in zip(*((r.box, r.centre, r.slope, r.rows) for r in roots), strict=True)
    )
    moving = [r for r in pieces if isinstance(r, Root)]
    lip = jnp.minimum(length(jnp.stack([r.lip for r in moving])), _together(moving))
    whole, index, origin = None, None, None
    parts = [part_of(r) if isinstance(r, Root) else None for r in pieces]
    wholes = {part[0] for part in parts if part}
    if len(wholes) == 1:
        (whole,) = wholes
        nothing = lambda r: np.full(r.rows.shape, -1)
        places = [p[1] if p else nothing(r) for p, r in zip(parts, roots, strict=True)]
        index = getattr(np, name)(places, axis=axis)
        origins = {r.origin or r if isinstance(r, Root) else None for r in pieces}
        origin = origins.pop() if len(origins) == 1 else None
    root = values[0].root
    several = 1 < len(values) <= TOGETHER and all(v.root is root for v in values)
    if several and not all(v.affine for v in values):
        longest = steepest(values)
        if root.norm is not None:
            once = root.norm(longest)
        else:
            once = times(root.lip, largest(times(longest, most(root.slope))))
        # Instead of slopes, if it is less: entries that do not move keep their slope of 0.
        less = upper(once) < times(lip, largest(most(slope)))
        moves = jnp.where(most(slope) > 0, 1.0, 0.0)
        slope = jnp.where(less, -moves, slope[0]), jnp.where(less, moves, slope[1])
        sizes = [r.rows * most(r.slope) for r in roots]
        rows = jnp.where(less, join(sizes), rows)
        lip, whole, index, origin = jnp.where(less, once, lip), None, None, None
    return Root(box, centre, slope, lip, rows, whole=whole, index=index, origin=origin)


def combine(name: str, rule: Rule, args: list, shape: tuple[int, ...], seen: dict) -> Root:
    """An elementwise operation on several roots: `||dv|| <= sum_k max|d_k v| ||du_k||`."""
    roots = [settle(a) if isinstance(a, Value) else None for a in args]
    ends = lambda which: [which(r) if r else (a, a) for r, a in zip(roots, args, strict=True)]
    full = lambda box: (jnp.broadcast_to(box[0], shape), jnp.broadcast_to(box[1], shape))
    box, partials = rule(*ends(lambda r: r.box))
    centred = all(r.centre for r in roots if r)
    centre = full(rule(*ends(lambda r: r.centre))[0]) if centred else None
    lip, rows, most_rows = jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape)
    for root, slope in zip(roots, partials, strict=True):
        if root:
            size = jnp.broadcast_to(most(product(slope, root.slope)), shape)
            copies = size.size / max(root.rows.size, 1)
            lip = lip + times(largest(size), root.lip) * math.sqrt(copies)
            rows = rows + times(size, root.rows)
            most_rows = jnp.maximum(most_rows, times(size, root.rows))
    found = plain(full(box), centre, lip, rows)
    if len(roots) != 2 or not all(r is not None and r.rows.shape == shape for r in roots):
        return found
    return _one_of_pair(name, found, most_rows, roots, args, seen)


def _one_of_pair(
    name: str, found: Root, most_rows: Array, roots: list, args: list, seen: dict
) -> Root:
    """`(max(a, b), min(a, b))` is as long as `(a, b)`, `(a + b, a - b)` longer by sqrt(2)."""
    if name in ("max", "min"):
        # max(-a, -b) is -min(a, b).
        turned = all(a.name == "neg" for a in args)
        pair, stretch = [a.sources[0] if turned else a for a in args], 1.0
        second, sign = (name == "min") != turned, -1.0 if turned else 1.0
        found = dataclasses.replace(found, rows=most_rows)
    elif name in ("add", "sub") and _apart(*roots):
        pair, stretch, second, sign = args, math.sqrt(2), name == "sub", 1.0
    else:
        return found
    key = stretch, frozenset(map(id, pair))
    if key not in seen:
        both = _together(roots, [most(r.slope) for r in roots]) * stretch
        zero = jnp.zeros((2, *found.rows.shape))
        seen[key] = plain((zero, zero), None, both, zero), pair
    whole, size = seen[key][0], found.rows.size
    index = np.arange(size).reshape(found.rows.shape) + second * size
    slope = found.slope if sign > 0 else tuple(-end for end in found.slope)
    lip = jnp.minimum(found.lip, whole.lip)
    return dataclasses.replace(found, slope=slope, lip=lip, whole=whole, index=index)


def _apart(a: Root, b: Root) -> bool:
    """Whether they are different entries of one whole, each once."""
    (whole, one), (other, two) = part_of(a), part_of(b)
    both = np.concatenate([one.reshape(-1), two.reshape(-1)])
    return whole is other and len(np.unique(both)) == both.size


def extreme(
    params: dict, apply: Callable, value: Value, sign: int, overlap: int, seen: dict
) -> Root:
    """`max` over windows, or with sign -1 `min`: `||dv||_2 <= sqrt(overlap) ||du||_2`.

    Those over axes are the first and the last of the sorted entries.
    """
    root = settle(value)
    mask = most(root.slope)
    # A window that holds only padding is infinite in value and size.
    rows = jnp.maximum(sign * apply(sign * times(mask, root.rows)), 0.0)
    lip = times(root.lip, largest(mask)) * math.sqrt(overlap)
    centre = root.centre and (apply(root.centre[0]), apply(root.centre[1]))
    found = plain((apply(root.box[0]), apply(root.box[1])), centre, lip, rows)
    if "axes" not in params or not rows.size:
        return found
    key = "sorted", id(value), tuple(params["axes"])
    if key not in seen:
        zero = jnp.zeros((2, *rows.shape))
        seen[key] = plain((zero, zero), None, lip, zero), value
    several = root.rows.size > rows.size
    index = np.arange(rows.size).reshape(rows.shape) + (sign < 0 and several) * rows.size
    return dataclasses.replace(found, whole=seen[key][0], index=index)


def ordered(params: dict, root: Root) -> Root:
    """`sort`: the k-th smallest of entries that change by no more than dh changes by no more."""
    axis, mask = params["dimension"], most(root.slope)
    rows = times(mask, root.rows)
    rows = jnp.broadcast_to(rows.max(axis, keepdims=True), rows.shape)
    in_order = lambda box: box and (jnp.sort(box[0], axis), jnp.sort(box[1], axis))
    lip = times(root.lip, largest(mask))
    return plain(in_order(root.box), in_order(root.centre), lip, rows)


def root_of_squares(value: Value, rule: Rule) -> Root:
    """`sqrt(s sum_i v_i^2 + c)`, c and s >= 0: at most `sqrt(s) ||dv||`, as for a norm."""
    root = value.root
    summed, often = cast(tuple[Root, int], root.squares)
    zero = jnp.zeros_like(root.box[0])
    shift, scale = evaluate(value, (zero, zero))
    box, (slope,) = rule(value.bound[0])
    centre = root.centre and rule(evaluate(value, root.centre)[0])[0]
    usual = settle(value)
    size = most(product(slope, usual.slope))
    proper = (shift[0] >= 0) & (scale[0] >= 0)
    steep = largest(jnp.where(proper, jnp.sqrt(most(scale)), jnp.inf)) * math.sqrt(often)
    once = upper(times(steep, times(summed.lip, largest(most(summed.slope)))))
    lip = jnp.minimum(upper(times(largest(size), usual.lip)), once)
    found = plain(box, centre, lip, jnp.minimum(upper(times(size, usual.rows)), once))
    return dataclasses.replace(found, made=Value(root, "sqrt", rule, (value,)))
