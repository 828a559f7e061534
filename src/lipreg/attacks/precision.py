"""Images in half precision, for every attack."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.box import check_inside
from lipreg.contracts import LogitsFn

__all__ = ["in_single"]

Attack = TypeVar("Attack", bound=Callable[..., Array])


def in_single(attack: Attack) -> Attack:
    """The attack with perturbations in float32 where images are in bfloat16 or float16.

    Every point that the model sees, and the one returned, is rounded to the type of x, entry by
    entry towards x: so the model sees exactly the points that may be returned, and rounding never
    leaves the ball, or the box with its ends in that type. Images that a normalisation has rounded
    out of it are moved inside first. The derivative of the rounding is that of the identity.
    """

    @functools.wraps(attack)
    def run(key: Array, logits_fn: LogitsFn, x: Array, y: Array, *args: Any, **options: Any):
        if not jnp.issubdtype(x.dtype, jnp.floating) or jnp.finfo(x.dtype).bits >= 32:
            return attack(key, logits_fn, x, y, *args, **options)
        shown = lambda points: logits_fn(_rounded(points, x))
        if x.size:
            check_inside(x, options.get("bounds", (0.0, 1.0)))
        box = [float(np.asarray(end, x.dtype)) for end in options.get("bounds", (0.0, 1.0))]
        single = jnp.clip(x.astype(jnp.float32), *box)
        x_adv = attack(key, shown, single, y, *args, **options | {"bounds": tuple(box)})
        return _rounded(x_adv, x)

    return cast(Attack, run)


@jax.custom_jvp
def _rounded(points: Array, x: Array) -> Array:
    """Points `[C * B, ...]`, C copies of the batch, in the type of x and no farther from x."""
    copies = len(points) // max(len(x), 1)
    x = jnp.tile(x, (copies,) + (1,) * (x.ndim - 1))
    kind = jnp.finfo(x.dtype)
    # XLA may elide a cast to half precision and back, but not this.
    rounded = jax.lax.reduce_precision(points, kind.nexp, kind.nmant)
    beyond = jnp.where(points > x.astype(points.dtype), rounded > points, rounded < points)
    nearest = rounded.astype(x.dtype)
    nearest = jnp.where(beyond, jnp.nextafter(nearest, x), nearest)
    # The rounding flushes subnormal numbers to 0, which may be farther from x than they are.
    tiny = float(kind.tiny)
    ends = jnp.where(points < 0, -tiny, 0.0), jnp.where(points > 0, tiny, 0.0)
    return jnp.where(
        jnp.abs(points) < tiny, jnp.clip(x, *(e.astype(x.dtype) for e in ends)), nearest
    )


@_rounded.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _rounded(*primals), tangents[0].astype(primals[1].dtype)
