"""Where every attack begins: its inputs checked, a key per example, a random point of the ball."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from lipreg.norms import Norm

__all__ = ["Bounds", "LogitsFn", "LogitsLoss", "check_inputs", "example_keys", "uniform_in_ball"]

LogitsFn = Callable[[Array], Array]
LogitsLoss = Callable[[Array, Array], Array]
Bounds = tuple[float, float]


def example_keys(key: Array, n: int) -> Array:
    """One key per example: `fold_in(key, row)`; a batch `[n]` of keys is returned as it is."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"A key of dtype {key.dtype}; make it with jax.random.key(seed).")
    return key if key.ndim else jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))


def check_inputs(logits_fn: LogitsFn, x: Array, y: Array, bounds: Bounds) -> None:
    """One clear sentence for what users get wrong; values are looked at outside of `jit` only."""
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds = {bounds}: the first must be less than the second.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; attacks need floating-point pixels in {bounds}.")
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y has shape {list(y.shape)}, dtype {y.dtype}; want classes [{len(x)}].")
    logits = jax.eval_shape(logits_fn, x)
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
    if isinstance(x, Tracer):
        return
    values = np.asarray(x)
    if not ((values >= low) & (values <= high)).all():
        least, most = values.min(), values.max()
        raise ValueError(f"x has values from {least:g} to {most:g}, outside bounds {bounds}.")


def uniform_in_ball(keys: Array, x: Array, norm: Norm) -> Array:
    """Uniform in the unit ball, one key per example."""
    shape, dtype, n = x.shape[1:], x.dtype, x[0].size

    def start(key: Array) -> Array:
        if norm.p == float("inf"):
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
        if norm.p == 2:  # what random.ball does for any p, without its slow gamma samples
            direction, radius = jax.random.split(key)
            point = norm.direction(jax.random.normal(direction, (1, n), dtype))
            point = point * jax.random.uniform(radius, (1, 1), dtype) ** (1 / n)
        else:
            point = jax.random.ball(key, n, norm.p, dtype=dtype)
        return point.reshape(shape)

    return jax.vmap(start)(keys)
