"""Orthogonal weights: Newton-Schulz (Björck), Cayley, and block reflectors.

Each takes stacks of matrices `[..., in, out]`, real or complex, and returns matrices with
orthonormal columns where `in >= out` and orthonormal rows otherwise: so all singular values are 1,
but for those that `newton_schulz` finds below a hundredth of the largest, and one of `bro` on the
way from two reflected directions to a single one.
`fourier` makes convolutions of them.
"""

import jax.numpy as jnp
from jax import Array, lax

from lipreg.models.lipschitz.products import exact
from lipreg.models.lipschitz.rescaled import unscaled
from lipreg.norms import largest

__all__ = ["bro", "cayley", "newton_schulz"]


def _adjoint(w: Array) -> Array:
    return w.conj().swapaxes(-1, -2)


def _eye(w: Array, rows: int, columns: int) -> Array:
    return jnp.broadcast_to(jnp.eye(rows, columns, dtype=w.dtype), (*w.shape[:-2], rows, columns))


def _step(w: Array) -> Array:
    """`w (3 - w* w) / 2`: singular values s, at most 2, become `s (3 - s^2) / 2`, at most 1."""
    wide = w.shape[-2] < w.shape[-1]
    gram = exact(w, _adjoint(w)) if wide else exact(_adjoint(w), w)
    factor = 1.5 * _eye(w, *gram.shape[-2:]) - 0.5 * gram
    return exact(factor, w) if wide else exact(w, factor)


def newton_schulz(w: Array, steps: int = 15) -> Array:
    """The nearest orthogonal matrix, `w (w* w)^(-1/2)`, by `w <- w (3 - w* w) / 2` (1811.05381).

    Björck's iteration of order 1. Singular values stay in [0, 1], and those above a hundredth of
    the largest become 1 in 15 steps; a direction that w does not have, it does not get.

    >>> newton_schulz(jnp.array([[0.0, 2.0], [3.0, 0.0]])).round(4)
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
    """
    w, _ = unscaled(w, (-2, -1))
    wide = w.shape[-2] < w.shape[-1]
    gram = exact(w, _adjoint(w)) if wide else exact(_adjoint(w), w)
    square = largest(jnp.abs(gram).sum(-1))[..., None, None]
    square = jnp.where(square == 0, 1.0, square)
    one = _eye(w, *gram.shape[-2:])

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        """The same for `gram = w* w` and the product of all factors, which are small."""
        gram, product = state
        factor = 1.5 * one - 0.5 * gram
        return exact(gram, exact(factor, factor)), exact(product, factor)

    whole = min(steps, 2)  # in full: they correct what small singular values lose in products
    scaled = gram / square.astype(w.dtype), one / jnp.sqrt(square).astype(w.dtype)
    _, product = lax.fori_loop(0, steps - whole, step, scaled)
    w = exact(product, w) if wide else exact(w, product)
    for _ in range(whole):
        w = _step(w)
    return w


def cayley(w: Array) -> Array:
    """`[(I + A)^-1 (I - A); -2 V (I + A)^-1]`, `A = U - U* + V* V`, w = [U; V] (2104.07167).

    Orthogonal for any w, the identity for 0. The authors rescale w to a learned size; here its own
    is that size, up to `4 sqrt(n)`, beyond which float32 could not invert. What the inverse
    rounds, a Newton-Schulz step corrects.

    >>> cayley(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    Array([[ 0., -1.],
           [ 1.,  0.]], dtype=float32)
    """
    if w.shape[-2] < w.shape[-1]:
        return _adjoint(cayley(_adjoint(w)))
    n = w.shape[-1]
    w, size = unscaled(w, (-2, -1))
    length = jnp.sqrt(jnp.maximum((w * w.conj()).real.sum((-2, -1), keepdims=True), 1e-12))
    w = w * jnp.minimum(size, 4 * n**0.5 / length).astype(w.dtype)
    u, v = w[..., :n, :], w[..., n:, :]
    a = u - _adjoint(u) + exact(_adjoint(v), v)
    one = _eye(w, n, n)
    inverse = jnp.linalg.inv(one + a)
    return _step(jnp.concatenate([2 * inverse - one, -2 * exact(v, inverse)], -2))


def bro(v: Array, inputs: int, outputs: int) -> Array:
    """A corner of `I - 2 v (v* v)^-1 v*`, which is orthogonal and self-adjoint (2505.15174).

    `v [..., n, r]`, n the larger of `inputs` and `outputs`: r directions are reflected, whatever
    the lengths of v's columns; one of 0 reflects none, so v = 0 is the identity. A column within
    about 1e-3 of the others' span gives a singular value below 1: its sign changes there.

    >>> bro(jnp.array([[1.0], [0.0]]), 2, 2)
    Array([[-1.,  0.],
           [ 0.,  1.]], dtype=float32)
    """
    v, _ = unscaled(v, (-2,))
    gram = exact(_adjoint(v), v)
    # The trace is at least 1 for each column that is not 0.
    trace = jnp.trace(gram.real, axis1=-2, axis2=-1)[..., None, None]
    ridge = (1e-6 * jnp.maximum(trace, 1.0)).astype(v.dtype)
    right = jnp.linalg.solve(
        gram + ridge * _eye(v, *gram.shape[-2:]), _adjoint(v[..., :outputs, :])
    )
    corner = _eye(v, inputs, outputs) - 2 * exact(v[..., :inputs, :], right)
    return _step(_step(corner))
