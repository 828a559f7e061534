"""Arithmetic in float64 inside of programs in float32, for numbers that are to be proved."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

__all__ = ["in_float64"]


def in_float64(f: Callable) -> Callable:
    """f with float64 switched on, forwards and backwards.

    It may be jitted, and differentiated in reverse. f casts its arguments to float64 and what it
    returns back; numpy's float64 reaches it as it is. Left to itself, jax would take the derivative
    in the precision of the caller.

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
        # What is traced has been cast already, and custom_vjp would cast the rest.
        traced = any(isinstance(a, Tracer) for a in jax.tree.leaves(args))
        return wide(*args) if traced else within(f)(*args)

    return run
