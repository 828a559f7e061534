"""Centring and normalisation of a batch, of an example and of the last layer's weights."""

import jax.numpy as jnp
from jax import Array

from lipreg.models.lipschitz.rescaled import unscaled
from lipreg.norms import wide

__all__ = ["batch_normalised", "centred", "unit_columns"]


def centred(x: Array) -> Array:
    """`x - mean`, over each example's pixels, `[B, H, W, C]`, or features, `[B, F]`: a projection.

    >>> centred(jnp.array([[1.0, 3.0]]))
    Array([[-1.,  1.]], dtype=float32)
    """
    return x - x.mean((1, 2) if x.ndim == 4 else 1, keepdims=True)


def batch_normalised(x: Array, mean: Array, var: Array, gain: Array) -> Array:
    """`(x - mean) g / max(1, max |g|)`, `g = gain / sqrt(var + 1e-5)`, for each channel.

    Batch normalisation by which no channel is amplified: with fixed statistics, as in the frozen
    view, it is 1-Lipschitz, whatever they are. Computed in float32.

    >>> one = jnp.ones(2)
    >>> batch_normalised(jnp.ones((1, 2)), 0 * one, jnp.array([4.0, 0.25]), one).round(2)
    Array([[0.25, 1.  ]], dtype=float32)
    """
    g = gain / jnp.sqrt(var + 1e-5)
    g = g / jnp.maximum(1.0, jnp.abs(g).max())
    shape = (1,) * (x.ndim - 1) + g.shape
    return ((wide(x) - mean.reshape(shape)) * g.reshape(shape)).astype(x.dtype)


def unit_columns(w: Array) -> Array:
    """`w_k / ||w_k||` for each class k, w `[in, K]`: last-layer normalisation (2108.04062).

    Each logit is 1-Lipschitz, and a margin `||w_j - w_k||`-Lipschitz, at most 2. A matrix of norm 1
    keeps all margins within sqrt(2), but its columns have to share that norm.

    >>> unit_columns(jnp.array([[3.0], [4.0]]))
    Array([[0.6],
           [0.8]], dtype=float32)
    """
    w, _ = unscaled(w, (0,))
    return w / jnp.sqrt(jnp.maximum(jnp.square(w).sum(0, keepdims=True), 1e-12))
