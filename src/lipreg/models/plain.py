"""Networks without shortcuts."""

from flax import linen as nn
from jax import Array

from lipreg.models.layers import ACTIVATIONS, Model, convolution, normalised, pooled

__all__ = ["CNN", "MLP"]


class MLP(Model):
    """`x -> act(Wx + b) -> ... -> head`, on the flattened image."""

    widths: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        for width in self.widths:
            x = nn.Dense(width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x)
            x = ACTIVATIONS[self.activation](x)
        return self.logits(x, train)


class CNN(Model):
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
            x = convolution(channels, 3, self.dtype, bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = normalised(x, train)
            x = act(x)
            if min(x.shape[1:3]) >= 4:
                x = pooled(x, train)
        # Flattened, not averaged: where in the image a stroke is tells digits apart.
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(self.hidden, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x)
        return self.logits(act(x), train)
