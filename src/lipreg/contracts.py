"""The types of what users hand in, and its checks: one clear line, before anything is computed."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.box import Bounds, check_inside
from lipreg.norms import Norm
from lipreg.tracing import output

__all__ = [
    "LogitsFn",
    "LogitsLoss",
    "at_least_one",
    "check_inputs",
    "check_labels",
    "check_logits",
    "check_norm",
    "check_radius",
    "not_negative",
    "positive",
    "two_logits",
]

LogitsFn = Callable[[Array], Array]
LogitsLoss = Callable[[Array, Array], Array]


def at_least_one(attack: str, **options: float) -> None:
    """ValueError for a count, such as `steps`, below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{attack}: {name} = {value}; it must be at least 1.")


def not_negative(rule: str, **options: Any) -> None:
    """ValueError for a weight or size, such as `clip`, that is negative or not finite."""
    for name, value in options.items():
        if not isinstance(value, Tracer) and not 0 <= value < math.inf:
            raise ValueError(f"{rule}: {name} = {value}; it must be 0 or more, and finite.")


def positive(attack: str, **options: Any) -> None:
    """ValueError for a rate or size, such as `step_size`, that is not finite and greater than 0."""
    for name, value in options.items():
        if not isinstance(value, Tracer) and not 0 < value < math.inf:
            raise ValueError(f"{attack}: {name} = {value}; it must be greater than 0, and finite.")


def check_norm(attack: str, norm: Norm, *served: Norm) -> None:
    """ValueError, with the choices, for a norm that the attack has no form for."""
    if norm not in served:
        choices = ", ".join(n.name for n in served)
        raise ValueError(f"{attack}: no form for the norm {norm.name}; choose one of {choices}.")


def check_radius(eps: ArrayLike) -> None:
    """ValueError for a radius that is negative, infinite or NaN."""
    if not isinstance(eps, Tracer) and not ((np.asarray(eps) >= 0) & np.isfinite(eps)).all():
        raise ValueError(f"eps = {eps}; a radius must be 0 or more, and finite.")


def check_labels(y: ArrayLike, what: str = "y") -> None:
    """ValueError for labels that are not integers."""
    dtype = jnp.result_type(y)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{what} has dtype {dtype}; want classes, which are integers.")


def check_logits(logits: Any, batch: int) -> None:
    """ValueError for what is not `[B, K]` with at least two classes."""
    shape = getattr(logits, "shape", None)
    if shape in ((batch,), (batch, 1)):
        raise ValueError(
            f"logits_fn returned one logit per image, {list(shape)}; want [{batch}, K]. Of a model "
            "with one logit contracts.two_logits makes one with two."
        )
    if shape is None or len(shape) != 2 or shape[0] != batch or not shape[1]:
        got = type(logits).__name__ if shape is None else list(shape)
        raise ValueError(f"logits_fn must return [{batch}, K]; it returned {got}.")


def two_logits(logit_fn: Callable[[Array], Array]) -> LogitsFn:
    """`x -> (0, z)` for a model of one logit z, `[B]` or `[B, 1]`: `softmax(0, z)_1 = sigmoid(z)`.

    >>> two_logits(lambda x: 3 * x[:, 0])(jnp.array([[1.0], [2.0]]))
    Array([[0., 3.],
           [0., 6.]], dtype=float32)
    """

    def logits_fn(x: Array) -> Array:
        z = logit_fn(x).reshape(len(x), 1)
        return jnp.concatenate([jnp.zeros_like(z), z], axis=1)

    return logits_fn


def check_inputs(logits_fn: LogitsFn, x: Array, y: Array, bounds: Bounds) -> None:
    """One clear sentence for what users get wrong; values are looked at outside of `jit` only."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; attacks need floating-point pixels in {bounds}.")
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y has shape {list(y.shape)}, dtype {y.dtype}; want classes [{len(x)}].")
    if not x.size:
        raise ValueError(f"x has shape {list(x.shape)}: no images.")
    logits = output(logits_fn, x)
    check_logits(logits, len(x))
    last = logits.shape[1] - 1
    # In numpy: inside jit, where y may be a constant, jnp would give a tracer.
    if not isinstance(y, Tracer):
        classes = np.asarray(y)
        if not ((classes >= 0) & (classes <= last)).all():
            least, most = classes.min(), classes.max()
            raise ValueError(f"y has values from {least} to {most}; logits_fn has 0 to {last}.")
    check_inside(x, bounds)
