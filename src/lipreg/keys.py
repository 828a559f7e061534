"""Keys of examples: what is drawn for an image depends neither on its batch nor on the devices."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["example_keys", "fold_in"]


def example_keys(key: Array, n: int) -> Array:
    """One key per example: `fold_in(key, row)`; a batch `[n]` of keys is returned as it is."""
    if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        given = f"dtype {key.dtype}" if hasattr(key, "dtype") else repr(key)
        raise ValueError(f"A key of {given}; make it with jax.random.key(seed).")
    return key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(n))


def fold_in(keys: Array, number: ArrayLike) -> Array:
    """`fold_in(key, number)` for each key of a batch `[B]`: the keys of one round of an attack."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
