"""What the networks are made of: activations, normalisation, convolution, pooling, the head."""

from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from lipreg.convolution import conv

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "HEADS",
    "Head",
    "Model",
    "c2relu",
    "check",
    "convolution",
    "normalised",
    "pooled",
    "space_to_depth",
    "windows",
]


def c2relu(x: Array) -> Array:
    """`max(z^3 - z^4/2, relu(x))`, `z = relu(x + 1/2)`: relu, twice differentiable (1905.11468).

    0 up to -1/2, `z^3 - z^4/2` up to 1/2 and x from there on; value, slope and curvature agree at
    both seams, and the curvature `6z - 6z^2` is at most 3/2.

    >>> c2relu(jnp.array([-0.5, 0.0, 0.5, 2.0]))
    Array([0.     , 0.09375, 0.5    , 2.     ], dtype=float32)
    """
    # As pieces rather than a maximum: z is kept out of the quartic above 1, where it overflows.
    z = jax.nn.relu(jnp.where(x < 0.5, x, 0.5) + 0.5)
    return jnp.where(x < 0.5, z**3 - 0.5 * z**4, x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "c2relu": c2relu,
}

HEADS = ("linear", "batch_norm", "tanh")

# What a network computes in. Not float16, in which gradients below 6e-8 underflow.
DTYPES = ("float32", "bfloat16")


def check(what: str, name: str, choices: Any) -> None:
    if name not in choices:
        raise ValueError(f"No {what} {name!r}; choose one of {', '.join(choices)}.")


def normalised(x: Array, train: bool, *, scale: bool = True, offset: bool = True) -> Array:
    """Batch normalisation in float32, whatever x is, with momentum 0.9 and eps 1e-5."""
    layer = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_scale=scale,
        use_bias=offset,
        dtype=jnp.float32,
    )
    return layer(x.astype(jnp.float32)).astype(x.dtype)


def convolution(
    features: int, side: int, dtype: Any, *, groups: int = 1, bias: bool = False
) -> nn.Conv:
    """A convolution with He's initialisation and the library's derivatives."""
    return nn.Conv(
        features,
        (side, side),
        use_bias=bias,
        feature_group_count=groups,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        # Explicit: derivative rules of `conv` may be traced after this context has been left.
        precision=jax.config.jax_default_matmul_precision,  # pyright: ignore
        conv_general_dilated=conv,
    )


def windows(x: Array) -> Array:
    """2 x 2 windows, `[B, H/2, 2, W/2, 2, C]`."""
    batch, rows, columns, channels = x.shape
    x = x[:, : rows // 2 * 2, : columns // 2 * 2]
    return x.reshape(batch, rows // 2, 2, columns // 2, 2, channels)


def space_to_depth(x: Array) -> Array:
    """2 x 2 windows as pixels, each with the channels of four; an odd last row is left out."""
    x = windows(x).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(*x.shape[:3], -1)


def pooled(x: Array, train: bool) -> Array:
    """The mean of 2 x 2 windows; an odd last row or column is left out.

    On CPU, outside of training, it is a sum of slices: XLA fuses a convolution with a reduction
    after it and hands both to YNNPACK (see `lipreg.convolution`). With slices an attack of 10 steps
    on the small CNN takes 0.8 of the time. In training batch statistics stand between the two, and
    second derivatives would take 1.1 times as long, so there it stays a mean.
    """

    def mean(x: Array) -> Array:
        return windows(x).mean((2, 4))

    def added_up(x: Array) -> Array:
        parts = windows(x)
        return reduce(jnp.add, (parts[:, :, i, :, j] for i, j in np.ndindex(2, 2))) / 4

    return mean(x) if train else lax.platform_dependent(x, cpu=added_up, default=mean)


class Head(nn.Module):
    """Features `[B, F]` to logits `[B, classes]` in float32; no activation on the logits.

    `linear`: `Wx + b`. `batch_norm`: `BN(Wx)`, without scale and offset. `tanh`:
    `t tanh(BN(Wx) / t)`, `t = |learned scalar|`, 1 at first, which keeps every logit within t
    (the code of 1810.00953). Everything is computed in float32, whatever the features are: bfloat16
    rounds a logit of 40 to a multiple of 1/4, and so the softmax by a factor of up to e^(1/8).
    """

    classes: int
    kind: str = "linear"

    def __post_init__(self) -> None:
        check("head", self.kind, HEADS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        # Batch normalisation would cancel a bias.
        dense = nn.Dense(self.classes, use_bias=self.kind == "linear", dtype=jnp.float32)
        logits = dense(x.astype(jnp.float32))
        if self.kind == "linear":
            return logits
        logits = normalised(logits, train, scale=False, offset=False)
        if self.kind == "batch_norm":
            return logits
        t = jnp.abs(self.param("t", nn.initializers.ones, (), jnp.float32))
        # The floor is under the division only: at t = 0 the logits are 0, and no derivative is NaN.
        return t * jnp.tanh(logits / jnp.maximum(t, 1e-6))


class Model(nn.Module, kw_only=True):
    """The fields that all models share.

    `dtype`, one of `DTYPES`, is that of convolutions, hidden layers and activations; weights, batch
    normalisation and the head are float32.
    """

    heads: ClassVar[Any] = HEADS
    activations: ClassVar[Any] = ACTIVATIONS
    classes: int
    head: str = "linear"
    activation: str = "relu"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check("head", self.head, self.heads)
        check("activation", self.activation, self.activations)
        name = self.dtype if isinstance(self.dtype, str) else np.dtype(self.dtype).name
        check("dtype", name, DTYPES)
        super().__post_init__()

    def logits(self, x: Array, train: bool) -> Array:
        """The head of this model, for use inside a compact `__call__`."""
        return Head(self.classes, self.head)(x, train)
