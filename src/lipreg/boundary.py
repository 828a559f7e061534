"""The decision boundary: which images are misclassified, and the last steps towards it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.contracts import LogitsFn, check_labels, check_logits
from lipreg.losses import margin
from lipreg.losses.classification import check
from lipreg.norms import expand, select, wide

__all__ = ["misclassified", "score", "to_boundary"]


def misclassified(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    """`argmax_k logits_k(x) != y`, [B]; also true where a logit is nan or inf.

    A logit of -inf is legal and masks its class. Classes of any integer type are compared as int32.
    """
    check_labels(y)
    logits, y = logits_fn(x), jnp.asarray(y)
    check_logits(logits, len(x))
    check(logits, y, distributions=False)
    return _wrong(logits, y) | ~jnp.isfinite(logits.max(-1))


def score(logits: Array, y: Array) -> Array:
    """The margin, above 0 exactly where the image is `misclassified`.

    So it is inf where a logit is nan or inf, and the smallest number above 0 where another class
    ties with y and is the answer.
    """
    value = margin(logits, y)
    value = jnp.where((value == 0) & _wrong(logits, y), jnp.finfo(value.dtype).tiny, value)
    return jnp.where(jnp.isfinite(logits.max(-1)), value, jnp.inf)


def _wrong(logits: Array, y: Array) -> Array:
    return jnp.argmax(logits, -1).astype(jnp.int32) != y.astype(jnp.int32)


def to_boundary(logits_fn: LogitsFn, x: Array, y: Array, x_adv: Array, *, steps: int = 10) -> Array:
    """The misclassified end of `steps` bisections between x and x_adv, forward passes only.

    x itself where it is misclassified, and where x_adv is not: an attack that failed.
    """
    fooled = misclassified(logits_fn, x_adv, y)
    start, way = wide(x), wide(x_adv) - wide(x)
    at = lambda fraction: (start + expand(fraction, way) * way).astype(x.dtype)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        """Fractions of the way to x_adv: right at the first, misclassified at the second."""
        right, wrong = ends
        middle = (right + wrong) / 2
        fooled = misclassified(logits_fn, at(middle), y)
        return jnp.where(fooled, right, middle), jnp.where(fooled, middle, wrong)

    ends = jnp.zeros(x.shape[0], way.dtype), jnp.ones(x.shape[0], way.dtype)
    _, fraction = jax.lax.fori_loop(0, steps, halve, ends)
    # x_adv itself where the fraction is 1: x + 1 (x_adv - x) may round to another point.
    nearest = select(fraction < 1, at(fraction), x_adv)
    # Classified again: in another program the last bit may differ.
    nearest = select(misclassified(logits_fn, nearest, y), nearest, x_adv)
    return select(misclassified(logits_fn, x, y) | ~fooled, x, nearest)
