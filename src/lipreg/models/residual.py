"""Networks of blocks with shortcuts."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
from jax import Array

from lipreg.models.layers import (
    ACTIVATIONS,
    Model,
    convolution,
    normalised,
    pooled,
    space_to_depth,
)

__all__ = ["BottleneckResNet", "PreActResNet", "ResNeXt"]


class Residual(Model):
    """A network of blocks; with `remat` their inside is recomputed in backward passes.

    That takes less memory and more time (1604.06174).
    """

    stages: tuple[int, ...]
    channels: tuple[int, ...]
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.stages) == len(self.channels):
            name = type(self).__name__
            raise ValueError(
                f"{name}: stages = {self.stages} and channels = {self.channels}; give as many "
                "channels as stages, one or more."
            )

    def images(self, x: Array) -> Array:
        """The images in the network's dtype.

        Raises: ValueError for images that are too small to be downsampled so often.
        """
        rows, columns, least = *x.shape[1:3], 2**self.halvings
        if min(rows, columns) < least:
            name = type(self).__name__
            raise ValueError(
                f"Images of {rows} x {columns} pixels: this {name} halves the resolution "
                f"{self.halvings} times and needs at least {least} x {least}."
            )
        return x.astype(self.dtype)

    @property
    def halvings(self) -> int:
        """How often the resolution is halved, rounding down."""
        return len(self.stages) - 1

    def halving(self, block: Callable[..., Array], x: Array) -> Array:
        """All stages of `block(x, channels, down)`; each but the first halves the resolution."""
        for stage, (blocks, channels) in enumerate(zip(self.stages, self.channels, strict=True)):
            for number in range(blocks):
                down = stage > 0 and number == 0
                x = self.maybe_again(partial(block, channels=channels, down=down), x)
        return x

    def maybe_again(self, block: Callable[[Array], Array], x: Array) -> Array:
        return nn.remat(lambda _, x: block(x))(self, x) if self.remat else block(x)


class ResNeXt(Residual):
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
            x = convolution(channels, side, self.dtype)(x)
            return act(normalised(x, train, scale=False))

        def block(x: Array, channels: int) -> Array:
            wide = self.branches * channels
            y = act(normalised(convolution(wide, 3, self.dtype)(x), train))
            y = convolution(wide, 3, self.dtype, groups=self.branches)(y)
            y = normalised(y, train)
            return act(x + y.reshape(*x.shape[:3], self.branches, channels).mean(3))

        x = unit(self.images(x), self.channels[0], 3)
        for stage, (blocks, channels) in enumerate(zip(self.stages, self.channels, strict=True)):
            if stage:
                x = pooled(unit(x, channels, 1), train)
            for _ in range(blocks):
                x = self.maybe_again(partial(block, channels=channels), x)
        return self.logits(x.mean((1, 2)), train)


class PreActResNet(Residual):
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
            y = act(normalised(x, train))
            y = pooled(y, train) if down else y
            if x.shape[-1] != channels:
                x = convolution(channels, 1, self.dtype)(y)
            elif down:
                x = pooled(x, train)
            y = convolution(channels, 3, self.dtype)(y)
            y = convolution(channels, 3, self.dtype)(act(normalised(y, train)))
            return x + y

        x = self.halving(block, convolution(self.channels[0], 3, self.dtype)(self.images(x)))
        return self.logits(act(normalised(x, train)).mean((1, 2)), train)


class BottleneckResNet(Residual):
    """Stages of blocks `act(x + BN conv1 act BN conv3 act BN conv1(x))` (1512.03385).

    The inner convolutions have a quarter of the block's channels. The stem takes 2 x 2 windows as
    pixels of four times the channels, so that its 3 x 3 convolution is one of 6 x 6 with stride 2
    in place of the original's 7 x 7. It pools by the mean, not the maximum. A block that halves the
    resolution does so before its 3 x 3 convolution, where version 1.5 strides, and in its shortcut.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    channels: tuple[int, ...] = (256, 512, 1024, 2048)

    @property
    def halvings(self) -> int:
        return super().halvings + 2  # the stem's

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        act = ACTIVATIONS[self.activation]

        def unit(x: Array, channels: int, side: int) -> Array:
            return normalised(convolution(channels, side, self.dtype)(x), train)

        def block(x: Array, channels: int, down: bool) -> Array:
            y = act(unit(x, channels // 4, 1))
            y, x = (pooled(y, train), pooled(x, train)) if down else (y, x)
            y = unit(act(unit(y, channels // 4, 3)), channels, 1)
            return act(y + (x if x.shape[-1] == channels else unit(x, channels, 1)))

        x = act(unit(space_to_depth(self.images(x)), self.channels[0] // 4, 3))
        x = pooled(x, train)
        x = self.halving(block, x)
        return self.logits(x.mean((1, 2)), train)
