"""Images in half precision, for every attack."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.attacks.start import LogitsFn

__all__ = ["in_single"]

Attack = TypeVar("Attack", bound=Callable[..., Array])


def in_single(attack: Attack) -> Attack:
    """The attack, with perturbations in float32 where images are in bfloat16 or float16.

    Each point that the model sees, and the one returned, has the type of x, and every entry of it
    is rounded towards x: what it sees is what may be returned, and neither leaves the ball or the
    box. To the gradient the rounding is the identity.
    """

    @functools.wraps(attack)
    def run(key: Array, logits_fn: LogitsFn, x: Array, y: Array, *args: Any, **options: Any):
        if not jnp.issubdtype(x.dtype, jnp.floating) or jnp.finfo(x.dtype).bits >= 32:
            return attack(key, logits_fn, x, y, *args, **options)
        shown = lambda points: logits_fn(_rounded(points, x))
        x_adv = attack(key, shown, x.astype(jnp.float32), y, *args, **options)
        return _rounded(x_adv, x)

    return cast(Attack, run)


@jax.custom_jvp
def _rounded(points: Array, x: Array) -> Array:
    """Points `[C * B, ...]`, copy by copy, in the type of x `[B, ...]` and no farther from it."""
    copies = len(points) // max(len(x), 1)
    x = jnp.tile(x, (copies,) + (1,) * (x.ndim - 1))
    nearest, single = points.astype(x.dtype), x.astype(points.dtype)
    rounded = nearest.astype(points.dtype)
    beyond = jnp.where(points > single, rounded > points, rounded < points)
    return jnp.where(beyond, jnp.nextafter(nearest, x), nearest)


@_rounded.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _rounded(*primals), tangents[0].astype(primals[1].dtype)
