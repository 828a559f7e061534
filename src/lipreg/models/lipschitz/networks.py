"""Networks that are 1-Lipschitz by construction."""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lipreg.models.layers import Model, check, space_to_depth
from lipreg.models.lipschitz.activations import ACTIVATIONS, MONOTONE
from lipreg.models.lipschitz.constructions import LAYERS
from lipreg.models.lipschitz.linen import BatchNorm, Layer, UnitHead

__all__ = ["LipschitzCNN", "LipschitzMLP"]


class Lipschitz(Model):
    """A network of 1-Lipschitz layers, `layer` one of `LAYERS`.

    `activation` stands between linear layers, by default MaxMin, and inside of residual and
    sandwich ones, by default relu. The head is `linear`, of norm 1, so that the network is
    1-Lipschitz; or `unit`, with columns of norm 1, so that each logit is.
    """

    heads: ClassVar[Any] = ("linear", "unit")
    activations: ClassVar[Any] = ("own", *ACTIVATIONS)
    activation: str = "own"
    layer: str = "aol"

    def __post_init__(self) -> None:
        check("layer", self.layer, LAYERS)
        super().__post_init__()
        if not self.is_linear:
            check(f"activation inside of {self.layer}", self.activation, ("own", *MONOTONE))

    @property
    def is_linear(self) -> bool:
        return LAYERS[self.layer].form == "linear"

    def unit(self, x: Array, features: int, **options: Any) -> Array:
        """A layer and its activation, for use inside a compact `__call__`."""
        own = "maxmin" if self.is_linear else "relu"
        name = own if self.activation == "own" else self.activation
        x = Layer(features, self.layer, activation=name, **options)(x)
        return ACTIVATIONS[name](x) if self.is_linear else x

    def logits(self, x: Array, train: bool) -> Array:
        x = x.astype(jnp.float32)
        if self.head == "unit":
            return UnitHead(self.classes)(x)
        return Layer(self.classes, LAYERS[self.layer].linear or self.layer)(x)


class LipschitzMLP(Lipschitz):
    """`x -> act(Wx + b) -> ... -> head`, on the flattened image."""

    widths: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        for width in self.widths:
            x = self.unit(x, width)
        return self.logits(x, train)


class LipschitzCNN(Lipschitz):
    """Per stage a 3 x 3 convolution, its activation, 2 x 2 windows to channels; one hidden layer.

    Downsampling is orthogonal and loses nothing but the last row and column of an odd side. A side
    below 4 is not halved.
    `batch_norm` divides by the statistics of channels without amplifying any.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    hidden: int = 128
    batch_norm: bool = False
    padding: str = "own"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = x.astype(self.dtype)
        for channels in self.channels:
            x = self.unit(x, channels, side=3, padding=self.padding)
            if self.batch_norm:
                x = BatchNorm()(x, train)
            if min(x.shape[1:3]) >= 4:
                x = space_to_depth(x)
        return self.logits(self.unit(x.reshape(x.shape[0], -1), self.hidden), train)
