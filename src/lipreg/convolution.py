"""A convolution with fast derivatives inside loops on CPU, for flax's `conv_general_dilated=`.

XLA:CPU has one fast convolution: NHWC images, HWIO kernels, no groups, no reversal. Outside of
loops it rewrites other layouts to that one; inside `fori_loop`, `scan` and `while_loop` it does
not (jax-ml/jax#12868), and the derivatives that `lax` writes, which are in other layouts, then run
15 to 48 times slower. Groups are slow everywhere. So the derivatives here are written out as
convolutions in the fast layout, and groups are split.

A convolution is linear in the image x and in the kernel w, so that with a cotangent u

    T(x, w, u) = <conv(x, w), u>

is trilinear. Its three partial gradients are the convolution, the gradient in the image and the
gradient in the kernel. Each is bilinear: its JVP calls itself, and its transposes are the other
two. So they are one JAX primitive with these rules, and every derivative, forward or reverse and of
any order, calls these three functions and nothing else.

Outside of loops jaxlib hands convolutions to YNNPACK, which takes twice the time of XLA's own on
two cores. `cpu.tune` prevents that, except for convolutions that XLA fuses with a reduction. So the
networks' pooling is written without a reduction (`models.layers.pooled`).
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["conv"]

Pads = tuple[tuple[int, int], tuple[int, int]]

# flax's own: images, kernels and outputs as positions of (batch, feature, height, width).
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# Up to this many groups each becomes a convolution of its own; beyond, compiling them costs more
# than it saves.
MOST_GROUPS = 32

# Up to this many channels the gradient of an image, which each step of an attack needs at a first
# layer, is one matrix product: 2 to 3 times faster on CPU. At 8 channels it would be slower.
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
    output no larger than the image, which includes "SAME", "VALID" and 1 x 1 kernels; all else,
    arrays on an explicit mesh included, uses lax's own convolution. Use average pooling rather than
    strides. Up to 32 groups are split into convolutions of their own, on every platform. Elsewhere
    than on CPU the derivatives are lax's.

    `vmap` over images or over kernels is fine; over both, as in a per-example kernel gradient, it
    makes a grouped convolution of the batch, which is slow on CPU.

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
    # On an explicit mesh types include the sharding, for which only lax's derivatives have rules.
    typed = any(any(jax.typeof(a).sharding.spec) for a in (lhs, rhs))
    if numbers == NHWC and one_by_one and one_group and usual and not typed:
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


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _forward(x: Array, w: Array, pads: Pads, precision: Any) -> Array:
    """`dT/du`: `[N,H,W,C], [a,b,C,O] -> [N,H',W',O]`; in the jaxpr it is lax's own."""
    return _lax_conv(x, w, pads, precision)


@partial(_forward.defjvp, symbolic_zeros=True)
def _forward_jvp(pads: Pads, precision: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, w), (dx, dw) = primals, tangents
    pairs = [p for p in ((dx, w), (x, dw)) if not any(isinstance(a, SymbolicZero) for a in p)]
    params = {"pads": pads, "precision": precision, "mapped": 0}
    moved = (_partial("u", {"x": a, "w": b}, **params) for a, b in pairs)
    return _forward(x, w, pads, precision), reduce(jnp.add, moved)


def _image_gradient(w: Array, u: Array, pads: Pads, precision: Any) -> Array:
    """`dT/dx`, fast on CPU: `[a,b,C,O], [N,H',W',O] -> [N,H,W,C]`."""
    (top, bottom), (left, right) = pads
    a, b = w.shape[0] - 1, w.shape[1] - 1
    if w.shape[2] > NARROW:
        outer = ((a - top, a - bottom), (b - left, b - right))
        return _lax_conv(u, jnp.flip(w, (0, 1)).swapaxes(2, 3), outer, precision)

    # One matrix product gives every pixel's contribution to its neighbours; each is then shifted.
    shares = jnp.einsum("nijo,abco->nijabc", u, w, precision=precision)
    zero = jnp.zeros((), shares.dtype)
    none = (0, 0, 0)

    def moved(i: int, j: int) -> Array:
        rows, columns = (i - top, a - i - bottom, 0), (j - left, b - j - right, 0)
        return lax.pad(shares[:, :, :, i, j], zero, (none, rows, columns, none))

    return reduce(jnp.add, (moved(i, j) for i, j in np.ndindex(w.shape[:2])))


def _kernel_gradient(x: Array, u: Array, pads: Pads, precision: Any) -> Array:
    """`dT/dw`, fast on CPU: `[N,H,W,C], [N,H',W',O] -> [a,b,C,O]`."""
    # The sum over examples takes the place of the sum over channels.
    w = _lax_conv(x.transpose(3, 1, 2, 0), u.transpose(1, 2, 0, 3), pads, precision)
    return w.transpose(1, 2, 0, 3)


