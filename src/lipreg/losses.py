"""Losses of logits, one value per example: `(logits [B, K], y) -> [B]`.

`y` is a class `[B]` (integers); cross entropy, KL and squared l2 also take a distribution over
classes `[B, K]`. Bind a model to get the loss of an image that objectives and attacks work with:
`loss = lambda x, y: cross_entropy(logits_fn(x), y)`.
"""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lipreg.norms import wide

__all__ = ["cross_entropy", "dlr", "kl", "margin", "squared_l2"]


def _in_single(loss: Callable[..., Array]) -> Callable[..., Array]:
    """The loss, in float32 where logits are in half precision."""

    @functools.wraps(loss)
    def widened(logits: Array, *classes: Array, **named: Array) -> Array:
        return loss(wide(logits), *classes, **named)

    return widened


def _distribution(y: Array, logits: Array) -> Array:
    if jnp.issubdtype(y.dtype, jnp.integer):
        return jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    return y.astype(logits.dtype)


@_in_single
def cross_entropy(logits: Array, y: Array) -> Array:
    """`-sum_k y_k log softmax(z)_k`; for a class y, `-log softmax(z)_y`.

    >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))
    Array([0.6931472], dtype=float32)
    """
    return optax.softmax_cross_entropy(logits, _distribution(y, logits))


@_in_single
def kl(logits: Array, y: Array) -> Array:
    """`KL(y || softmax(z))`, zero iff `softmax(z) = y`; cross entropy minus the entropy of y.

    Example 2.5 of 1808.09540.

    >>> kl(jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]]))
    Array([0.], dtype=float32)
    """
    return optax.kl_divergence(jax.nn.log_softmax(logits), _distribution(y, logits))


@_in_single
def squared_l2(logits: Array, y: Array) -> Array:
    """`||softmax(z) - y||_2^2` on the simplex, y one-hot or a distribution (Ex. 2.4, 1808.09540).

    >>> squared_l2(jnp.zeros((1, 2)), jnp.array([0]))
    Array([0.5], dtype=float32)
    """
    return jnp.square(jax.nn.softmax(logits) - _distribution(y, logits)).sum(-1)


@_in_single
def margin(logits: Array, y: Array) -> Array:
    """`max_{j != y} z_j - z_y`: positive where misclassified (Carlini & Wagner 2017).

    >>> margin(jnp.array([[3.0, 1.0]]), jnp.array([0]))
    Array([-2.], dtype=float32)
    """
    is_y = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    other = jnp.where(is_y, -jnp.inf, logits).max(-1)
    return other - jnp.take_along_axis(logits, y[:, None], -1)[:, 0]


@_in_single
def dlr(logits: Array, y: Array) -> Array:
    """`(max_{j != y} z_j - z_y) / (z_(1) - z_(3))`, blind to the logits' scale (Croce & Hein 2020).

    `z_(1) >= z_(2) >= ...` are the sorted logits. Two classes have no third: the loss is then the
    margin, and a warning says so.

    >>> dlr(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([0]))
    Array([-0.6666667], dtype=float32)
    """
    if logits.shape[-1] < 3:
        warnings.warn(f"dlr needs 3 classes and has {logits.shape[-1]}: used margin.", stacklevel=3)
        return margin(logits, y)
    top, _ = jax.lax.top_k(logits, 3)
    # Three equal logits have margin 0 or more anyway: any positive denominator will do.
    spread = top[:, 0] - top[:, 2]
    return margin(logits, y) / jnp.where(spread > 0, spread, 1.0)


@_in_single
def targeted_dlr(logits: Array, y: Array, target: Array) -> Array:
    """`(z_t - z_y) / (z_(1) - (z_(3) + z_(4))/2)`: dlr towards class t (Croce & Hein 2020).

    Below four classes it is the plain difference over dlr's own denominator; below three, as in
    dlr, over none, and a warning says so.

    >>> targeted_dlr(jnp.array([[3.0, 1.0, 0.0, 0.0]]), jnp.array([0]), jnp.array([1]))
    Array([-0.6666667], dtype=float32)
    """
    classes = logits.shape[-1]
    pick = lambda c: jnp.take_along_axis(logits, c[:, None], -1)[:, 0]
    towards = pick(target) - pick(y)
    if classes < 4:
        warnings.warn(
            f"targeted_dlr needs 4 classes and has {classes}: used "
            f"{'the denominator of dlr' if classes == 3 else 'margin'}.",
            stacklevel=3,
        )
    if classes < 3:
        return towards
    top, _ = jax.lax.top_k(logits, min(classes, 4))
    spread = top[:, 0] - top[:, 2:].mean(1)
    return towards / jnp.where(spread > 0, spread, 1.0)
