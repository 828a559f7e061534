"""Circular convolutions as one matrix for each frequency.

The discrete Fourier transform is orthogonal up to its scale. So a circular convolution has the
singular values of its matrices, and `circular(x, orthogonal(transform(kernel, sides)))` is an
orthogonal map of images, whose kernel is as large as the image. With zero padding it would not be.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lipreg.lipschitz.bounds.forms import read_as
from lipreg.norms import wide

__all__ = ["circular", "transform"]


def transform(kernel: Array, sides: tuple[int, ...]) -> Array:
    """`sum_ab e^(2 pi i (f a / H + g b / W)) k_ab`, `[a, b, ...] -> [H, W // 2 + 1, ...]`.

    a and b count from the kernel's middle. Half of the frequencies are enough for a real kernel;
    one larger than the image wraps around.
    """
    rows, columns = (
        np.exp(2j * np.pi / side * np.outer(np.arange(count), np.arange(k) - (k - 1) // 2))
        for side, count, k in zip(sides, (sides[0], sides[1] // 2 + 1), kernel.shape, strict=False)
    )
    kernel = wide(kernel)
    dtype = jnp.complex128 if kernel.dtype == jnp.float64 else jnp.complex64
    rows, columns = jnp.asarray(rows, dtype), jnp.asarray(columns, dtype)
    form = "fa,gb,abio->fgio"
    return jnp.einsum(form, rows, columns, kernel.astype(dtype), precision=lax.Precision.HIGHEST)


def _as_convolution(x: Array, w: Array) -> Array:
    """The same in float64 as a convolution of the image, which wraps around, with one kernel."""
    rows, columns = sides = x.shape[1:3]
    kernel = jnp.fft.irfft2(w.astype(jnp.complex128), sides, axes=(0, 1))
    padded = ((0, 0), (rows - 1, 0), (columns - 1, 0), (0, 0))
    image = jnp.pad(x.astype(kernel.dtype), padded, mode="wrap")
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = jnp.flip(kernel, (0, 1))
    return lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=numbers)


@read_as(_as_convolution)
def circular(x: Array, w: Array) -> Array:
    """`F^-1 w F x`: images `[B, H, W, in]`, matrices `[H, W // 2 + 1, in, out]`.

    Of norm at most `max ||w||_2` over the frequencies, as proved bounds see. Computed in float32 or
    wider.

    >>> kernel = jnp.zeros((3, 3, 1, 1)).at[0, 1].set(1.0)  # from the pixel above
    >>> x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    >>> circular(x, transform(kernel, (3, 1))).ravel().round(4)
    Array([2., 0., 1.], dtype=float32)
    """
    waves = jnp.fft.rfft2(wide(x), axes=(1, 2))
    waves = jnp.einsum("nfgi,fgio->nfgo", waves, w, precision=lax.Precision.HIGHEST)
    return jnp.fft.irfft2(waves, x.shape[1:3], axes=(1, 2)).astype(x.dtype)
