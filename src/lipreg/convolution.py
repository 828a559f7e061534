"""A convolution with fast derivatives inside loops on CPU, for flax's `conv_general_dilated=`.

XLA:CPU has one fast convolution: NHWC images, HWIO kernels, no groups, no reversal. Outside of
loops it rewrites other layouts to that one; inside `fori_loop`, `scan` and `while_loop` it does
not (jax-ml/jax#12868), and the derivatives that `lax` writes, which are in other layouts, then run
15 to 48 times slower. Groups are slow everywhere. So the derivatives here are written out as
convolutions in the fast layout, and groups are split.

A convolution is linear in the image x and in the kernel w, so that with a cotangent u

    T(x, w, u) = <conv(x, w), u>

is trilinear. Its three partial gradients are the convolution, the gradient in the image and the
gradient in the kernel, and the derivative of each of them is given by the other two. That table is
closed: reverse mode of every order calls these three functions and nothing else.

jaxlib 0.10 hands convolutions outside of loops to YNNPACK, which takes twice the time of XLA's own
on two cores; `cpu.tune` says no to that, but for those that XLA fuses with a reduction. So the
networks' pooling is none (`models.layers.pooled`).
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["conv"]

Pads = tuple[tuple[int, int], tuple[int, int]]

# flax's own: images, kernels and outputs as positions of (batch, feature, height, width).
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# A group is a convolution of its own below this number; above, compiling so many costs more than
# it saves.
MOST_GROUPS = 32

# Up to so many channels the gradient of an image is one matrix product, on CPU 2 to 3 times faster:
# a first layer's, of which every step of an attack needs one. At 8 channels it is slower.
NARROW = 4


def conv(
    lhs: Array,
    rhs: Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """`y[n,i,j,o] = sum_{a,b,c} x[n,i+a,j+b,c] w[a,b,c,o]`: `lax.conv_general_dilated`, drop-in.

    The fast derivatives are there for NHWC images with HWIO kernels, stride 1, no dilation and an
    output no larger than the image, which includes "SAME", "VALID" and 1 x 1 kernels; all else is
    lax's own convolution. Use average pooling rather than strides. Up to 32 groups are split into
    convolutions of their own, on every platform. Elsewhere than on CPU the derivatives are lax's.

    There is no forward mode through the fast path, as with every `jax.custom_vjp`: `jax.jvp`,
    `jax.jacfwd`, `jax.linearize` and `jax.hessian` raise TypeError. Reverse mode works to any
    order. `vmap` over images is fine; over kernels, or over kernel gradients, it makes a grouped
    convolution of the batch, which is slow on CPU.

    >>> layer = flax.linen.Conv(8, (3, 3), conv_general_dilated=conv)
    >>> conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), (1, 1), "SAME",
    ...      dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
    (1, 4, 4, 5)
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if 1 < feature_group_count <= MOST_GROUPS and batch_group_count == 1:
        one = partial(
            conv,
            window_strides=window_strides,
            padding=padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=numbers,
            precision=precision,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
        )
        images = jnp.split(lhs, feature_group_count, numbers.lhs_spec[1])
        kernels = jnp.split(rhs, feature_group_count, numbers.rhs_spec[0])
        return jnp.concatenate(list(map(one, images, kernels)), numbers.out_spec[1])

    one_by_one = all(
        s == 1 for s in (*window_strides, *(lhs_dilation or ()), *(rhs_dilation or ()))
    )
    one_group = feature_group_count == batch_group_count == 1
    usual = preferred_element_type in (None, lhs.dtype) and out_sharding is None
    if numbers == NHWC and one_by_one and one_group and usual:
        pads = _explicit(padding, lhs.shape[1:3], rhs.shape[:2])
        # An output larger than the image would be a kernel larger than the image in the kernel's
        # gradient, and XLA swaps the two, with a reversal.
        if all(min(p) >= 0 and sum(p) < k for p, k in zip(pads, rhs.shape[:2], strict=True)):
            return _forward(lhs, rhs, pads, precision)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        out_sharding,
    )


