"""Two linear maps with units between them, as one: `x - A^T D A x` and `B D A x`, D diagonal."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.singular import largest_eigenvalue
from lipreg.lipschitz.slopes import Box, largest, most, negative, product, times, upper
from lipreg.lipschitz.values import Linear, Root, Value, bound, entries, settle

__all__ = ["sandwich", "symmetric"]


def symmetric(name: str, args: list) -> Array | None:
    """A bound of `||dv|| / ||dx||` for `v = w + B u(A w)`, or None where v has another form.

    Where `B = A^T G`, G diagonal, and the units u have slopes D, the Jacobian in w is the
    symmetric matrix `1 + A^T G D A`. Its eigenvalues lie between `1 - m` and `1 + p`, m and p the
    largest of `A^T (G D)^- A` and `A^T (G D)^+ A`. So the layers of CPL (2110.12690) and SLL
    (2303.03169), `x - 2 A^T T relu(A x + b)`, have the constant 1 if `||T^(1/2) A|| <= 1`, else
    `2 ||T^(1/2) A||^2 - 1`: whether the condition holds is seen on the weights as they are. What
    `B - A^T G` has left over, by rounding, adds its own norm.
    """
    if name not in ("add", "sub") or not all(isinstance(a, Value) for a in args):
        return None
    for k, other in ((0, 1), (1, 0)):
        straight, branch = args[k], args[other]
        # The straight way has the factor 1, the branch its sign.
        if name == "sub" and k == 1:
            continue
        second = branch.root.linear
        if not branch.affine or second is None or second.source is None:
            continue
        inner = second.source[0]
        if inner.units is None or not _same(second.source, entries(inner)):
            continue
        (units, slope), way = inner.units, settle(straight)
        first = units.linear
        if first is None or not _same(first.source, entries(way)):
            continue
        scale = bound(branch)[2]
        scale = negative(scale) if name == "sub" else scale
        return _bound(way, first, slope, second, scale)
    return None


Entries = tuple[Root, np.ndarray] | None


def _same(a: Entries, b: Entries) -> bool:
    if a is None or b is None or a[0] is not b[0]:
        return False
    return np.array_equal(a[1].reshape(-1), b[1].reshape(-1))


def _bound(way: Root, first: Linear, slope: Box, second: Linear, scale: Box) -> Array | None:
    a, b = first.weight, second.weight
    sides, axes = a.shape[2:], tuple(range(1, a.ndim))
    back = jnp.flip(b.swapaxes(0, 1), tuple(range(2, b.ndim)))  # B^T, which is to be G A
    if back.shape != a.shape or second.place != _turned(first.place, sides):
        return None
    # One factor for each output of B, wherever it is; what it varies by is a remainder.
    low, high = second.by_output(scale[0], jnp.min), second.by_output(scale[1], jnp.max)
    along = lambda values: values.reshape(1, -1, *(1,) * len(sides))
    middle = back * along((low + high) / 2)
    squares = jnp.square(a).sum(axes)
    g = (middle * a).sum(axes) / jnp.where(squares > 0, squares, 1.0)
    rest = middle - a * g.reshape(-1, *(1,) * len(axes))
    # The norm of a kernel is at most the sum of those of its entries.
    size = lambda w: jnp.sqrt(jnp.square(w).sum() * math.prod(sides))
    rest = size(rest) + size(back * along((high - low) / 2))
    ones = jnp.ones_like(slope[0])
    rest = times(times(rest, largest(most(slope))), first.norm(ones))
    g = first.to_output(g, slope[0])
    low, high = product((g, g), slope)
    part = lambda d: jnp.square(first.norm(jnp.sqrt(jnp.maximum(d, 0.0))))
    bound = upper(jnp.maximum(1 + part(high), part(-low) - 1)) + upper(rest)
    return times(times(way.lip, largest(most(way.slope))), bound)


def _turned(
    place: tuple[tuple[int, int], ...] | None, sides: tuple[int, ...]
) -> tuple[tuple[int, int], ...] | None:
    """Where the transpose's kernel begins."""
    if place is None:
        return None
    return tuple(
        ((k - 1 - low) % n if n else k - 1 - low, n)
        for k, (low, n) in zip(sides, place, strict=True)
    )


def sandwich(root: Root, b: Array) -> Array:
    """`||B D A|| <= 1/2 ||s A A^T + B^T B / s||` for D in [0, 1] and any s > 0, times A's input.

    Since `(p q)^+ <= (p + q)^2 / 4`, u B D A v is at most a quarter of `||A v + B^T u||^2`, and so
    half of the square of `||(A, B^T)||`. The sandwich layer has `A A^T + B^T B = 2`, and so the
    constant 1 (2301.11526), where the product of norms is 2. Slopes up to m count as `m^(1/2)` on
    both sides; inf where a unit can fall, or where root are no units of a matrix.
    """
    if root.units is None or root.units[0].linear is None:
        return jnp.asarray(jnp.inf)
    first, slope = root.units[0].linear, root.units[1]
    if first.place is not None or b.shape[1] != len(first.weight):
        return jnp.asarray(jnp.inf)
    m = jnp.sqrt(jnp.maximum(slope[1].reshape(-1), 0.0))
    a, b = times(m[:, None], first.weight), times(b, m[None])
    sizes = [largest(jnp.abs(w)) for w in (a, b)]
    sizes = [jnp.where(size > 0, size, 1.0) for size in sizes]
    a, b = a / sizes[0], b / sizes[1]
    grams = a @ a.T, b.T @ b
    # The s that makes both as large, by their traces, and that of the layer as it is written.
    p, q = map(jnp.trace, grams)
    even = jnp.sqrt(jnp.where((p > 0) & (q > 0), q / jnp.where(p > 0, p, 1.0), 1.0))
    scales = jnp.stack([even, sizes[0] / sizes[1]])[:, None, None]
    sums = scales * grams[0][None] + grams[1][None] / scales
    half = jax.vmap(largest_eigenvalue)(sums).min() / 2
    bound = times(first.lip * sizes[0] * sizes[1], half)
    return jnp.where((slope[0] >= 0).all(), bound, jnp.inf)
