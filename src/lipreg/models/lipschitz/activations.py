"""Activations and pooling of slope at most 1.

MaxMin, GroupSort and abs change no gradient's norm, so that many layers keep it. MaxMin is the
maximum and the minimum of one pair of arrays: that is how a reader of the jaxpr can tell that the
two together have norm 1, where each of them alone has, and two unrelated ones would have sqrt(2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.lipschitz.bounds.forms import read_as
from lipreg.models.layers import windows
from lipreg.norms import wide

__all__ = ["ACTIVATIONS", "MONOTONE", "group_sort", "l2_pooled", "maxmin"]


def _groups(x: Array, size: int) -> Array:
    if x.shape[-1] % size:
        raise ValueError(f"{x.shape[-1]} channels are no groups of {size}; want a multiple.")
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def maxmin(x: Array) -> Array:
    """`(max(a, b), min(a, b))` of neighbouring channels a and b, in their place (1811.05381).

    >>> maxmin(jnp.array([1.0, 2.0, 5.0, 3.0]))
    Array([2., 1., 5., 3.], dtype=float32)
    """
    pairs = _groups(x, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([jnp.maximum(a, b), jnp.minimum(a, b)], -1).reshape(x.shape)


def group_sort(x: Array, size: int = 4) -> Array:
    """Groups of `size` neighbouring channels in ascending order (1811.05381).

    >>> group_sort(jnp.array([4.0, 2.0, 1.0, 3.0]))
    Array([1., 2., 3., 4.], dtype=float32)
    """
    return jnp.sort(_groups(x, size), -1).reshape(x.shape)


# One unit at a time, with slopes in [0, 1]: what residual and sandwich layers need.
MONOTONE: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "maxmin": maxmin,
    "group_sort": group_sort,
    "abs": jnp.abs,
    **MONOTONE,
}


@read_as(lambda x: jnp.sqrt(jnp.square(windows(x)).sum((2, 4))))
def l2_pooled(x: Array) -> Array:
    """`sqrt(sum of squares)` of 2 x 2 windows, for each channel; an odd last row is left out.

    1-Lipschitz, as a norm is and as windows do not overlap. The derivative at 0 is 0.

    >>> l2_pooled(jnp.array([3.0, 4.0, 0.0, 0.0]).reshape(1, 2, 2, 1)).ravel()
    Array([5.], dtype=float32)
    """
    x = windows(x)
    # Relative to each window's largest entry, whose square may underflow.
    size = jax.lax.stop_gradient(jnp.abs(wide(x)).max((2, 4), keepdims=True))
    size = jnp.where(size == 0, 1.0, size)
    squares = jnp.square(wide(x) / size).sum((2, 4), keepdims=True)
    length = jnp.sqrt(jnp.where(squares == 0, 1.0, squares))
    return (jnp.where(squares == 0, 0.0, length) * size)[:, :, 0, :, 0].astype(x.dtype)
