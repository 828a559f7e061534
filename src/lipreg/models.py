"""The networks that the experiments train, in flax linen: convolutional, residual, and plain.

Every model is called as `model(x, train=...)`: images `x [B, H, W, C]` in [0, 1] to logits
`[B, classes]` in float32, whatever `dtype` it computes in. With `train=True` batch normalisation
uses the batch's statistics and the `batch_stats` collection must be mutable; `functional` takes
care of that. There are no strided convolutions: resolution falls by 2 x 2 average pooling, and
`convolution.conv` keeps the derivatives fast inside loops on CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lipreg.convolution import conv

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "HEADS",
    "MLP",
    "NAMES",
    "BottleneckResNet",
    "Head",
    "PreActResNet",
    "ResNeXt",
    "ResNeXt34_2x32",
    "ResNet18",
    "ResNet50",
    "build",
    "c2relu",
    "count_parameters",
    "functional",
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


def _check(what: str, name: str, choices: Any) -> None:
    if name not in choices:
        raise ValueError(f"No {what} {name!r}; choose one of {', '.join(choices)}.")


def _batch_norm(x: Array, train: bool, *, scale: bool = True, offset: bool = True) -> Array:
    """Momentum 0.9, eps 1e-5; statistics and arithmetic in float32 whatever x is."""
    layer = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_scale=scale,
        use_bias=offset,
        dtype=jnp.float32,
    )
    return layer(x.astype(jnp.float32)).astype(x.dtype)


def _conv(features: int, side: int, dtype: Any, *, groups: int = 1, bias: bool = False) -> nn.Conv:
    return nn.Conv(
        features,
        (side, side),
        use_bias=bias,
        feature_group_count=groups,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        conv_general_dilated=conv,
    )


def _windows(x: Array) -> Array:
    """2 x 2 windows, `[B, H/2, 2, W/2, 2, C]`."""
    batch, rows, columns, channels = x.shape
    x = x[:, : rows // 2 * 2, : columns // 2 * 2]
    return x.reshape(batch, rows // 2, 2, columns // 2, 2, channels)


def _pool(x: Array) -> Array:
    """The mean of 2 x 2 windows; an odd last row or column is left out."""
    return _windows(x).mean((2, 4))


def _space_to_depth(x: Array) -> Array:
    """2 x 2 windows as pixels, each with the channels of four."""
    x = _windows(x).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(*x.shape[:3], -1)


class Head(nn.Module):
    """Features `[B, F]` to logits `[B, classes]`; no activation on the logits.

    `linear`: `Wx + b`. `batch_norm`: `BN(Wx)`, without scale and offset. `tanh`:
    `t tanh(BN(Wx) / t)`, `t = |learned scalar|`, 1 at first, which keeps every logit within t
    (the code of 1810.00953).
    """

    classes: int
    kind: str = "linear"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check("head", self.kind, HEADS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        # Batch normalisation would take a bias away again.
        dense = nn.Dense(self.classes, use_bias=self.kind == "linear", dtype=self.dtype)
        logits = dense(x).astype(jnp.float32)
        if self.kind == "linear":
            return logits
        logits = _batch_norm(logits, train, scale=False, offset=False)
        if self.kind == "batch_norm":
            return logits
        t = jnp.abs(self.param("t", nn.initializers.ones, ()))
        # The floor is under the division only: at t = 0 the logits are 0, and no derivative is NaN.
        return t * jnp.tanh(logits / jnp.maximum(t, 1e-6))


class _Model(nn.Module, kw_only=True):
    """The fields that all models share."""

    classes: int
    head: str = "linear"
    activation: str = "relu"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check("head", self.head, HEADS)
        _check("activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    def logits(self, x: Array, train: bool) -> Array:
        """The head of this model, for use inside a compact `__call__`."""
        return Head(self.classes, self.head, self.dtype)(x, train)


class MLP(_Model):
    """`x -> act(Wx + b) -> ... -> head`, on the flattened image."""

    widths: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        for width in self.widths:
            x = nn.Dense(width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x)
            x = ACTIVATIONS[self.activation](x)
        return self.logits(x, train)


class CNN(_Model):
    """Per stage a 3 x 3 convolution, an activation, pooling; one hidden layer; the head.

    About 10 million multiplications for a 32 x 32 image. Without batch normalisation, the default,
    the gradient of one example does not depend on the others. A side below 4 is not pooled.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    hidden: int = 128
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        act = ACTIVATIONS[self.activation]
        x = x.astype(self.dtype)
        for channels in self.channels:
            x = _conv(channels, 3, self.dtype, bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = _batch_norm(x, train)
            x = act(x)
            if min(x.shape[1:3]) >= 4:
                x = _pool(x)
        # Flattened, not averaged: where in the image a stroke is tells digits apart.
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(self.hidden, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x)
        return self.logits(act(x), train)


class _Residual(_Model):
    """A network of blocks; with `remat` what is inside them is computed again in backward passes.

    That takes less memory and more time (1604.06174).
    """

    remat: bool = False

    def maybe_again(self, block: Callable[[Array], Array], x: Array) -> Array:
        return nn.remat(lambda _, x: block(x))(self, x) if self.remat else block(x)


class ResNeXt(_Residual):
    """Stages of blocks `act(x + mean over branches of (conv BN act conv BN)(x))` (1905.11468).

    The branches of a block are the groups of one wide convolution. A stage that changes the number
    of channels begins with a 1 x 1 convolution, batch normalisation, the activation and 2 x 2
    average pooling, as in the authors' code; so every shortcut is the identity.
    """

    stages: tuple[int, ...] = (5, 5, 5)
    channels: tuple[int, ...] = (32, 64, 128)
    branches: int = 2

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        act = ACTIVATIONS[self.activation]

        def unit(x: Array, channels: int, side: int) -> Array:
            x = _conv(channels, side, self.dtype)(x)
            return act(_batch_norm(x, train, scale=False))

        def block(x: Array, channels: int) -> Array:
            wide = self.branches * channels
            y = act(_batch_norm(_conv(wide, 3, self.dtype)(x), train))
            y = _conv(wide, 3, self.dtype, groups=self.branches)(y)
            y = _batch_norm(y, train)
            return act(x + y.reshape(*x.shape[:3], self.branches, channels).mean(3))

        x = unit(x.astype(self.dtype), self.channels[0], 3)
        for stage, (blocks, channels) in enumerate(zip(self.stages, self.channels, strict=True)):
            if stage:
                x = _pool(unit(x, channels, 1))
            for _ in range(blocks):
                x = self.maybe_again(partial(block, channels=channels), x)
        return self.logits(x.mean((1, 2)), train)


class PreActResNet(_Residual):
    """Stages of blocks `x + conv(act(BN(conv(act(BN(x))))))` (1603.05027).

    A block that halves the resolution averages its activated input, where the original strides,
    and its shortcut is a 1 x 1 convolution of the same.
    """

    stages: tuple[int, ...] = (2, 2, 2, 2)
    channels: tuple[int, ...] = (64, 128, 256, 512)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        act = ACTIVATIONS[self.activation]

        def block(x: Array, channels: int, down: bool) -> Array:
            y = act(_batch_norm(x, train))
            y = _pool(y) if down else y
            if x.shape[-1] != channels:
                x = _conv(channels, 1, self.dtype)(y)
            elif down:
                x = _pool(x)
            y = _conv(channels, 3, self.dtype)(y)
            y = _conv(channels, 3, self.dtype)(act(_batch_norm(y, train)))
            return x + y

        x = _conv(self.channels[0], 3, self.dtype)(x.astype(self.dtype))
        for stage, (blocks, channels) in enumerate(zip(self.stages, self.channels, strict=True)):
            for number in range(blocks):
                down = stage > 0 and number == 0
                x = self.maybe_again(partial(block, channels=channels, down=down), x)
        return self.logits(act(_batch_norm(x, train)).mean((1, 2)), train)


class BottleneckResNet(_Residual):
    """Stages of blocks `act(x + BN conv1 act BN conv3 act BN conv1(x))` (1512.03385).

    The inner convolutions have a quarter of the block's channels. The stem takes 2 x 2 windows as
    pixels of four times the channels, so that its 3 x 3 convolution is one of 6 x 6 with stride 2,
    for the original's 7 x 7, and pools by the mean, not the maximum. A block that halves the
    resolution does so before its 3 x 3 convolution, where version 1.5 strides, and in its shortcut.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    channels: tuple[int, ...] = (256, 512, 1024, 2048)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        act = ACTIVATIONS[self.activation]

        def unit(x: Array, channels: int, side: int) -> Array:
            return _batch_norm(_conv(channels, side, self.dtype)(x), train)

        def block(x: Array, channels: int, down: bool) -> Array:
            y = act(unit(x, channels // 4, 1))
            y, x = (_pool(y), _pool(x)) if down else (y, x)
            y = unit(act(unit(y, channels // 4, 3)), channels, 1)
            return act(y + (x if x.shape[-1] == channels else unit(x, channels, 1)))

        x = _pool(act(unit(_space_to_depth(x.astype(self.dtype)), self.channels[0] // 4, 3)))
        for stage, (blocks, channels) in enumerate(zip(self.stages, self.channels, strict=True)):
            for number in range(blocks):
                down = stage > 0 and number == 0
                x = self.maybe_again(partial(block, channels=channels, down=down), x)
        return self.logits(x.mean((1, 2)), train)


ResNeXt34_2x32 = partial(ResNeXt, stages=(5, 5, 5), channels=(32, 64, 128), branches=2)
ResNet18 = partial(PreActResNet, stages=(2, 2, 2, 2), channels=(64, 128, 256, 512))
ResNet50 = partial(BottleneckResNet, stages=(3, 4, 6, 3), channels=(256, 512, 1024, 2048))

NAMES = ("CNN", "MLP", "ResNeXt34_2x32", "ResNet18", "ResNet50")


def build(
    name: str, *, classes: int, head: str = "linear", activation: str = "relu", **settings: Any
) -> nn.Module:
    """The model called `name`, one of `NAMES`; `settings` are its further fields.

    Raises: ValueError, with the choices, for an unknown model, head, activation or field.

    >>> build("CNN", classes=10, head="tanh", channels=(8, 16)).channels
    (8, 16)
    """
    _check("model", name, NAMES)
    model = globals()[name]
    fields = getattr(model, "func", model).__dataclass_fields__
    for setting in settings:
        _check(f"field of {name}", setting, sorted(set(fields) - {"parent", "name"}))
    return model(classes=classes, head=head, activation=activation, **settings)


def functional(module: nn.Module) -> Callable[[Any, Any, Array, bool], tuple[Array, Any]]:
    """`apply(params, model_state, x, train) -> (logits, model_state)`, a module as a pure function.

    `model_state` is every collection of `module.init` but "params"; it changes where `train`.

    >>> apply = functional(build("MLP", classes=10))
    >>> variables = build("MLP", classes=10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), False)
    >>> apply(variables["params"], {}, jnp.zeros((2, 8, 8, 1)), True)[0].shape
    (2, 10)
    """

    def apply(params: Any, model_state: Any, x: Array, train: bool) -> tuple[Array, Any]:
        variables = {"params": params, **model_state}
        mutable = list(model_state) if train else []
        logits, changed = module.apply(variables, x, train=train, mutable=mutable)
        return logits, {**model_state, **changed}

    return apply


def count_parameters(params: Any) -> int:
    """How many numbers `params` holds.

    >>> count_parameters({"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)})
    12
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))
