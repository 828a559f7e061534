"""The box of legal pixels, `bounds = (low, high)`: its check, and steps that stay inside."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from lipreg.norms import Norm

__all__ = ["Bounds", "check_finite", "check_inside", "check_scale", "nudge", "within"]

Bounds = tuple[float, float]


def check_inside(x: Array, bounds: Bounds) -> None:
    """ValueError for x outside of the box, and for bounds that are no two increasing numbers."""
    low, high = _two(bounds)
    if not low < high:
        raise ValueError(f"bounds = {bounds}: the first must be less than the second.")
    if isinstance(x, Tracer):
        return
    values = np.asarray(x)
    if np.isnan(values).any():
        raise ValueError(f"x has values of nan: {int(np.isnan(values).sum())} of {values.size}.")
    # Pixels normalised in x's type differ by the rounding of mean, deviation, difference and
    # quotient from bounds normalised in another.
    room = 4 * float(jnp.finfo(values.dtype).eps)
    least, most = float(values.min()), float(values.max())
    if not (least >= low - room * abs(low) and most <= high + room * abs(high)):
        raise ValueError(f"x has values from {least:.9g} to {most:.9g}, outside bounds {bounds}.")


def _two(bounds: Bounds) -> tuple[float, float]:
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):  # arrays, also traced ones; more or fewer than two
        raise ValueError(
            f"bounds = {bounds}: give two numbers, which jit does not trace, for all pixels."
        ) from None
    return low, high


def check_finite(bounds: Bounds) -> None:
    """ValueError for bounds that are no two increasing finite numbers."""
    low, high = _two(bounds)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"bounds = {bounds}: want two finite numbers, the first the smaller.")


def check_scale(attack: str, bounds: Bounds) -> None:
    """ValueError for an infinite box, for attacks that measure lengths in widths of the box."""
    if not np.isfinite(bounds).all():
        raise ValueError(
            f"{attack}: bounds = {bounds}; it measures in widths of the box, which must be finite. "
            "fgsm, pgd, apgd, fab, deepfool and square need no such box."
        )


def nudge(x: Array, norm: Norm, bounds: Bounds) -> Array:
    """The length of a step where the linearised boundary passes through x itself: the size in
    `norm` of a millionth of the box's width in every pixel (of 1 if the box is infinite).
    """
    width = bounds[1] - bounds[0] if np.isfinite(bounds).all() else 1.0
    return norm.size(jnp.full((1, *x.shape[1:]), 1e-6 * width, x.dtype))[0]


def within(slope: Array, x: Array, bounds: Bounds) -> Array:
    """The slope, with 0 in entries that cannot follow it because x is at the bound already."""
    low, high = bounds
    return jnp.where(jnp.where(slope > 0, x < high, x > low), slope, 0.0)
