"""Largest singular values from above, by squaring: no power iteration, which ends below them."""

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.lipschitz.bounds.intervals import largest, upper

__all__ = ["largest_eigenvalue", "largest_singular"]


def largest_singular(matrices: Array) -> Array:
    """`max ||M||_2` over a stack `[..., m, n]`, from above: `||(M M*)^(2^k)||_F^(1 / 2^(k + 1))`.

    The Gram iteration of 2305.16173. Its k = 24 squarings leave a factor of `m^(2^-26)`. Not by
    LAPACK's eigenvalues: several batches of them in one program can wait for each other forever on
    a CPU of two cores.
    """
    # Relative to the largest entry, since its square may underflow.
    unit = largest(jnp.abs(matrices))
    matrices = matrices / jnp.where(unit > 0, unit, 1.0).astype(matrices.dtype)
    adjoint = matrices.conj().swapaxes(-1, -2)
    wide = matrices.shape[-2] < matrices.shape[-1]
    gram = matrices @ adjoint if wide else adjoint @ matrices
    return upper(jnp.sqrt(_squarings(gram)) * unit)


def largest_eigenvalue(gram: Array) -> Array:
    """`max ||G||_2` over a stack of Hermitian matrices `[..., n, n]`, in the same way."""
    unit = largest(jnp.abs(gram))
    return upper(_squarings(gram / jnp.where(unit > 0, unit, 1.0).astype(gram.dtype)) * unit)


def _squarings(gram: Array) -> Array:
    one = jnp.ones(gram.shape[:-2], gram.real.dtype)
    start = gram, one, jnp.ones((), one.dtype)
    power, root, exponent = jax.lax.fori_loop(0, 24, _squared, start)
    return largest(root * _size(power) ** exponent)


def _squared(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    power, root, exponent = carry
    size = _size(power)
    power = power / jnp.where(size > 0, size, 1.0)[..., None, None].astype(power.dtype)
    return power @ power, root * size**exponent, exponent / 2


def _size(matrices: Array) -> Array:
    return jnp.sqrt(jnp.square(jnp.abs(matrices)).sum((-2, -1)))