def _explicit(padding: Any, image: tuple[int, ...], kernel: tuple[int, ...]) -> Pads:
    """ "SAME", "VALID" or pairs as pairs of ints, at stride 1."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, kernel, (1, 1), padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _lax_conv(x: Array, w: Array, pads: Pads, precision: Any) -> Array:
    return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=NHWC, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _forward(x: Array, w: Array, pads: Pads, precision: Any) -> Array:
    """`dT/du`: `[N,H,W,C], [a,b,C,O] -> [N,H',W',O]`."""
    return _lax_conv(x, w, pads, precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _image_gradient(w: Array, u: Array, pads: Pads, precision: Any) -> Array:
    """`dT/dx`: `[a,b,C,O], [N,H',W',O] -> [N,H,W,C]`."""

    (top, bottom), (left, right) = pads
    a, b = w.shape[0] - 1, w.shape[1] - 1

    def written_out(w: Array, u: Array) -> Array:
        outer = ((a - top, a - bottom), (b - left, b - right))
        return _lax_conv(u, jnp.flip(w, (0, 1)).swapaxes(2, 3), outer, precision)

    def added_up(w: Array, u: Array) -> Array:
        # Shares of the pixels in those about them, by one matrix product, each moved to its place.
        shares = jnp.einsum("nijo,abco->nijabc", u, w, precision=precision)
        zero = jnp.zeros((), shares.dtype)
        none = (0, 0, 0)

        def moved(i: int, j: int) -> Array:
            rows, columns = (i - top, a - i - bottom, 0), (j - left, b - j - right, 0)
            return lax.pad(shares[:, :, :, i, j], zero, (none, rows, columns, none))

        return reduce(jnp.add, (moved(i, j) for i, j in np.ndindex(w.shape[:2])))

    def transposed(w: Array, u: Array) -> Array:
        sizes = zip(u.shape[1:3], w.shape[:2], pads, strict=True)
        sides = (n + k - 1 - sum(pair) for n, k, pair in sizes)
        x = jax.ShapeDtypeStruct((u.shape[0], *sides, w.shape[2]), u.dtype)
        return jax.linear_transpose(lambda x: _lax_conv(x, w, pads, precision), x)(u)[0]

    on_cpu = added_up if w.shape[2] <= NARROW else written_out
    return lax.platform_dependent(w, u, cpu=on_cpu, default=transposed)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(x: Array, u: Array, pads: Pads, precision: Any) -> Array:
    """`dT/dw`: `[N,H,W,C], [N,H',W',O] -> [a,b,C,O]`."""

    def written_out(x: Array, u: Array) -> Array:
        # The sum over examples takes the place of the sum over channels.
        w = _lax_conv(x.transpose(3, 1, 2, 0), u.transpose(1, 2, 0, 3), pads, precision)
        return w.transpose(1, 2, 0, 3)

    def transposed(x: Array, u: Array) -> Array:
        sizes = zip(x.shape[1:3], u.shape[1:3], pads, strict=True)
        sides = (n - m + 1 + sum(pair) for n, m, pair in sizes)
        w = jax.ShapeDtypeStruct((*sides, x.shape[3], u.shape[3]), x.dtype)
        return jax.linear_transpose(lambda w: _lax_conv(x, w, pads, precision), w)(u)[0]

    return lax.platform_dependent(x, u, cpu=written_out, default=transposed)


def _keep(a: Array, b: Array, pads: Pads, precision: Any, function: Any) -> tuple[Array, tuple]:
    return function(a, b, pads, precision), (a, b)


# The derivative of each in its two arguments: the other two, the cotangent in the argument's place.
_forward.defvjp(
    partial(_keep, function=_forward),
    lambda pads, precision, saved, u: (
        _image_gradient(saved[1], u, pads, precision),
        _kernel_gradient(saved[0], u, pads, precision),
    ),
)
_image_gradient.defvjp(
    partial(_keep, function=_image_gradient),
    lambda pads, precision, saved, x: (
        _kernel_gradient(x, saved[1], pads, precision),
        _forward(x, saved[0], pads, precision),
    ),
)
_kernel_gradient.defvjp(
    partial(_keep, function=_kernel_gradient),
    lambda pads, precision, saved, w: (
        _image_gradient(w, saved[1], pads, precision),
        _forward(saved[0], w, pads, precision),
    ),
)
