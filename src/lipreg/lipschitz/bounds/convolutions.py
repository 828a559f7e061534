"""Convolutions: their norms by Fourier transforms of the kernel."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds import residuals
from lipreg.lipschitz.bounds.intervals import largest, most, times, upper
from lipreg.lipschitz.bounds.mixing import weighted
from lipreg.lipschitz.bounds.roots import Linear, Root, entries, part_of
from lipreg.lipschitz.bounds.singular import largest_singular

__all__ = ["convolution"]


def convolution(params: dict, apply: Callable, w: Array, root: Root, left: bool) -> Root:
    """For `conv(x, w)`, the largest spectral norm of the kernel's Fourier transform (1805.10408).

    On a torus of side `n + k - 1` no window wraps around, so any padding gives some of the outputs
    of the torus, for inputs that are partly 0. An image that was padded with itself is a torus of
    side n. With a stride s, the s phases of the image are channels of an image of side n / s, and
    those of the outputs where the image is dilated.

    The transform on any torus is a sample of that on the line, whose largest norm the Gram
    iteration of kernels bounds (2305.16173, 2402.00240): it is never larger.

    If x is the kernel, or with batch groups, the bound is `||A||_2^2 <= ||A||_1 ||A||_inf`.
    """
    mask = most(root.slope)
    if not left or params["batch_group_count"] != 1:
        sums, back = jax.vjp(lambda v: apply(v, jnp.abs(w)), mask)

        def bound(c: Array) -> Array:
            rows, columns = times(c, sums), times(mask, back(c)[0])
            return times(root.lip, jnp.sqrt(times(largest(rows), largest(columns))))

        return weighted(apply, w, root, bound)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = w.transpose(numbers.rhs_spec)
    holes = [(0, 0, 0), (0, 0, 0), *((0, 0, d - 1) for d in params["rhs_dilation"])]
    kernel = jax.lax.pad(kernel, jnp.zeros((), w.dtype), holes)
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
    widths = kernel.shape[3:]
    once, lip, periods = _torus(params, root, widths)
    sides, phases = [], []
    for n, k, s, d, period in zip(
        (root.rows.shape[i] for i in numbers.lhs_spec[2:]),
        widths,
        params["window_strides"],
        params["lhs_dilation"],
        periods,
        strict=True,
    ):
        if period:
            sides.append(period // s)
            phases.append((s, 1))
        elif d == 1:
            # The first window may begin anywhere in a phase.
            sides.append((n if s == 1 else (n - 1) // s + 2) + -(-k // s) - 1)
            phases.append((s, 1))
        elif s == 1:
            sides.append(n + -(-k // d) - 1)
            phases.append((1, d))
        else:  # the outputs of a stride are some of those without
            sides.append((n - 1) * d + 1 + k - 1)
            phases.append((1, 1))

    def by_channel(values: Array, spec: Sequence[int]) -> Array:
        return (
            values.transpose(spec).max((0, *range(2, values.ndim)), initial=0.0).reshape(groups, -1)
        )

    def size(c: Array, mask: Array) -> Array:
        scaled = kernel * c.reshape(*c.shape, *(1,) * (kernel.ndim - 2))
        scaled = times(scaled, mask.reshape(groups, 1, -1, *(1,) * len(widths)))
        scaled = _phases(scaled, phases)
        waves = jnp.fft.rfftn(scaled, sides, tuple(range(3, scaled.ndim)))
        return largest_singular(jnp.moveaxis(waves, (1, 2), (-2, -1)))

    steepest = by_channel(mask, numbers.lhs_spec)

    def norm(c: Array) -> Array:
        return times(lip, size(by_channel(c, numbers.out_spec), steepest))

    def alone(c: Array) -> Array:
        return size(by_channel(c, numbers.out_spec), jnp.ones_like(steepest))

    made = None
    if groups == 1 and {*params["window_strides"], *params["lhs_dilation"]} == {1}:
        place, found = _place(params, root, periods), entries(root)
        source = found and (found[0], once)
        own = times(lip, largest(mask))
        out = jax.eval_shape(apply, mask, w).shape
        reads, writes = (
            (spec, tuple(period or shape[k] for k, period in zip(spec[2:], around, strict=True)))
            for spec, shape, around in (
                (numbers.lhs_spec, mask.shape, periods),
                (numbers.out_spec, out, [0] * len(periods)),
            )
        )
        made = Linear(
            *(source, own, kernel[0], alone, place, numbers.out_spec[1]), reads=reads, writes=writes
        )

    def least(c: Array) -> Array:
        if made is None:
            return norm(c)
        scaled = kernel[0] * by_channel(c, numbers.out_spec).reshape(-1, *(1,) * (w.ndim - 1))
        return jnp.minimum(upper(norm(c)), upper(residuals.sandwich_on_torus(made, scaled)))

    return weighted(apply, w, root, least, None, made)


def _phases(kernel: Array, phases: Sequence[tuple[int, int]]) -> Array:
    """`[G, O, I, ...]` with each side's phases moved to the inputs (s) or to the outputs (d)."""
    for axis, (s, d) in enumerate(phases, 3):
        step = s * d
        if step == 1:
            continue
        short = -kernel.shape[axis] % step
        widths = [(0, short if i == axis else 0) for i in range(kernel.ndim)]
        kernel = jnp.pad(kernel, widths)
        shape = list(kernel.shape)
        split = kernel.reshape(*shape[:axis], shape[axis] // step, step, *shape[axis + 1 :])
        channel = 2 if s > 1 else 1
        moved = jnp.moveaxis(split, axis + 1, channel + 1)
        shape[axis] //= step
        shape[channel] *= step
        kernel = moved.reshape(shape)
    return kernel


def _torus(params: dict, root: Root, widths: Sequence[int]) -> tuple[np.ndarray, Array, list[int]]:
    """Where the root lies in its whole, its constant, and its sides where it wraps around.

    An image that was padded with itself counts once, without the padding. The side is 0 where it
    was not.
    """
    numbers = params["dimension_numbers"]
    whole, index = part_of(root)
    places = index.transpose(numbers.lhs_spec)
    periods = []
    for axis, width in enumerate(widths, 2):
        lines = np.moveaxis(places, axis, 0)
        again = np.flatnonzero((lines[1:] == lines[:1]).all(tuple(range(1, lines.ndim))))
        period = int(again[0]) + 1 if len(again) and lines.size else 0
        s = params["window_strides"][axis - 2]
        wraps = (
            period >= width
            and period % s == 0
            and (lines[period:] == lines[:-period]).all()
            and (len(lines) - width) // s + 1 <= period // s
            and params["padding"][axis - 2] == (0, 0)
            and params["lhs_dilation"][axis - 2] == 1
        )
        periods.append(period if wraps else 0)
    if not any(periods) or entries(root) is None:
        return index, root.lip, [0] * len(periods)
    once, places = index, _place(params, root, periods)
    for axis, (first, period) in zip(numbers.lhs_spec[2:], places, strict=True):
        if period:
            once = once.take((first + np.arange(period)) % period, axis)
    count = np.bincount(once[once >= 0]).max(initial=0)
    return once, whole.lip * math.sqrt(count), periods


def _place(params: dict, root: Root, periods: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """How far each side is padded before its first entry, and its period."""
    _, index = part_of(root)
    places = index.transpose(params["dimension_numbers"].lhs_spec)
    place = []
    for axis, (period, padding) in enumerate(zip(periods, params["padding"], strict=True)):
        if not period:
            place.append((int(padding[0]), 0))
            continue
        line = np.moveaxis(places, axis + 2, 0)[:period]
        first = int(line.reshape(period, -1).min(1).argmin())
        place.append((first, period))
    return tuple(place)
