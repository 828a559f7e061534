"""Operations that mix entries: each takes settled roots and makes the next."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.lipschitz.slopes import Box, Rule, largest, length, most, outward, product, times, upper
from lipreg.lipschitz.values import Root, Value, settle

__all__ = [
    "combine",
    "concatenate",
    "convolution",
    "dense",
    "either",
    "extreme",
    "move",
    "plain",
    "total",
]


def _largest_singular(matrices: Array) -> Array:
    """`max ||M||_2` over a stack `[..., m, n]`, from above: `||(M M*)^(2^k)||_F^(1 / 2^(k + 1))`.

    k = 24 squarings leave a factor of `m^(2^-26)`. Not by LAPACK's eigenvalues: several batches of
    them in one program can wait for each other forever on a CPU of two cores.
    """
    # Relative to the largest entry, since its square may underflow.
    unit = largest(jnp.abs(matrices))
    matrices = matrices / jnp.where(unit > 0, unit, 1.0).astype(matrices.dtype)
    adjoint = matrices.conj().swapaxes(-1, -2)
    wide = matrices.shape[-2] < matrices.shape[-1]
    gram = matrices @ adjoint if wide else adjoint @ matrices

    one = jnp.ones(gram.shape[:-2], matrices.real.dtype)
    start = gram, one, jnp.ones((), one.dtype)
    power, root, exponent = jax.lax.fori_loop(0, 24, _squared, start)
    size = jnp.sqrt(jnp.square(jnp.abs(power)).sum((-2, -1)))
    return upper(jnp.sqrt(largest(root * size**exponent)) * unit)


def _squared(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    power, root, exponent = carry
    size = jnp.sqrt(jnp.square(jnp.abs(power)).sum((-2, -1)))
    power = power / jnp.where(size > 0, size, 1.0)[..., None, None].astype(power.dtype)
    return power @ power, root * size**exponent, exponent / 2


def _overlap(params: dict) -> int:
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
    return jnp.sqrt(sums((a / units[0]) ** 2, (b / units[1]) ** 2)) * units[0] * units[1]


def _summed(sums: Callable[[Array, Array], Array], w: Array, terms: int, box: Box) -> Box:
    """The box of `sums(v, w)`, bilinear with at most `terms` terms, by centre and radius.

    A sum of n products, in any order, is wrong by at most `n u` times the sum of their absolute
    values, u = eps / 2 (Higham 2002, section 3.1); eight times as much is added.
    """
    low, high = box
    rounding = 4 * (terms + 4) * float(jnp.finfo(low.dtype).eps)
    middle = sums((low + high) / 2, w)
    radius = sums((high - low) / 2 + rounding * most(box), jnp.abs(w))
    return outward((middle - radius, middle + radius))


def _both(image: Callable[[Box], Box], root: Root) -> tuple[Box, Box | None]:
    return image(root.box), root.centre and image(root.centre)


def _weighted(
    apply: Callable[[Array, Array], Array], w: Array, root: Root, norm: Callable, matrix: Any = None
) -> Root:
    """The root of a map that is linear in its input and in weights w."""
    image = partial(_summed, apply, w, min(w.size, root.rows.size))
    mask, size = most(root.slope), jnp.abs(w)
    rows = _sum_of_squares(apply, mask, size) * root.lip
    rows = jnp.minimum(upper(rows), upper(apply(mask * root.rows, size)))
    ones = jnp.ones_like(rows)
    return Root(*_both(image, root), (ones, ones), None, rows, norm, matrix)


def dense(params: dict, apply: Callable, w: Array, root: Root, left: bool) -> Root:
    """`A x`: ||diag(c) A diag(mask)||_2; `left` says whether x is the first factor."""
    (first, second), (batch, _) = params["dimension_numbers"]
    if batch:
        raise ValueError("No bound for a dot_general with batch dimensions; write it as matrices.")
    summed_w, summed_x = (second, first) if left else (first, second)
    free = [i for i in range(w.ndim) if i not in summed_w]
    mask = most(root.slope)
    kept = [i for i in range(mask.ndim) if i not in summed_x]
    size = lambda array, axes: math.prod(array.shape[i] for i in axes)
    outputs, terms, copies = size(w, free), size(w, summed_w), size(mask, kept)
    matrix = w.transpose(*free, *summed_w).reshape(outputs, terms)
    mask = mask.transpose(*kept, *summed_x).reshape(copies, terms)
    masked = times(matrix, mask.max(0, initial=0.0)[None])

    def norm(c: Array) -> Array:
        # One matrix for all copies: the largest c, and the largest mask, among them.
        c = c.reshape(copies, outputs).max(0) if left else c.reshape(outputs, copies).max(1)
        return times(root.lip, _largest_singular(times(c[:, None], masked)))

    return _weighted(apply, w, root, norm, masked * root.lip if copies == 1 else None)


def convolution(params: dict, apply: Callable, w: Array, root: Root, left: bool) -> Root:
    """For `conv(x, w)`, the largest spectral norm of the kernel's Fourier transform (1805.10408).

    On a torus of side `n + k - 1` no window wraps around, so any padding gives some of the outputs
    of the torus, for inputs that are partly 0; strides leave outputs out, and a dilated
    image has zeros in between. Where windows hardly overlap another bound is better: each entry
    lies in `ceil(k / s)` windows a side, and each window is multiplied by one matrix.

    If x is the kernel, or with batch groups, the bound is `||A||_2^2 <= ||A||_1 ||A||_inf`.
    """
    mask = most(root.slope)
    if not left or params["batch_group_count"] != 1:
        sums, back = jax.vjp(lambda v: apply(v, jnp.abs(w)), mask)

        def norm(c: Array) -> Array:
            rows, columns = times(c, sums), times(mask, back(c)[0])
            return times(root.lip, jnp.sqrt(times(largest(rows), largest(columns))))

        return _weighted(apply, w, root, norm)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = w.transpose(numbers.rhs_spec)
    holes = [(0, 0, 0), (0, 0, 0), *((0, 0, d - 1) for d in params["rhs_dilation"])]
    kernel = jax.lax.pad(kernel, jnp.zeros((), w.dtype), holes)
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
    shape = [root.box[0].shape[i] for i in numbers.lhs_spec[2:]]
    image = [(n - 1) * d + 1 for n, d in zip(shape, params["lhs_dilation"], strict=True)]
    sides = [n + k - 1 for n, k in zip(image, kernel.shape[3:], strict=True)]
    axes = tuple(range(3, kernel.ndim))
    windows = {"window_dimensions": kernel.shape[3:], "window_strides": params["window_strides"]}

    def norm(c: Array) -> Array:
        c = c.transpose(numbers.out_spec).max((0, *range(2, c.ndim))).reshape(groups, -1)
        scaled = kernel * c.reshape(*c.shape, *(1,) * (kernel.ndim - 2))
        waves = jnp.moveaxis(jnp.fft.rfftn(scaled, sides, axes), (1, 2), (-2, -1))
        patches = _largest_singular(scaled.reshape(*c.shape, -1)) * math.sqrt(_overlap(windows))
        return times(times(root.lip, largest(mask)), jnp.minimum(_largest_singular(waves), patches))

    return _weighted(apply, w, root, norm)


def total(params: dict, apply: Callable, root: Root) -> Root:
    """`A x`, entries of A 0 or 1: `||A diag(m)||_2^2 <= ||A diag(m)||_1 ||A diag(m)||_inf`."""
    mask = most(root.slope)
    sums = lambda v, _: apply(v)
    image = partial(_summed, sums, jnp.ones(()), root.rows.size)
    squares = _sum_of_squares(sums, mask, jnp.ones(()))
    rows = jnp.minimum(upper(apply(mask * root.rows)), upper(times(squares, root.lip)))
    lip = root.lip * jnp.sqrt(largest(apply(mask)) * largest(mask) * _overlap(params))
    return plain(*_both(image, root), lip, rows)


def extreme(params: dict, apply: Callable, root: Root, sign: int) -> Root:
    """`max` over windows, or with sign -1 `min`: `||dv||_2 <= sqrt(overlap) ||du||_2`."""
    mask = most(root.slope)
    # A window that holds only padding is infinite in value and size.
    rows = jnp.maximum(sign * apply(sign * times(mask, root.rows)), 0.0)
    lip = times(root.lip, largest(mask)) * math.sqrt(_overlap(params))
    return plain(*_both(lambda box: (apply(box[0]), apply(box[1])), root), lip, rows)


def plain(box: Box, centre: Box | None, lip: Any, rows: Array) -> Root:
    ones = jnp.ones_like(rows)
    return Root(box, centre, (ones, ones), lip, rows)


def _constant(a: Array, centre: bool) -> Root:
    return plain((a, a), (a, a) if centre else None, jnp.zeros((), a.dtype), jnp.zeros_like(a))


def combine(rule: Rule, args: list, shape: tuple[int, ...]) -> Root:
    """An elementwise operation on several roots: `||dv|| <= sum_k max|d_k v| ||du_k||`."""
    roots = [settle(a) if isinstance(a, Value) else None for a in args]
    ends = lambda which: [which(r) if r else (a, a) for r, a in zip(roots, args, strict=True)]
    full = lambda box: (jnp.broadcast_to(box[0], shape), jnp.broadcast_to(box[1], shape))
    box, partials = rule(*ends(lambda r: r.box))
    centred = all(r.centre for r in roots if r)
    centre = full(rule(*ends(lambda r: r.centre))[0]) if centred else None
    lip, rows = jnp.zeros(()), jnp.zeros(shape)
    for root, slope in zip(roots, partials, strict=True):
        if root:
            size = jnp.broadcast_to(most(product(slope, root.slope)), shape)
            copies = size.size / max(root.rows.size, 1)
            lip = lip + times(largest(size), root.lip) * math.sqrt(copies)
            rows = rows + times(size, root.rows)
    return plain(full(box), centre, lip, rows)


def concatenate(join: Callable, args: list) -> Root:
    """`||d(v_1, v_2, ...)||^2 <= sum_k lip_k^2 ||dx||^2`; `join` puts the pieces together."""
    roots = [settle(a) if isinstance(a, Value) else a for a in args]
    centred = all(r.centre for r in roots if isinstance(r, Root))
    roots = [r if isinstance(r, Root) else _constant(r, centred) for r in roots]
    box, centre, slope, rows = (
        jax.tree.map(lambda *pieces: join(pieces), *parts)
        for parts in zip(*((r.box, r.centre, r.slope, r.rows) for r in roots), strict=True)
    )
    return Root(box, centre, slope, length(jnp.stack([r.lip for r in roots])), rows)


def either(args: list, alike: Array) -> Root:
    """The hull of several values, one of which is taken; the last value where `alike` is true."""
    roots = [settle(a) if isinstance(a, Value) else a for a in args]
    centred = all(r.centre for r in roots if isinstance(r, Root))
    roots = [r if isinstance(r, Root) else _constant(r, centred) for r in roots]

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


def move(apply: Callable, apply_slopes: Callable, root: Root, copies: Callable) -> list[Root]:
    """Entries moved, left out, copied or padded; the norm is the root of the number of copies."""
    columns = lambda box: list(zip(*(apply(end) for end in box), strict=True))
    boxes, slopes = columns(root.box), list(zip(*map(apply_slopes, root.slope), strict=True))
    centres = columns(root.centre) if root.centre else [None] * len(boxes)
    rows = apply_slopes(root.rows)
    lip = root.lip * jnp.sqrt(copies(rows[0]))
    return [Root(b, c, s, lip, r) for b, c, s, r in zip(boxes, centres, slopes, rows, strict=True)]
