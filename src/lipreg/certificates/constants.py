"""Radii from a Lipschitz constant: the gap to another decision, divided by the constant.

A radius is in the norm of its constant, and worth as much: it is "certified" where the constant is
"exact" or "certified", and otherwise an "estimate". A constant proved on a box
certifies perturbations that stay in the box.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.contracts import LogitsFn, check_inputs
from lipreg.lipschitz.bounds import LipschitzBound
from lipreg.lipschitz.functions import Constant
from lipreg.losses import cross_entropy
from lipreg.norms import LINF, NormLike, by_name, wide

__all__ = [
    "Certificate",
    "first_order",
    "loss_lipschitz",
    "margin_last_layer",
    "margin_lipschitz",
]

KINDS = {"exact": "certified", "certified": "certified", "estimate": "estimate"}
ANYWHERE = (-math.inf, math.inf)


class Certificate(NamedTuple):
    """Radii within which the class does not change, and what they are worth.

    Attributes:
      radius: `[B]`; every perturbation smaller than it is harmless. 0 where x is misclassified.
      kind: "certified", "probabilistic" or "estimate".
    """

    radius: Array
    kind: str


def loss_lipschitz(logits_fn: LogitsFn, x: Array, y: Array, *, constant: Constant) -> Certificate:
    """`(log 2 - l(x))^+ / L`, L that of the cross entropy l in x (1810.00953).

    A misclassified image has `p_y <= 1/2` and so `l >= log 2`. However sure the network is, the
    radius stays below `log 2 / L`. With `L = max_j L_yj` of the margins, which is an upper bound,
    it is at most half of that of `margin_lipschitz`: `log 2 - l <= m/2` for a margin m.

    Raises: ValueError for a constant that is not a `Constant`, negative or not a number.

    >>> f = lambda x: jnp.concatenate([x, -x], 1)
    >>> x, y = jnp.array([[9.0]]), jnp.array([0])
    >>> certificate = loss_lipschitz(f, x, y, constant=Constant(2, "exact"))
    >>> certificate.radius.round(2), certificate.kind  # log(2) / 2; the distance is 9
    (Array([0.35], dtype=float32), 'certified')
    """
    logits = checked_logits(logits_fn, x, y)
    value = checked_value("loss_lipschitz", constant, Constant)
    return certificate(logits, (math.log(2) - cross_entropy(logits, y)) / value, constant.kind)


def margin_lipschitz(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    constant: Constant | LipschitzBound,
    label_norm: NormLike = LINF,
    eps: ArrayLike = math.inf,
) -> Certificate:
    """`min_{j != y} (z_y - z_j)^+ / L_yj`, L_yj that of `z_y - z_j` in x (Tsuzuku, 1802.04034).

    Exact for a linear model with exact constants. It grows with the margin, where the rules of the
    loss and of probabilities saturate.
    `constant` holds the margins' own constants (`lipschitz(logits_fn, x)`, in l2), in which what
    two logits have in common cancels; its margins may also be `[K, K]`, or those of one example,
    `lipschitz(logits_fn, x[:1])`, which hold for all. Or it is one number, the L of the logits.
    Then `L_yj = ||e_y - e_j||_* L`: `2 L` where L is in `label_norm` LINF, `sqrt(2) L` where it is
    in L2. A constant that is in L2 is one in LINF too, which is the default. `eps`, a number or
    `[B]`, is the radius around x within which the constant holds; a `LipschitzBound` has its own.

    Raises: ValueError for a constant of another type or shape, negative or not a number, for that
    of one example's ball where there are more, and for an eps of another shape.

    >>> from lipreg.lipschitz.bounds import lipschitz
    >>> f, x, y = lambda x: x @ jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.eye(2), jnp.array([0, 0])
    >>> margin_lipschitz(f, x, y, constant=lipschitz(f, x)).radius.round(3)  # 3 / 5; misclassified
    Array([0.6, 0. ], dtype=float32)
    """
    logits = checked_logits(logits_fn, x, y)
    value = checked_value("margin_lipschitz", constant, Constant, LipschitzBound)
    if jnp.shape(eps) not in ((), logits.shape[:1]):
        raise ValueError(f"eps has shape {list(jnp.shape(eps))}; want a number or [{len(logits)}].")
    if isinstance(constant, LipschitzBound):
        among = class_constants(value, logits, y)
        eps = jnp.minimum(jnp.asarray(eps), _reach(constant, len(logits)))
    else:
        between = by_name(label_norm).dual(jnp.asarray([[1.0, -1.0]], logits.dtype))
        among = jnp.broadcast_to(between * value, logits.shape[:1])[:, None]
    reach = (gaps(logits, y) / among).min(1)
    return certificate(logits, jnp.minimum(eps, reach), constant.kind)


def margin_last_layer(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    w: ArrayLike,
    constant: Constant,
    eps: ArrayLike = math.inf,
) -> Certificate:
    """`min_{j != y} (z_y - z_j)^+ / (L ||w_y - w_j||_2)`, logits `z = W h(x) + b` (2108.04062).

    `constant` is the L of h in l2, and W `[K, n]` the last layer: for a layer `h @ w`, hand in
    `w.T`. Two rows that are near each other make up for a small margin, where `margin_lipschitz`
    takes the same `sqrt(2) L ||W||` for all. `lipschitz` finds the margins' constants by itself;
    this is for an L that is known, as that of a network that is 1-Lipschitz by construction.

    Raises: ValueError for a constant that is not a `Constant`, negative or not a number, and for a
    W of another shape.

    >>> f, w = lambda x: x @ jnp.eye(2), np.eye(2)
    >>> x, y = jnp.array([[1.0, 0.0]]), jnp.array([0])
    >>> constant = Constant(1.0, "exact")
    >>> margin_last_layer(f, x, y, w=w, constant=constant).radius.round(3)  # 1 / sqrt(2)
    Array([0.707], dtype=float32)
    """
    value = float(checked_value("margin_last_layer", constant, Constant))
    classes, rows = checked_logits(logits_fn, x, y).shape[1], np.asarray(w, np.float64)
    if rows.ndim != 2 or len(rows) != classes:
        raise ValueError(f"W has shape {list(rows.shape)}; want a matrix [{classes}, n].")
    between = np.linalg.norm(rows[:, None] - rows[None], axis=2) * value
    dtype = wide(x).dtype  # rounded up to it
    margins = jnp.asarray(between * (1 + 4 * float(jnp.finfo(dtype).eps)), dtype)
    found = LipschitzBound(jnp.zeros(()), margins, constant.kind)
    return margin_lipschitz(logits_fn, x, y, constant=found, eps=eps)


def first_order(logits_fn: LogitsFn, x: Array, y: Array, *, constant: Constant) -> Certificate:
    """`(z_y - max_{j != y} z_j)^+ / L`, L the largest gradient norm of that margin (1905.11468).

    With `of_function` at the images of a data set, as in the paper, L is a maximum over points: an
    estimate. The paper's margin is that of probabilities: hand in `lambda x: softmax(f(x))` for
    logits_fn, in both places. It saturates at `1 / L`.

    Raises: ValueError for a constant that is not a `Constant`, negative or not a number.

    >>> from lipreg.lipschitz import of_function
    >>> from lipreg.losses import margin
    >>> f, x, y = lambda x: jnp.concatenate([x, -x], 1), jnp.array([[0.5]]), jnp.array([0])
    >>> first_order(f, x, y, constant=of_function(lambda x: margin(f(x), y), x))
    Certificate(radius=Array([0.5], dtype=float32), kind='estimate')
    """
    logits = checked_logits(logits_fn, x, y)
    value = checked_value("first_order", constant, Constant)
    return certificate(logits, gaps(logits, y).min(1) / value, constant.kind)


# What the rooms share.


def checked_logits(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    """The logits, in the type of x, as constants and gradients are, but at least in float32."""
    check_inputs(logits_fn, x, y, ANYWHERE)
    return logits_fn(x).astype(wide(x).dtype)


def checked_value(rule: str, constant: Constant | LipschitzBound, *served: type) -> Array:
    """The numbers of a record of a type in `served`; that of data is no constant of a function."""
    if not isinstance(constant, served):
        choices = " or ".join(t.__name__ for t in served)
        raise ValueError(f"{rule}: constant is a {type(constant).__name__}; want a {choices}.")
    if constant.kind not in KINDS:
        raise ValueError(
            f"No kind {constant.kind!r} of constant; choose one of {', '.join(KINDS)}."
        )
    value = constant.margins if isinstance(constant, LipschitzBound) else constant.value
    if not isinstance(value, Tracer) and not (np.asarray(value) >= 0).all():
        raise ValueError(f"{rule}: a constant is {np.min(value):g}; it must be at least 0.")
    return jnp.asarray(value)


def others(values: Array, y: Array) -> Array:
    """The values of the classes other than y, `[B, K] -> [B, K - 1]`."""
    classes, y = values.shape[1], y.astype(jnp.int32)
    return jnp.take_along_axis(values, (y[:, None] + jnp.arange(1, classes)[None]) % classes, 1)


def gaps(logits: Array, y: Array) -> Array:
    """`(z_y - z_j)^+` for all j other than y, `[B, K - 1]`."""
    own = jnp.take_along_axis(logits, y[:, None].astype(jnp.int32), 1)
    return jnp.clip(own - others(logits, y), 0.0, jnp.finfo(logits.dtype).max)


def class_constants(margins: Array, logits: Array, y: Array) -> Array:
    """`L_yj` of each example's y, `[B, K - 1]`, from `[K, K]`, `[1, K, K]` or `[B, K, K]`; or from
    those of y alone, `[B, 1, K]`."""
    batch, classes = logits.shape
    if margins.shape == (batch, 1, classes):
        return others(margins[:, 0], y)
    margins = margins[0] if len(margins.shape) == 3 and len(margins) == 1 else margins
    if margins.shape not in ((classes, classes), (batch, classes, classes)):
        raise ValueError(
            f"margins have shape {list(margins.shape)}; want [{classes}, {classes}] or "
            f"[{batch}, {classes}, {classes}]."
        )
    return others(margins[y] if margins.ndim == 2 else margins[jnp.arange(batch), y], y)


def _reach(constant: LipschitzBound, batch: int) -> Array:
    """The radius within which a bound holds, for each example."""
    eps = jnp.asarray(constant.eps)
    if eps.shape not in ((), (batch,)) or (
        batch > 1 and constant.margins.shape[:-2] != (batch,) and bool(jnp.isfinite(eps).any())
    ):
        raise ValueError(
            f"margin_lipschitz: constant holds around {max(eps.size, 1)} example; x has {batch}."
        )
    return eps


def certificate(logits: Array, radius: Array, kind: str) -> Certificate:
    """0 for negative radii, for those of `0 / 0` (no gap to close), and where logits overflow."""
    sound = jnp.isfinite(logits).all(1) & (radius > 0)
    return Certificate(jnp.where(sound, radius, 0.0), KINDS[kind])
