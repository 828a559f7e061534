"""Images as numbers in [0, 1], and their augmentation inside a compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["augment", "to_unit"]


def to_unit(x: Array | np.ndarray) -> Array:
    """`x / 255`: uint8 in 0 … 255 to float32 in [0, 1]. Floating x is returned as it is.

    Raises: ValueError for any other dtype.

    >>> to_unit(np.array([0, 255], np.uint8))
    Array([0., 1.], dtype=float32)
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype != jnp.uint8:
        raise ValueError(f"x is {x.dtype}; images are uint8 in 0 … 255 or floating in [0, 1].")
    # XLA makes this product of `/ 255` in some programs: the last bit would depend on the jit.
    return x.astype(jnp.float32) * np.float32(1 / 255)


def augment(
    key: Array,
    x: Array,
    *,
    flip: bool = True,
    pad: int = 4,
    cutout: int = 0,
    fill: float = 0.0,
) -> Array:
    """Random crop after padding by `pad`, horizontal flip (p = 1/2), a square that is cut out.

    x `[B, H, W, C]`, uint8 or floating; the result has its shape and dtype. The square has side
    `cutout`, a centre uniform over the image's pixels (so it may stick out), and the value `fill`,
    like the padding (DeVries & Taylor 2017: 0). Image b draws from `fold_in(key, b)`, whatever the
    rest of the batch. With `flip=False, pad=0, cutout=0` x itself is returned.

    >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 3), jnp.uint8), pad=2).shape
    (2, 8, 8, 3)
    """
    if pad < 0 or cutout < 0:
        raise ValueError(f"pad = {pad}, cutout = {cutout}; both must be 0 or more pixels.")
    if not (flip or pad or cutout):
        return x
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}; augment takes images [B, H, W, C].")

    def one(row: Array, image: Array) -> Array:
        to_crop, to_flip, to_cut = jax.random.split(jax.random.fold_in(key, row), 3)
        if pad:
            image = _crop(to_crop, image, pad, fill)
        if flip:
            image = jnp.where(jax.random.bernoulli(to_flip), image[:, ::-1], image)
        return _cut(to_cut, image, cutout, fill) if cutout else image

    return jax.vmap(one)(jnp.arange(len(x)), x)


def _crop(key: Array, image: Array, pad: int, fill: float) -> Array:
    value = jnp.asarray(fill, image.dtype)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=value)
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


def _cut(key: Array, image: Array, side: int, fill: float) -> Array:
    size = jnp.array(image.shape[:2])
    first = jax.random.randint(key, (2,), 0, size) - side // 2
    rows, columns = (jnp.arange(n) - start for n, start in zip(image.shape, first, strict=False))
    in_rows, in_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    square = in_rows[:, None, None] & in_columns[None, :, None]
    return jnp.where(square, jnp.full_like(image, fill), image)
