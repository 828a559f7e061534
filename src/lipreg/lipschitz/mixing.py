"""Operations that mix entries: each takes a settled root and makes the next."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.lipschitz.slopes import Box, Rule, most, product
from lipreg.lipschitz.values import Root, Value, settle

__all__ = [
    "combine",
    "concatenate",
    "convolution",
    "dense",
    "extreme",
    "move",
    "plain",
    "total",
]


def _largest_singular(matrices: Array) -> Array:
    """`max ||M||_2` over a stack `[..., m, n]`, from above: `||(M M*)^(2^k)||_F^(1 / 2^(k + 1))`.

    k = 24 squarings leave a factor of `m^(2^-26)`. No eigenvalues of LAPACK: several batches of
    them in one program can wait for each other for ever on a CPU of two cores.
    """
    adjoint = matrices.conj().swapaxes(-1, -2)
    wide = matrices.shape[-2] < matrices.shape[-1]
    gram = matrices @ adjoint if wide else adjoint @ matrices

    def square(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        power, root, exponent = carry
        size = jnp.sqrt(jnp.square(jnp.abs(power)).sum((-2, -1)))
        power = power / jnp.where(size > 0, size, 1.0)[..., None, None].astype(power.dtype)
        return power @ power, root * size**exponent, exponent / 2

    one = jnp.ones(gram.shape[:-2], matrices.real.dtype)
    start = gram, one, jnp.ones((), one.dtype)
    power, root, exponent = jax.lax.fori_loop(0, 24, square, start)
    size = jnp.sqrt(jnp.square(jnp.abs(power)).sum((-2, -1)))
    return jnp.sqrt((root * size**exponent).max())


def _overlap(windows: Any, strides: Any) -> int:
    """The most windows that one entry lies in."""
    return math.prod(math.ceil(w / s) for w, s in zip(windows, strides, strict=True))


def _weighted(apply: Callable[[Array, Array], Array], w: Array, root: Root) -> tuple[Box, Array]:
    """Box by centre and radius, and rows, of a map that is linear in its input and in weights w."""
    low, high = root.box
    mask = most(root.slope)
    middle, radius = apply((low + high) / 2, w), apply((high - low) / 2, jnp.abs(w))
    rows = jnp.sqrt(apply(mask**2, w**2)) * root.lip
    return (middle - radius, middle + radius), jnp.minimum(
        rows, apply(mask * root.rows, jnp.abs(w))
    )


def dense(params: dict, apply: Callable, w: Array, root: Root, left: bool) -> Root:
    """`A x`: ||diag(c) A diag(mask)||_2; `left` says whether x is the first factor."""
    (first, second), (batch, _) = params["dimension_numbers"]
    if batch:
        raise ValueError("No bound for a dot_general with batch dimensions; write it as matrices.")
    summed, of_x = (second, first) if left else (first, second)
    free = [i for i in range(w.ndim) if i not in summed]
    matrix = w.transpose(*free, *summed).reshape(-1, math.prod(w.shape[i] for i in summed))
    mask = most(root.slope)
    kept = [i for i in range(mask.ndim) if i not in of_x]
    mask = mask.transpose(*kept, *of_x).reshape(-1, matrix.shape[1])
    copies = len(mask)
    masked = matrix * mask.max(0)[None]

    def norm(c: Array) -> Array:
        # One matrix for all copies: the largest c, and the largest mask, among them.
        c = c.reshape(copies, -1).max(0) if left else c.reshape(-1, copies).max(1)
        return root.lip * _largest_singular(c[:, None] * masked)

    box, rows = _weighted(apply, w, root)
    gram = masked @ masked.T * root.lip**2 if copies == 1 else None
    return _linear(box, rows, norm, gram)


def convolution(params: dict, apply: Callable, w: Array, root: Root) -> Root:
    """Of `conv(x, w)`: the largest spectral norm of the kernel's Fourier transform (1805.10408).

    On a torus of side `n + k - 1` no window wraps around, so that every padding gives a part of
    the torus's outputs for inputs of which some are 0; strides leave outputs out, and a dilated
    image has zeros in between. Where windows hardly overlap another bound is better: each entry
    lies in `ceil(k / s)` windows a side, and each window is multiplied by one matrix.
    """
    if params["batch_group_count"] != 1:
        raise ValueError("No bound for a convolution with batch_group_count > 1.")
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = w.transpose(numbers.rhs_spec)
    holes = [(0, 0, 0), (0, 0, 0), *((0, 0, d - 1) for d in params["rhs_dilation"])]
    kernel = jax.lax.pad(kernel, jnp.zeros((), w.dtype), holes)
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
    shape = [root.box[0].shape[i] for i in numbers.lhs_spec[2:]]
    image = [(n - 1) * d + 1 for n, d in zip(shape, params["lhs_dilation"], strict=True)]
    sides = [n + k - 1 for n, k in zip(image, kernel.shape[3:], strict=True)]
    axes = tuple(range(3, kernel.ndim))
    mask = most(root.slope).max()

    def norm(c: Array) -> Array:
        c = c.transpose(numbers.out_spec).max((0, *range(2, c.ndim))).reshape(groups, -1)
        scaled = kernel * c.reshape(*c.shape, *(1,) * (kernel.ndim - 2))
        waves = jnp.moveaxis(jnp.fft.rfftn(scaled, sides, axes), (1, 2), (-2, -1))
        patches = _largest_singular(scaled.reshape(*c.shape, -1))
        patches = patches * math.sqrt(_overlap(kernel.shape[3:], params["window_strides"]))
        return root.lip * mask * jnp.minimum(_largest_singular(waves), patches)

    return _linear(*_weighted(apply, w, root), norm)


def _linear(box: Box, rows: Array, norm: Callable, gram: Array | None = None) -> Root:
    ones = jnp.ones_like(rows)
    return Root(box, (ones, ones), None, rows, norm, gram)


def total(params: dict, apply: Callable, root: Root) -> Root:
    """`A x`, entries of A 0 or 1: `||A diag(m)||_2^2 <= ||A diag(m)||_1 ||A diag(m)||_inf`."""
    mask = most(root.slope)
    overlap = _overlap(params.get("window_dimensions", ()), params.get("window_strides", ()))
    rows = jnp.minimum(apply(mask * root.rows), jnp.sqrt(apply(mask**2)) * root.lip)
    lip = root.lip * jnp.sqrt(apply(mask).max() * mask.max() * overlap)
    return plain((apply(root.box[0]), apply(root.box[1])), lip, rows)


def extreme(params: dict, apply: Callable, root: Root, sign: int) -> Root:
    """`max` over windows, or with sign -1 `min`: `||dv||_2 <= sqrt(overlap) ||du||_2`."""
    mask = most(root.slope)
    overlap = _overlap(params.get("window_dimensions", ()), params.get("window_strides", ()))
    rows = sign * apply(sign * mask * root.rows)
    lip = root.lip * mask.max() * math.sqrt(overlap)
    return plain((apply(root.box[0]), apply(root.box[1])), lip, rows)


def plain(box: Box, lip: Array, rows: Array) -> Root:
    ones = jnp.ones_like(box[0])
    return Root(box, (ones, ones), lip, rows)


def combine(rule: Rule, args: list, shape: tuple[int, ...]) -> Root:
    """An elementwise operation on several roots: `||dv|| <= sum_k max|d_k v| ||du_k||`."""
    roots = [settle(a) if isinstance(a, Value) else None for a in args]
    box, partials = rule(*(r.box if r else (a, a) for r, a in zip(roots, args, strict=True)))
    lip, rows = jnp.zeros(()), jnp.zeros(shape)
    for root, slope in zip(roots, partials, strict=True):
        if root:
            size = jnp.broadcast_to(most(product(slope, root.slope)), shape)
            copies = size.size / root.rows.size
            lip = lip + size.max() * root.lip * math.sqrt(copies)
            rows = rows + size * root.rows
    return plain((jnp.broadcast_to(box[0], shape), jnp.broadcast_to(box[1], shape)), lip, rows)


def concatenate(params: dict, args: list) -> Root:
    """`||d(v_1, v_2, ...)||^2 <= sum_k lip_k^2 ||dx||^2`."""

    def parts(a: Any) -> tuple[Box, Box, Array, Array]:
        root = settle(a) if isinstance(a, Value) else plain((a, a), 0 * a.ravel()[0], 0 * a)
        return root.box, root.slope, root.rows, root.lip

    *arrays, lips = zip(*map(parts, args), strict=True)
    join = lambda *pieces: jnp.concatenate(pieces, params["dimension"])
    box, slope, rows = (jax.tree.map(join, *pieces) for pieces in arrays)
    return Root(box, slope, jnp.linalg.norm(jnp.stack(lips)), rows)


def move(name: str, apply: Callable, apply_slopes: Callable, root: Root) -> list[Root]:
    """Entries moved, left out, copied or padded; the norm is the root of the number of copies."""
    boxes = zip(*map(apply, root.box), strict=True)
    slopes = zip(*map(apply_slopes, root.slope), strict=True)
    rows = apply_slopes(root.rows)
    copies = rows[0].size / root.rows.size if name == "broadcast_in_dim" else 1
    lip = root.lip * math.sqrt(copies)
    return [Root(b, s, lip, r) for b, s, r in zip(boxes, slopes, rows, strict=True)]
