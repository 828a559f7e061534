"""Radii from bounds that are proved on a ball around each image, and so know which units are off.

Both take what `lipreg.lipschitz.bounds` has rules for, and certify perturbations inside `bounds`.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.batching import map_batches
from lipreg.box import Bounds, check_finite
from lipreg.certificates.constants import (
    Certificate,
    certificate,
    checked_logits,
    gaps,
    others,
)
from lipreg.contracts import LogitsFn, at_least_one, check_inputs
from lipreg.lipschitz.bounds import bounder, interval
from lipreg.losses import margin
from lipreg.norms import expand, wide
from lipreg.tracing import compiled, snapshot

__all__ = ["interval_bound", "margin_local"]


def margin_local(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    steps: int = 6,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int | None = None,
) -> Certificate:
    """`max_eps min(eps, min_j (z_y - z_j)^+ / L_yj(eps))`, L_yj(eps) on the l2 ball of eps about x.

    Every eps that is tried proves its radius. `r(eps) = min_j (z_y - z_j)^+ / L_yj(eps)` falls as
    the ball grows, so the maximum is where `r(eps) = eps`: between `r(inf)`, which is
    that of `margin_lipschitz`, and `r(r(inf))`. Each of `steps` halves this range.

    Called outside of `jit`, as `lipschitz` is; one program for all images, of which `batch_size`
    are bounded at a time, by default all.

    Raises: ValueError where a primitive has no rule, or x is outside of `bounds`.

    >>> f = lambda x: jnp.concatenate([1 - x, x + 9 * jax.nn.relu(x - 0.5)], 1)
    >>> margin_local(f, jnp.zeros((1, 1)), jnp.array([0])).radius.round(2)  # globally 1 / 11
    Array([0.5], dtype=float32)
    """
    check_inputs(logits_fn, x, y, bounds)
    size = len(x) if batch_size is None else batch_size
    at_least_one("margin_local", steps=steps, batch_size=size)
    logits = jnp.asarray(map_batches(partial(checked_logits, logits_fn), min(size, len(x)), x, y))
    diameter = (bounds[1] - bounds[0]) * math.sqrt(x[0].size)

    bound_at = bounder(logits_fn, x, bounds=bounds, y=y, batch_size=batch_size)

    def reach(eps: ArrayLike) -> Certificate:
        bound = bound_at(eps)
        radii = gaps(logits, y) / others(bound.margins[:, 0], y)
        found = certificate(logits, radii.min(1), bound.kind)
        return found._replace(radius=jnp.minimum(found.radius, diameter))

    low, kind = reach(math.inf)
    high = reach(low).radius
    # The far end first: if no unit changes up to there, it is the answer.
    for share in (1.0, *[0.5] * steps):
        eps = low + share * (high - low)
        proved = reach(eps).radius
        low = jnp.maximum(low, jnp.minimum(eps, proved))
        high = jnp.minimum(high, jnp.maximum(eps, proved))
    return Certificate(low, kind)


def interval_bound(
    logits_fn: LogitsFn, x: Array, y: Array, *, steps: int = 20, bounds: Bounds = (0.0, 1.0)
) -> Certificate:
    """The largest l_inf radius at which `low_y > high_j` for all j (interval bounds, 1810.12715).

    It holds in every l_p, whose balls are inside that of l_inf. In l_2 it is small for images of
    many pixels, where `margin_local` proves more. Found by `steps` bisections; may be jitted.

    Raises: ValueError where a primitive has no rule, x is outside of `bounds`, or these are not
      finite.

    >>> interval_bound(lambda x: x, jnp.array([[0.75, 0.25]]), jnp.array([0])).radius.round(4)
    Array([0.25], dtype=float32)
    """
    logits_fn = snapshot(logits_fn)
    check_finite(bounds)
    check_inputs(logits_fn, x, y, bounds)
    at_least_one("interval_bound", steps=steps)
    radius = compiled(logits_fn, _bisected, steps, bounds)(logits_fn, x, y)
    return certificate(checked_logits(logits_fn, x, y), radius, "certified")


def _bisected(steps: int, bounds: Bounds, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    low, high = bounds

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        """Radii: proved at the first, not at the second, or never tried there."""
        proved, failed = ends
        eps = (proved + failed) / 2
        by = expand(eps, wide(x))
        # To the number after the nearest, which may be nearer to x than eps.
        below = jnp.nextafter((wide(x) - by).astype(x.dtype), jnp.asarray(-jnp.inf, x.dtype))
        above = jnp.nextafter((wide(x) + by).astype(x.dtype), jnp.asarray(jnp.inf, x.dtype))
        least, most = interval(logits_fn, jnp.maximum(below, low), jnp.minimum(above, high))
        is_y = jax.nn.one_hot(y.astype(jnp.int32), least.shape[1], dtype=bool)
        sure = margin(jnp.where(is_y, least, most), y) < 0
        return jnp.where(sure, eps, proved), jnp.where(sure, failed, eps)

    start = jnp.zeros(len(x), wide(x).dtype), jnp.full(len(x), high - low, wide(x).dtype)
    return jax.lax.fori_loop(0, steps, halve, start)[0]
