"""Operations that mix entries: each takes settled roots and makes the next."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds import residuals
from lipreg.lipschitz.bounds.ellipsoids import LARGEST, Ellipsoid, linear, sphere
from lipreg.lipschitz.bounds.intervals import UNDERFLOW, Box, largest, most, outward, times, upper
from lipreg.lipschitz.bounds.joint import constant, plain
from lipreg.lipschitz.bounds.roots import Linear, Root, entries
from lipreg.lipschitz.bounds.singular import largest_singular
from lipreg.lipschitz.bounds.values import Value, settle

__all__ = ["dense", "either", "overlap", "total", "weighted"]


def overlap(params: dict) -> int:
    """The largest number of windows that contain one entry.

    Windows start at multiples of the stride s, and their entries are d, the dilation, apart: of a
    window's offsets every `s / gcd(s, d)`-th can fall on the same entry. Zeros between the entries
    of the array only reduce the number.
    """
    sides = params.get("window_dimensions", ())
    strides = params.get("window_strides") or (1,) * len(sides)
    holes = params.get("window_dilation") or (1,) * len(sides)
    steps = (s // math.gcd(s, d) for s, d in zip(strides, holes, strict=True))
    return math.prod(math.ceil(w / s) for w, s in zip(sides, steps, strict=True))


def _sum_of_squares(sums: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """`sqrt(sums(a^2, b^2))`, computed relative to the largest entries, lest squares underflow."""
    units = [jnp.where((u := largest(v)) > 0, u, 1.0) for v in (a, b)]
    squares = sums((a / units[0]) ** 2, (b / units[1]) ** 2)
    least = UNDERFLOW * sums(jnp.sign(a), jnp.sign(b))
    return jnp.sqrt(squares + least) * units[0] * units[1]


def _summed(sums: Callable[[Array, Array], Array], w: Array, terms: int, box: Box) -> Box:
    """The box of `sums(v, w)`, bilinear with at most `terms` terms, by centre and radius.

    A sum of n products, in any order, is wrong by at most `n u` times the sum of their absolute
    values, u = eps / 2 (Higham 2002, section 3.1); eight times as much is added.
    """
    low, high = box
    rounding = 4 * (terms + 4) * float(jnp.finfo(low.dtype).eps)
    middle = sums(low / 2 + high / 2, w)
    radius = sums(high / 2 - low / 2 + rounding * most(box), jnp.abs(w))
    known = jnp.isfinite(middle) & jnp.isfinite(radius)  # a partial sum that overflows says nothing
    least, greatest = outward((middle - radius, middle + radius))
    return jnp.where(known, least, -jnp.inf), jnp.where(known, greatest, jnp.inf)


def _both(image: Callable[[Box], Box], root: Root) -> tuple[Box, Box | None]:
    return image(root.box), root.centre and image(root.centre)


def weighted(
    apply: Callable[[Array, Array], Array],
    w: Array,
    root: Root,
    norm: Callable,
    inside: Ellipsoid | None = None,
    made: Linear | None = None,
) -> Root:
    """The root of a map that is linear in its input and in weights w."""
    image = partial(_summed, apply, w, min(w.size, root.rows.size))
    mask, size = most(root.slope), jnp.abs(w)
    rows = _sum_of_squares(apply, mask, size) * root.lip
    rows = jnp.minimum(upper(rows), upper(apply(mask * root.rows, size)))
    if inside is not None:
        rows = jnp.minimum(rows, upper(inside.widths.reshape(rows.shape) * (1 + 1e-9)))
    ones = jnp.ones_like(rows)
    return Root(*_both(image, root), (ones, ones), None, rows, norm, inside, made)


def dense(params: dict, apply: Callable, w: Array, root: Root, left: bool) -> Root:
    """`A x`: ||diag(c) A diag(mask)||_2; `left` says whether x is the first factor.

    With batch dimensions, the largest of the norms of their matrices.
    """
    first, second = zip(*params["dimension_numbers"], strict=True)
    (summed_w, batch_w), (summed_x, batch_x) = (second, first) if left else (first, second)
    free = [i for i in range(w.ndim) if i not in (*summed_w, *batch_w)]
    mask = most(root.slope)
    kept = [i for i in range(mask.ndim) if i not in (*summed_x, *batch_x)]
    size = lambda array, axes: math.prod(array.shape[i] for i in axes)
    outputs, terms, copies = size(w, free), size(w, summed_w), size(mask, kept)
    blocks = size(w, batch_w)
    matrices = w.transpose(*batch_w, *free, *summed_w).reshape(blocks, outputs, terms)
    mask = mask.transpose(*batch_x, *kept, *summed_x).reshape(blocks, copies, terms)
    masked = times(matrices, mask.max(1, initial=0.0)[:, None])

    def each(c: Array) -> Array:
        # One matrix for all copies: the largest c, and the largest mask, among them.
        if left:
            return c.reshape(blocks, copies, outputs).max(1, initial=0.0)
        return c.reshape(blocks, outputs, copies).max(2, initial=0.0)

    norm = lambda c: times(root.lip, largest_singular(times(each(c)[..., None], masked)))
    if blocks * copies != 1 or outputs > LARGEST:
        return weighted(apply, w, root, norm)
    matrix = matrices[0]
    alone = lambda c: largest_singular(c.reshape(-1, 1) * matrix)
    # In the order in which A counts them, that of the entries or its reverse.
    ordered = list(summed_x) == sorted(summed_x)
    made = Linear(entries(root), times(root.lip, largest(mask)), matrix, alone) if ordered else None
    if root.ellipsoid is None or not ordered:
        return weighted(apply, w, root, norm, sphere(masked[0] * root.lip), made)
    inside = linear(matrix, root.ellipsoid)

    def least(c: Array) -> Array:
        c = c.reshape(-1)
        bounds = norm(c), inside.norm(c), residuals.sandwich(root, c[:, None] * matrix)
        return reduce(jnp.minimum, map(upper, bounds))

    return weighted(apply, w, root, least, inside, made)


def total(params: dict, apply: Callable, value: Value) -> Root:
    """`A x`, entries of A 0 or 1: `||A diag(m)||_2^2 <= ||A diag(m)||_1 ||A diag(m)||_inf`."""
    root = settle(value)
    mask = most(root.slope)
    sums = lambda v, _: apply(v)
    image = partial(_summed, sums, jnp.ones(()), root.rows.size)
    squares = _sum_of_squares(sums, mask, jnp.ones(()))
    rows = jnp.minimum(upper(apply(mask * root.rows)), upper(times(squares, root.lip)))
    often = overlap(params)
    lip = root.lip * jnp.sqrt(largest(apply(mask)) * largest(mask) * often)
    found = plain(*_both(image, root), lip, rows)
    squared = value.squared
    squares = (settle(squared), often) if squared else None
    sums = (root, _groups(params["axes"], root.rows.shape)) if "axes" in params else None
    return dataclasses.replace(found, squares=squares, sums=sums)


def _groups(axes: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The entry of the sum over axes that each entry is added to."""
    kept = [1 if k in axes else n for k, n in enumerate(shape)]
    return np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape)


def either(args: list, alike: Array) -> Root:
    """The hull of several values, one of which is taken; the last value where `alike` is true."""
    roots = [settle(a) if isinstance(a, Value) else a for a in args]
    centred = all(r.centre for r in roots if isinstance(r, Root))
    roots = [r if isinstance(r, Root) else constant(r, centred) for r in roots]

    def widest(boxes: list) -> Any:
        low, high = (jnp.stack(ends) for ends in zip(*boxes, strict=True))
        widest_box = low.min(0), high.max(0)
        return jax.tree.map(partial(jnp.where, alike), boxes[-1], widest_box)

    largest_size = lambda sizes: jnp.where(alike, sizes[-1], jnp.stack(sizes).max(0))
    return Root(
        widest([r.box for r in roots]),
        widest([r.centre for r in roots]) if centred else None,
        widest([r.slope for r in roots]),
        largest_size([r.lip for r in roots]),
        largest_size([r.rows for r in roots]),
    )
