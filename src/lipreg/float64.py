"""Arithmetic in float64 inside float32 programs, for proved numbers."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

__all__ = ["in_float64"]


def in_float64(f: Callable) -> Callable:
    """f with float64 switched on, forwards and backwards.

    It may be jitted, and differentiated in reverse. f itself casts its arguments to float64 and its
    result back; numpy's float64 arrays reach it unrounded. Without this, jax would take the
    derivative in the precision of the caller.

    >>> f = lambda x: (jnp.asarray(x, float) - 1).astype(jnp.float32)
    >>> in_float64(f)(np.array([1 + 1e-9])).item() < 2e-9
    True
    """

    def within(f: Callable) -> Callable:
        def run(*args: Any) -> Any:
            with jax.enable_x64(True):
                return f(*args)

        return run

    wide = jax.custom_vjp(within(f))
    wide.defvjp(
        within(lambda *args: jax.vjp(f, *args)), within(lambda pull, cotangents: pull(cotangents))
    )

    def run(*args: Any) -> Any:
        # Traced arguments are float32 already; custom_vjp would round numpy's float64 as well.
        traced = any(isinstance(a, Tracer) for a in jax.tree.leaves(args))
        return wide(*args) if traced else within(f)(*args)

    return run
