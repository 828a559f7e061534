"""Losses of a classifier's logits, however they were trained: cross entropy, KL, margin, DLR."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from lipreg.norms import largest, wide

__all__ = [
    "check",
    "check_option",
    "cross_entropy",
    "distribution",
    "divergence",
    "dlr",
    "kl",
    "margin",
    "smoothed_cross_entropy",
    "squared_l2",
    "targeted_dlr",
]


def check(logits: Array, y: Array, *, distributions: bool = True) -> None:
    """ValueError for shapes that do not belong together, and for classes that there are not.

    Values are looked at outside of `jit` only.
    """
    shapes = [logits.shape[:-1], logits.shape] if distributions else [logits.shape[:-1]]
    if logits.ndim < 1 or y.shape not in shapes:
        also = ", or distributions [B, K]" * distributions
        raise ValueError(
            f"logits of shape {list(logits.shape)} and y of shape {list(y.shape)}: want [B, K] and "
            f"classes [B]{also}."
        )
    if y.ndim < logits.ndim and not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y of shape {list(y.shape)} has dtype {y.dtype}; classes are integers.")
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(
            "One logit: a loss needs one for each class. Of a logit z of the second of two classes "
            "contracts.two_logits makes (0, z)."
        )
    if jnp.issubdtype(y.dtype, jnp.integer) and not isinstance(y, Tracer) and y.size:
        least, most = int(np.asarray(y).min()), int(np.asarray(y).max())
        if not 0 <= least <= most < classes:
            raise ValueError(
                f"y has values from {least} to {most}; logits have 0 to {classes - 1}."
            )


def distribution(y: Array, logits: Array) -> Array:
    """y as a distribution over the classes of the logits, in their dtype; a class as one-hot."""
    check(logits, y)
    if y.ndim < logits.ndim:
        # As int32: a narrow type cannot hold the numbers of many classes.
        return jax.nn.one_hot(y.astype(jnp.int32), logits.shape[-1], dtype=logits.dtype)
    return y.astype(logits.dtype)


def check_option(loss: str, low: float, high: float = math.inf, **options: Any) -> None:
    """ValueError for an option of a loss that is no number from low to high, or not finite."""
    wanted = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
    for name, value in options.items():
        if isinstance(value, Tracer):
            continue
        number = isinstance(value, int | float | np.number | np.ndarray | Array)
        if not number or np.ndim(value) or not low <= value <= high or value == math.inf:
            raise ValueError(f"{name} = {value!r} of {loss}; it must be a number {wanted}.")


def _log_softmax(logits: Array, p: Array) -> Array:
    """`log softmax(z)`, but 0 for a masked class (a logit of -inf) of probability 0 in p."""
    likely = jax.nn.log_softmax(logits)
    return jnp.where((p == 0) & jnp.isneginf(likely), 0.0, likely)


def cross_entropy(logits: Array, y: Array) -> Array:
    """`-sum_k y_k log softmax(z)_k`; for a class y, `-log softmax(z)_y`.

    >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))
    Array([0.6931472], dtype=float32)
    """
    logits = wide(logits)
    p = distribution(y, logits)
    return -(p * _log_softmax(logits, p)).sum(-1)


def smoothed_cross_entropy(logits: Array, y: Array, *, smoothing: float = 0.1) -> Array:
    """Cross entropy with `(1 - a) y + a/K` for y: label smoothing (Szegedy et al. 1512.00567).

    K counts the classes that are not masked. The loss is least at `p_y = 1 - a + a/K`: where the
    network is surer, its ascent makes it surer still, so attacks ascend another loss.

    >>> smoothed_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0]), smoothing=0.5).round(2)
    Array([0.63], dtype=float32)
    """
    check_option("smoothed_cross_entropy", 0, 1, smoothing=smoothing)
    logits = wide(logits)
    even = jax.nn.softmax(jnp.where(jnp.isneginf(logits), logits, 0.0))
    p = (1 - smoothing) * distribution(y, logits) + smoothing * even
    return cross_entropy(logits, p)


def kl(logits: Array, y: Array) -> Array:
    """`KL(y || softmax(z))`, zero iff `softmax(z) = y`; cross entropy minus the entropy of y.

    Example 2.5 of 1808.09540.

    >>> kl(jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]]))
    Array([0.], dtype=float32)
    """
    logits = wide(logits)
    p = distribution(y, logits)
    return optax.kl_divergence(_log_softmax(logits, p), p)


def divergence(logits: Array, target: Array) -> Array:
    """`KL(softmax(t) || softmax(z))` of logits z and t `[B, K]`, differentiable in both.

    Classes that are masked in both are left out.

    >>> divergence(jnp.zeros((1, 2)), jnp.array([[50.0, 0.0]]))
    Array([0.6931472], dtype=float32)
    """
    logits, target = wide(logits), wide(target)
    likely, expected = jax.nn.log_softmax(logits), jax.nn.log_softmax(target)
    gap = jnp.where(jnp.isneginf(target), 0.0, expected - likely)
    return (jnp.exp(expected) * gap).sum(-1)


def squared_l2(logits: Array, y: Array) -> Array:
    """`||softmax(z) - y||_2^2` on the simplex, y one-hot or a distribution (Ex. 2.4, 1808.09540).

    >>> squared_l2(jnp.zeros((1, 2)), jnp.array([0]))
    Array([0.5], dtype=float32)
    """
    logits = wide(logits)
    return jnp.square(jax.nn.softmax(logits) - distribution(y, logits)).sum(-1)


def margin(logits: Array, y: Array) -> Array:
    """`max_{j != y} z_j - z_y`: positive where misclassified (Carlini & Wagner 2017).

    >>> margin(jnp.array([[3.0, 1.0]]), jnp.array([0]))
    Array([-2.], dtype=float32)
    """
    logits = wide(logits)
    check(logits, y, distributions=False)
    y = y.astype(jnp.int32)
    is_y = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    other = largest(jnp.where(is_y, -jnp.inf, logits))
    return other - jnp.take_along_axis(logits, y[:, None], -1)[:, 0]


def dlr(logits: Array, y: Array) -> Array:
    """`(max_{j != y} z_j - z_y) / (z_(1) - z_(3))`: the logits' scale cancels (Croce & Hein 2020).

    `z_(1) >= z_(2) >= ...` are the sorted logits. Two classes have no third: the loss is then the
    margin, and a warning says so.

    >>> dlr(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([0]))
    Array([-0.6666667], dtype=float32)
    """
    logits = wide(logits)
    if logits.shape[-1] < 3:
        warnings.warn(f"dlr needs 3 classes and has {logits.shape[-1]}: used margin.", stacklevel=2)
        return margin(logits, y)
    top, _ = jax.lax.top_k(logits, 3)
    return margin(logits, y) / _denominator(top[:, 0] - top[:, 2])


def _denominator(spread: Array) -> Array:
    """The spread; 1 where it is 0, or infinite because the third largest logit is masked."""
    return jnp.where((spread > 0) & (spread < jnp.inf), spread, 1.0)


def targeted_dlr(logits: Array, y: Array, target: Array) -> Array:
    """`(z_t - z_y) / (z_(1) - (z_(3) + z_(4))/2)`: dlr towards class t (Croce & Hein 2020).

    With three classes the denominator is that of dlr, with two there is none, as in dlr; a warning
    says so.

    >>> targeted_dlr(jnp.array([[3.0, 1.0, 0.0, 0.0]]), jnp.array([0]), jnp.array([1]))
    Array([-0.6666667], dtype=float32)
    """
    logits = wide(logits)
    check(logits, y, distributions=False)
    classes = logits.shape[-1]
    pick = lambda c: jnp.take_along_axis(logits, c[:, None].astype(jnp.int32), -1)[:, 0]
    towards = pick(target) - pick(y)
    if classes < 4:
        warnings.warn(
            f"targeted_dlr needs 4 classes and has {classes}: used "
            f"{'the denominator of dlr' if classes == 3 else 'margin'}.",
            stacklevel=2,
        )
    if classes < 3:
        return towards
    top, _ = jax.lax.top_k(logits, min(classes, 4))
    return towards / _denominator(top[:, 0] - top[:, 2:].mean(1))
