"""The types of what users hand in, and its checks: one clear line, before anything is computed."""

from collections.abc import Callable

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
    "check_norm",
    "check_radius",
]

LogitsFn = Callable[[Array], Array]
LogitsLoss = Callable[[Array, Array], Array]


def at_least_one(attack: str, **options: float) -> None:
    """ValueError for a count, such as `steps`, below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{attack}: {name} = {value}; it must be at least 1.")


def check_norm(attack: str, norm: Norm, *served: Norm) -> None:
    """ValueError, with the choices, for a norm that the attack has no form for."""
    if norm not in served:
        choices = ", ".join(n.name for n in served)
        raise ValueError(f"{attack}: no form for the norm {norm.name}; choose one of {choices}.")


def check_radius(eps: ArrayLike) -> None:
    """ValueError for a radius that is negative or NaN."""
    if not isinstance(eps, Tracer) and not (np.asarray(eps) >= 0).all():
        raise ValueError(f"eps = {eps}; a radius must be 0 or more.")


def check_labels(y: ArrayLike, what: str = "y") -> None:
    """ValueError for labels that are not integers."""
    dtype = jnp.result_type(y)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{what} has dtype {dtype}; want classes, which are integers.")


def check_inputs(logits_fn: LogitsFn, x: Array, y: Array, bounds: Bounds) -> None:
    """One clear sentence for what users get wrong; values are looked at outside of `jit` only."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; attacks need floating-point pixels in {bounds}.")
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y has shape {list(y.shape)}, dtype {y.dtype}; want classes [{len(x)}].")
    if not x.size:
        raise ValueError(f"x has shape {list(x.shape)}: no images.")
    logits = output(logits_fn, x)
    if not hasattr(logits, "shape") or logits.ndim != 2 or logits.shape[0] != x.shape[0]:
        got = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(f"logits_fn must return [{x.shape[0]}, K]; it returned {got}.")
    if logits.shape[1] < 2:
        raise ValueError(f"logits_fn returned {logits.shape[1]} class; an attack needs at least 2.")
    last = logits.shape[1] - 1
    # In numpy: inside jit, where y may be a constant, jnp would give a tracer.
    if not isinstance(y, Tracer):
        classes = np.asarray(y)
        if not ((classes >= 0) & (classes <= last)).all():
            least, most = classes.min(), classes.max()
            raise ValueError(f"y has values from {least} to {most}; logits_fn has 0 to {last}.")
    check_inside(x, bounds)