def _lax_image_gradient(w: Array, u: Array, pads: Pads, precision: Any) -> Array:
    """`dT/dx` as lax writes it."""
    sizes = zip(u.shape[1:3], w.shape[:2], pads, strict=True)
    sides = (n + k - 1 - sum(pair) for n, k, pair in sizes)
    x = jnp.zeros_like(u, shape=(u.shape[0], *sides, w.shape[2]))
    return jax.linear_transpose(lambda x: _lax_conv(x, w, pads, precision), x)(u)[0]


def _lax_kernel_gradient(x: Array, u: Array, pads: Pads, precision: Any) -> Array:
    """`dT/dw` as lax writes it."""
    sizes = zip(x.shape[1:3], u.shape[1:3], pads, strict=True)
    sides = (n - m + 1 + sum(pair) for n, m, pair in sizes)
    w = jnp.zeros_like(u, shape=(*sides, x.shape[3], u.shape[3]))
    return jax.linear_transpose(lambda w: _lax_conv(x, w, pads, precision), w)(u)[0]


# The three partial gradients as one primitive: the gradient in one `factor` of T, from the
# other two in the order x, w, u. Each factor has two axes that are not spatial, and shares one
# with each other factor. Where `vmap` maps both arguments, both have `mapped` leading axes.

AXES = {"x": {"N": 0, "C": 3}, "w": {"C": 2, "O": 3}, "u": {"N": 0, "O": 3}}
ON_CPU = {"x": _image_gradient, "w": _kernel_gradient, "u": _lax_conv}
ELSEWHERE = {"x": _lax_image_gradient, "w": _lax_kernel_gradient, "u": _lax_conv}

partial_p = Primitive("convolution_partial")


def _partial(factor: str, factors: dict[str, Array], **params: Any) -> Array:
    a, b = _alike(*(factors[name] for name in _others(factor)))
    return partial_p.bind(a, b, factor=factor, **params)


def _others(factor: str) -> tuple[str, str]:
    first, second = (name for name in AXES if name != factor)
    return first, second


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Inside `shard_map`, a and b varying over the same mesh axes, so that it sums gradients."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return a, b
    zero = partial(jnp.zeros_like, shape=())
    return a + zero(b, dtype=a.dtype), b + zero(a, dtype=b.dtype)


def in_lax(
    a: Array,
    b: Array,
    *,
    factor: str,
    mapped: int,
    forms: dict[str, Callable] = ELSEWHERE,
    **params: Any,
) -> Array:
    """What the primitive computes, in operations of lax."""
    form = partial(forms[factor], **params)
    for _ in range(mapped):
        form = jax.vmap(form)
    return form(a, b)


def _transpose(which: int, u: Array, *arguments: Any, factor: str, **params: Any) -> Array:
    """The transpose in one argument is the gradient in that factor."""
    names = _others(factor)
    return _partial(names[which], {factor: u, names[1 - which]: arguments[1 - which]}, **params)


def _batch(
    arguments: Any, axes: Any, *, factor: str, mapped: int, **params: Any
) -> tuple[Array, int]:
    names = _others(factor)
    factors = dict(zip(names, arguments, strict=True))
    if None not in axes:
        front = {n: jnp.moveaxis(factors[n], i, 0) for n, i in zip(names, axes, strict=True)}
        return _partial(factor, front, mapped=mapped + 1, **params), 0
    # The mapped axis is merged into the axis that this argument shares with the result.
    which = axes.index(None) ^ 1
    name = names[which]
    (shared,) = AXES[name].keys() & AXES[factor].keys()
    into, onto = (mapped + AXES[n][shared] for n in (name, factor))
    a = jnp.moveaxis(arguments[which], axes[which], into)
    factors[name] = lax.collapse(a, into, into + 2)
    out = _partial(factor, factors, mapped=mapped, **params)
    sizes = a.shape[into : into + 2]
    return out.reshape(*out.shape[:onto], *sizes, *out.shape[onto + 1 :]), onto


@partial_p.def_impl
@partial(jax.jit, static_argnames=("factor", "mapped", "pads", "precision"))
def _compiled(a: Array, b: Array, **params: Any) -> Array:
    return partial_p.bind(a, b, **params)


@partial_p.def_abstract_eval
def _typed(a: Any, b: Any, **params: Any) -> Any:
    return jax.make_jaxpr(partial(in_lax, **params))(a, b).out_avals[0]


ad.defbilinear(partial_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[partial_p] = _batch
for forms, platform in ((ELSEWHERE, None), (ON_CPU, "cpu")):
    rule = mlir.lower_fun(partial(in_lax, forms=forms), multiple_results=False)
    mlir.register_lowering(partial_p, rule, platform)
