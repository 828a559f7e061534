"""Several linear maps as one: `x - A^T D A x`, `B D A x`, D diagonal, and `x - mean(x)`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds.intervals import Box, largest, most, negative, product, times, upper
from lipreg.lipschitz.bounds.roots import Linear, Root, entries, part_of, summed_over
from lipreg.lipschitz.bounds.singular import largest_eigenvalue
from lipreg.lipschitz.bounds.values import Value, bound, settle

__all__ = ["less_sums", "sandwich", "sandwich_on_torus", "symmetric"]


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
    if (first.reads, first.writes) != (second.writes, second.reads):
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
    return _between(first, slope, slope[1].reshape(-1), first.weight, b)


def sandwich_on_torus(second: Linear, b: Array) -> Array:
    """`sandwich` of circular convolutions: `s A A^* + B^* B / s` for each frequency.

    b `[O, I, ...]` is the kernel of `second`, scaled by output. Where a kernel begins moves all of
    its image, and neither product knows of that.
    """
    inner = second.source and second.source[0]
    if inner is None or inner.units is None or not _same(second.source, entries(inner)):
        return jnp.asarray(jnp.inf)
    first, slope = inner.units[0].linear, inner.units[1]
    if first is None or first.place is None or second.place is None:
        return jnp.asarray(jnp.inf)
    if first.writes != second.reads:
        return jnp.asarray(jnp.inf)
    sides = [[n for _, n in linear.place or ()] for linear in (first, second)]
    if sides[0] != sides[1] or not all(sides[0]) or b.shape[1] != len(first.weight):
        return jnp.asarray(jnp.inf)
    axes = tuple(range(2, b.ndim))

    def by_frequency(kernel: Array) -> Array:
        waves = jnp.fft.fftn(kernel, sides[0], axes)
        return jnp.moveaxis(waves, (0, 1), (-2, -1)).reshape(-1, *kernel.shape[:2])

    steepest = first.by_output(slope[1], jnp.max)
    return _between(first, slope, steepest, by_frequency(first.weight), by_frequency(b))


def _between(first: Linear, slope: Box, steepest: Array, a: Array, b: Array) -> Array:
    """The bound of `sandwich` for stacks of matrices, with slopes of units up to `steepest`."""
    m = jnp.sqrt(jnp.maximum(steepest, 0.0)).astype(a.dtype)
    stack = (1,) * (a.ndim - 2)
    a, b = times(m.reshape(*stack, -1, 1), a), times(b, m.reshape(*stack, 1, -1))
    sizes = [largest(jnp.abs(w)) for w in (a, b)]
    sizes = [jnp.where(size > 0, size, 1.0) for size in sizes]
    a, b = (w / size.astype(w.dtype) for w, size in zip((a, b), sizes, strict=True))
    grams = a @ a.conj().mT, b.conj().mT @ b
    # The s that makes both as large, by their traces, and that of the layer as it is written.
    p, q = (jnp.trace(gram, axis1=-2, axis2=-1).real.sum() for gram in grams)
    even = jnp.sqrt(jnp.where((p > 0) & (q > 0), q / jnp.where(p > 0, p, 1.0), 1.0))
    scales = jnp.stack([even, sizes[0] / sizes[1]]).astype(a.dtype)
    sums = lambda s: s * grams[0] + grams[1] / s
    half = jax.vmap(lambda s: largest_eigenvalue(sums(s)))(scales).min() / 2
    bound = times(first.lip * sizes[0] * sizes[1], half)
    return jnp.where((slope[0] >= 0).all(), bound, jnp.inf)


def less_sums(name: str, roots: list) -> Array | None:
    """A bound of `||dv|| / ||dx||` for `v = w + c sum(w)`, or None where v has another form.

    Sums are over groups of n entries, each added to its own: `1 + c 1 1^T` has the eigenvalues 1
    and `1 + c n`. So `w - mean(w)` is a projection, of norm 1. Factors that differ from c by up to
    r add `r n`.
    """
    if name not in ("add", "sub") or any(root is None for root in roots):
        return None
    for k, other in ((0, 1), (1, 0)):
        way, whole = roots[k], part_of(roots[other])[0]
        group = summed_over(way, roots[other])
        if group is None or (name == "sub" and k == 1):
            continue
        n = group.size // whole.rows.size
        low, high = roots[other].slope if name == "add" else negative(roots[other].slope)
        c, r = (high.max() + low.min()) / 2, (high.max() - low.min()) / 2
        bound = upper(jnp.maximum(1.0, jnp.abs(1 + n * c)) + n * r)
        return times(times(way.lip, largest(most(way.slope))), bound)
    return None
