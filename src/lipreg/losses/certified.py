"""Losses that ask for margins, for networks whose Lipschitz constant is known.

The logits of a 1-Lipschitz network change slowly, and its cross entropy alone is content with
margins that certify little. `margins` is a Lipschitz constant of the difference of two logits, a
number or `[K, K]`, one for each pair: sqrt(2) for a network that is 1-Lipschitz, 2 where each logit
is, and `L ||w_j - w_k||` for a last layer w after an L-Lipschitz network. A certificate of radius
eps then needs the margin `eps * margins`. y is a class; the losses without `margins` also take a
distribution over classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.losses.classification import check, check_option, cross_entropy, distribution
from lipreg.norms import largest, wide

__all__ = ["emma", "gloro", "hkr", "logit_annealing", "offset_cross_entropy"]

SQRT2 = 2**0.5
SMALL = 1e-6  # the least temperature


def offset_cross_entropy(
    logits: Array, y: Array, *, offset: float = 1.5 * SQRT2, temperature: float = 0.25
) -> Array:
    """`T CE((z - xi 1_y) / T, y)`: cross entropy that begins at a margin of xi (2208.03160, AOL).

    `offset` xi and `temperature` T are in units of the logits; the smaller T, the more the loss is
    the largest of `xi - margin` and 0. y may be a distribution p, which is then offset by `xi p`.

    >>> offset_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0]), offset=2.0, temperature=1.0)
    Array([0.6931472], dtype=float32)
    """
    check_option("offset_cross_entropy", SMALL, temperature=temperature)
    check_option("offset_cross_entropy", 0, offset=offset)
    logits = wide(logits)
    shifted = logits - offset * distribution(y, logits)
    return temperature * cross_entropy(shifted / temperature, y)


def hkr(logits: Array, y: Array, *, alpha: float = 0.9, margin: float = 1.0) -> Array:
    """`a/2 [h(z_y) + mean_j h(-z_j)] - (1 - a)(z_y - mean_j z_j)`, `h(t) = max(0, m/2 - t)`.

    Hinge and Kantorovich-Rubinstein (2006.06520) for K classes, one against all, j over the other
    K - 1: z_y counts as much as they do together. For two logits (f, -f) it is the binary loss,
    `a max(0, m/2 - s f) - 2 (1 - a) s f`, s = 1 or -1 for classes of equal size. `alpha` a is the
    hinge's weight, `margin` m in units of the logits. Masked classes do not count among the K.

    >>> hkr(jnp.array([[0.25, -0.25]]), jnp.array([0]), alpha=0.5)
    Array([-0.125], dtype=float32)
    """
    check_option("hkr", 0, 1, alpha=alpha)
    check_option("hkr", 0, margin=margin)
    logits = wide(logits)
    is_y, masked = distribution(y, logits), jnp.isneginf(logits) & (distribution(y, logits) == 0)
    logits = jnp.where(masked, 0.0, logits)
    others = jnp.where(masked, 0.0, 1 - is_y)
    others = others / jnp.maximum((~masked).sum(-1, keepdims=True).astype(others.dtype) - 1, 1)
    hinge = lambda t: jax.nn.relu(margin / 2 - t)
    hinges = (is_y * hinge(logits) + others * hinge(-logits)).sum(-1)
    return alpha / 2 * hinges - (1 - alpha) * ((is_y - others) * logits).sum(-1)


def emma(logits: Array, y: Array, *, eps: float = 36 / 255, margins: ArrayLike = SQRT2) -> Array:
    """`CE(z_j - z_y + t_j eps m_j, y)`, `t_j = clip((z_y - z_j) / (eps m_j), 0.01, 1)`, EMMA.

    The logits of the worst input within eps, as the margin constants m bound it, but a class behind
    y comes no nearer than to a tie, or by 1 % of its way (2301.12549); t has no derivative.

    >>> emma(jnp.array([[1.0, 0.0]]), jnp.array([0]), eps=1.0)  # a margin of 1 can be undone
    Array([0.6931472], dtype=float32)
    """
    return cross_entropy(_worst(wide(logits), y, eps, margins), y)


def _worst(logits: Array, y: Array, eps: float, margins: ArrayLike) -> Array:
    """EMMA's logits: 0 for y, and for the other classes their distance to a tie, shortened."""
    check(logits, y, distributions=False)
    check_option("emma and logit_annealing", 0, eps=eps)
    gaps = logits - jnp.take_along_axis(logits, y[:, None].astype(jnp.int32), -1)
    reach = eps * _constants(y, logits, margins)
    share = jnp.clip(-gaps / jnp.where(reach > 0, reach, 1.0), 0.01, 1.0)
    return gaps + jax.lax.stop_gradient(share) * reach


