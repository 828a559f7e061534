"""1-Lipschitz maps of examples, from weights of norm at most 1.

`residual` and `sandwich` are 1-Lipschitz as wholes, though the product of their parts' constants is
3 and 2; `lipschitz.bounds` knows both.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.convolution import conv
from lipreg.models.lipschitz.fourier import circular
from lipreg.models.lipschitz.rescaled import adjoint

__all__ = ["linear", "residual", "sandwich"]

Activation = Callable[[Array], Array]


def linear(x: Array, w: Array, padding: str = "zeros") -> Array:
    """`x w`: a product with `[in, out]`, or the convolution with a kernel or with its transform.

    A kernel `[a, b, in, out]` with odd sides, padded with "zeros" or "circular"; matrices of
    frequencies `[H, W // 2 + 1, in, out]`, complex, are circular. In the dtype of x.
    """
    if jnp.iscomplexobj(w):
        return circular(x, w)
    w = w.astype(x.dtype)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore
    if w.ndim == 2:
        return jnp.matmul(x, w, precision=precision)
    if not all(k % 2 for k in w.shape[:2]):
        raise ValueError(f"A kernel of {w.shape[0]} x {w.shape[1]}; want odd sides.")
    pads = [(k // 2, k // 2) for k in w.shape[:2]]
    if padding == "circular":
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="wrap")
        pads = [(0, 0), (0, 0)]
    return conv(x, w, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision)


def residual(
    x: Array, w: Array, b: Array, activation: Activation = jax.nn.relu, padding: str = "zeros"
) -> Array:
    """`x - 2 w* act(w x + b)`: CPL for `spectral` weights, SLL for `sll` (2110.12690, 2303.03169).

    With slopes D of the activation in [0, 1] and `||w|| <= 1` the Jacobian is `1 - 2 w* D w`, which
    is between -1 and 1. The papers' `2 w* T relu(w x + b)` is this with `w T^(1/2)` for w and
    `T^(1/2) b` for b, since relu is homogeneous.
    """
    inner = activation(linear(x, w, padding) + _offset(b, x))
    return x - 2 * linear(inner, adjoint(w), padding)


def sandwich(x: Array, w: Array, b: Array, activation: Activation = jax.nn.relu) -> Array:
    """`sqrt(2) act(sqrt(2) x B + b) A*`, w = [B; A], orthonormal columns (2301.11526, LBDN).

    `w [in + out, out]`, or one matrix for each frequency. 1-Lipschitz for slopes of the activation
    in [0, 1]. The paper's diagonal scale is left out: with relu it only rescales b.
    """
    inputs = w.shape[-2] - w.shape[-1]
    inner = linear(x, math.sqrt(2) * w[..., :inputs, :]) + _offset(b, x)
    return linear(activation(inner), math.sqrt(2) * adjoint(w[..., inputs:, :]))


def _offset(b: Array, x: Array) -> Array:
    """b in the dtype of x, and of its rank: strict promotion refuses anything else."""
    return b.astype(x.dtype).reshape((1,) * (x.ndim - 1) + b.shape)
