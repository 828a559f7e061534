"""The layers as flax linen modules."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lipreg.models.layers import check
from lipreg.models.lipschitz.constructions import LAYERS, apply, draws
from lipreg.models.lipschitz.normalisation import batch_normalised, unit_columns
from lipreg.norms import wide

__all__ = ["BatchNorm", "Layer", "UnitHead"]


class Layer(nn.Module):
    """A 1-Lipschitz layer of `LAYERS`: dense, or a convolution with a kernel of side `side`.

    A residual one that changes the number of channels comes after its linear relative.
    `activation` is that inside of residual and sandwich layers.
    """

    features: int
    layer: str = "aol"
    side: int = 0
    padding: str = "own"
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check("layer", self.layer, LAYERS)
        kind, inputs = LAYERS[self.layer], x.shape[-1]
        if kind.form == "residual" and inputs != self.features:
            x = Layer(self.features, kind.linear, self.side, self.padding)(x)
            inputs = self.features
        made = draws(self.layer, inputs, self.features, self.side)
        params = {name: self.param(name, draw) for name, draw in made.items()}
        return apply(self.layer, params, x, padding=self.padding, activation=self.activation)


class BatchNorm(nn.Module):
    """`batch_normalised` with a learned gain, by the batch or by running statistics, momentum 0.9.

    Without an offset, since the layers before it have a bias.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        like = x.shape[-1:], jnp.float32
        mean = self.variable("batch_stats", "mean", jnp.zeros, *like)
        var = self.variable("batch_stats", "var", jnp.ones, *like)
        gain = self.param("scale", nn.initializers.ones, *like)
        m, v = mean.value, var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            m, v = wide(x).mean(axes), wide(x).var(axes)
            if not self.is_initializing():
                mean.value = 0.9 * mean.value + 0.1 * m
                var.value = 0.9 * var.value + 0.1 * v
        return batch_normalised(x, m, v, gain)


class UnitHead(nn.Module):
    """`x w + b` with columns of norm 1: last-layer normalisation (`unit_columns`)."""

    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = x.shape[-1], self.classes
        w = self.param("kernel", nn.initializers.orthogonal(), shape, jnp.float32)
        b = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        return jnp.matmul(x, unit_columns(w)) + b[None]