def _constants(classes: Array, logits: Array, margins: ArrayLike) -> Array:
    """The constants of `z_j - z_c`, `[B, K]`, for classes c `[B]`; 0 for c itself."""
    count = logits.shape[-1]
    if jnp.shape(margins) not in ((), (count, count)):
        raise ValueError(
            f"margins = {margins}; want a number, or one for each pair of the {count} classes."
        )
    if not isinstance(margins, Tracer) and not (np.asarray(margins) >= 0).all():
        raise ValueError(f"margins = {margins}; they must be 0 or more.")
    pairs = jnp.broadcast_to(jnp.asarray(margins, logits.dtype), (count, count))
    return jnp.where(jnp.eye(count, dtype=bool), 0.0, pairs)[classes]


def logit_annealing(
    logits: Array,
    y: Array,
    *,
    temperature: float = 0.75,
    offset: float = 2.0,
    gamma: float = 5.0,
    eps: float = 36 / 255,
    margins: ArrayLike = SQRT2,
) -> Array:
    """`T (1 - p_y)^gamma CE(u, y)`, `u = (z' - xi 1_y) / T`, p = softmax(u), z' of EMMA.

    Logit annealing (2505.15174). Examples that have their margin, p_y near 1, no longer count: a
    network of little capacity spends it on the others. `eps=0` leaves z as it is.

    >>> z, y = jnp.zeros((1, 2)), jnp.array([0])
    >>> logit_annealing(z, y, temperature=1.0, offset=0.0, gamma=1.0, eps=0.0)  # (log 2) / 2
    Array([0.3465736], dtype=float32)
    """
    check_option("logit_annealing", SMALL, temperature=temperature)
    check_option("logit_annealing", 0, gamma=gamma, offset=offset)
    logits = wide(logits)
    shifted = _worst(logits, y, eps, margins) - offset * distribution(y, logits)
    losses = cross_entropy(shifted / temperature, y)
    # The floor keeps a power less than 1 differentiable where nothing is left.
    left = jnp.maximum(-jnp.expm1(-losses), 1e-12)
    return temperature * left**gamma * losses


def gloro(
    logits: Array,
    y: Array,
    *,
    eps: float = 36 / 255,
    margins: ArrayLike = SQRT2,
    weight: float = 1.0,
) -> Array:
    """`CE(z, y) - weight log(1 - p_+)`, p_+ the softmax's share of `z_+` (2102.08452, as TRADES).

    `z_+ = max_{j != c} z_j + eps m_cj` with c the predicted class is the extra logit of GloRo nets:
    it is the largest where the prediction is not certified within eps. The gradient with respect to
    m is the pair's own, so that constants which depend on the weights are trained as well.

    >>> gloro(jnp.zeros((1, 2)), jnp.array([0]), eps=0.0)  # log 2 + log 3/2
    Array([1.0986123], dtype=float32)
    """
    check_option("gloro", 0, eps=eps, weight=weight)
    logits = wide(logits)
    predicted = jnp.argmax(logits, -1)
    is_predicted = jax.nn.one_hot(predicted, logits.shape[-1], dtype=bool)
    threats = logits + eps * _constants(predicted, logits, margins)
    threat = largest(jnp.where(is_predicted, -jnp.inf, threats))
    # 1 / (1 - p_+) = 1 + e^(z_+) / sum_j e^(z_j)
    return cross_entropy(logits, y) + weight * jax.nn.softplus(
        threat - jax.nn.logsumexp(logits, -1)
    )
