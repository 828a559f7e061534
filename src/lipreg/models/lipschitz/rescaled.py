"""Weights divided by a bound of their norm: AOL, SLL, and spectral normalisation.

A weight is `w [in, out]` for `x @ w`, or a kernel `[a, b, in, out]` for a convolution. A kernel's
bound is that of its convolution on an infinite grid. So it holds on images of any size, padded with
zeros (whose operator is a part of that one) or circularly (one is averaged from the other).

All of these are homogeneous of degree 0: w is divided by its largest entry first, so that weights
of 1e-20 and of 1e20 do not underflow and overflow. What is computed from weights is computed in
float32 or wider, and on accelerators without TF32, which would be wrong by 1e-3.
"""

import jax.numpy as jnp
from jax import Array, lax

from lipreg.convolution import conv
from lipreg.models.lipschitz.fourier import transform
from lipreg.models.lipschitz.products import exact
from lipreg.norms import wide

__all__ = ["adjoint", "aol", "norm_bound", "sll", "spectral", "unscaled"]

# A floor under what is divided by, relative to the square of the largest entry. Without it channels
# whose weights vanish are 0/0, and SLL and CPL networks collapse in float32: the code of
# "1-Lipschitz Layers Compared" (2023) adds 1e-6 to that end.
FLOOR = 1e-6


def unscaled(w: Array, axes: tuple[int, ...] | None = None) -> tuple[Array, Array]:
    """w over its largest entry (over `axes`), and that entry; a weight of 0 stays as it is.

    A function that is homogeneous of degree 0 does not depend on this entry, so its derivative may
    ignore it.
    """
    if not jnp.iscomplexobj(w):
        w = wide(w)
    size = lax.stop_gradient(jnp.abs(w).max(axes, keepdims=True))
    size = jnp.where(size == 0, 1.0, jnp.maximum(size, 1e-30))
    return w / size.astype(w.dtype), size


def adjoint(w: Array) -> Array:
    """The weight of the transposed map: of a matrix, a kernel, or a stack of complex matrices."""
    w = w.swapaxes(-1, -2)
    if jnp.iscomplexobj(w):
        return w.conj()
    return jnp.flip(w, (0, 1)) if w.ndim == 4 else w


def _gram(w: Array) -> Array:
    """`w w*`, `[in, in]`; of a kernel its correlation with itself, `[2a - 1, 2b - 1, in, in]`."""
    if w.ndim == 2:
        return exact(w, w.T)
    rows, columns = ((k - 1, k - 1) for k in w.shape[:2])
    images = w.transpose(2, 0, 1, 3)  # one for each input channel
    # Padded beforehand: `conv` has fast derivatives where its output is no larger than its image.
    images = jnp.pad(images, ((0, 0), rows, columns, (0, 0)))
    return conv(
        images,
        w.swapaxes(2, 3),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    ).transpose(1, 2, 0, 3)


def _rescaled(w: Array, log_q: Array | None = None) -> Array:
    """`D w`, `1 / D_i^2 = sum_j |w w*|_ij q_j / q_i`, summed over all offsets of a kernel."""
    w, _ = unscaled(w)
    sizes = jnp.abs(_gram(w)).reshape(-1, w.shape[-2], w.shape[-2]).sum(0)
    if log_q is not None:
        q = jnp.exp(jnp.clip(wide(log_q), -20.0, 20.0))
        sizes = sizes * q[None] / q[:, None]
    scale = jnp.maximum(sizes.sum(1), FLOOR) ** -0.5
    return w * lax.broadcast_in_dim(scale, w.shape, (w.ndim - 2,))


def aol(w: Array) -> Array:
    """`D w`, `D_i = (sum_j |w w*|_ij)^(-1/2)`, of norm at most 1 (2208.03160, theorems 1 and 2).

    `w [in, out]` or `[a, b, in, out]`. The norm is that of the transpose, so the smaller of the two
    sides is rescaled; 1 is attained by orthogonal rows.

    >>> aol(jnp.array([[3.0, 4.0]]))
    Array([[0.6, 0.8]], dtype=float32)
    """
    if w.shape[-2] > w.shape[-1]:
        return adjoint(_rescaled(adjoint(w)))
    return _rescaled(w)


def sll(w: Array, log_q: Array | None = None) -> Array:
    """`w T^(1/2)`, `1 / T_i = sum_j |w* w|_ij q_j / q_i`, of norm at most 1 (2303.03169).

    The weight of a residual layer (`residual`), rescaled by inner units, `log_q [out]`, as learned.
    """
    return adjoint(_rescaled(adjoint(w), log_q))


def norm_bound(w: Array, steps: int | None = None) -> Array:
    """`||w||_2` from above by Gram iteration, `||w|| = ||(w w*)^(2^k)||^(2^-(k+1))` (2305.16173).

    The last norm is a sum over the power's offsets p, of the smaller of `||p||_F` and
    `(||p||_1 ||p||_inf)^(1/2)`. `steps` k is 8 for a matrix, whose norm is then within a factor
    `n^(1/1024)`, and 2 for a kernel, whose powers become as large as an image: the bound of random
    3 x 3 kernels is at most 1.05 to 1.3 times their norm, that of an orthogonal centre the norm.

    >>> norm_bound(jnp.diag(jnp.array([3.0, 4.0]))).round(3)
    Array(4., dtype=float32)
    """
    w, size = unscaled(w)
    steps = (8 if w.ndim == 2 else 2) if steps is None else steps
    # A power of a kernel is that of its transform on a torus where it does not wrap around.
    sides = tuple(2 ** (steps + 1) * (k - 1) + 1 for k in w.shape[:-2])
    factor = transform(w, sides) if sides else w
    factor = factor if w.shape[-2] <= w.shape[-1] else adjoint(factor)
    power = exact(factor, adjoint(factor))
    bound, exponent = jnp.ones((), w.dtype), 0.5
    for _ in range(steps):
        power, largest = unscaled(power)
        power = exact(power, power)
        bound, exponent = bound * largest.ravel()[0] ** exponent, exponent / 2
    offsets = jnp.fft.irfft2(power, sides, axes=(0, 1)) if sides else power
    sums = lambda axis: jnp.abs(offsets).sum(axis).max(-1)
    squares = jnp.minimum(jnp.square(offsets).sum((-2, -1)), sums(-1) * sums(-2))
    # The floor keeps the root of empty offsets differentiable; the largest entry is about 1.
    squares = jnp.maximum(squares, FLOOR**2)
    return size.ravel()[0] * bound * jnp.sqrt(squares).sum() ** exponent


def spectral(w: Array, steps: int | None = None) -> Array:
    """`w / ||w||_2` with the bound of `norm_bound` (1802.05957, there by power iteration).

    Power iteration approaches the norm from below, which proves nothing.

    >>> spectral(jnp.diag(jnp.array([2.0, 4.0]))).round(3)
    Array([[0.5, 0. ],
           [0. , 1. ]], dtype=float32)
    """
    w, _ = unscaled(w)
    return w / norm_bound(w, steps)
