"""The layers as flax nnx modules."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lipreg.models.layers import check
from lipreg.models.lipschitz.constructions import LAYERS, apply, draws
from lipreg.models.lipschitz.normalisation import batch_normalised, unit_columns
from lipreg.norms import wide

__all__ = ["BatchNorm", "Layer", "UnitHead"]


class Layer(nnx.Module):
    """A 1-Lipschitz layer of `LAYERS`: dense, or a convolution with a kernel of side `side`.

    A residual one that changes the number of channels comes after its linear relative.
    `activation` is that inside of residual and sandwich layers.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        layer: str = "aol",
        side: int = 0,
        padding: str = "own",
        activation: str = "relu",
        *,
        rngs: nnx.Rngs,
    ):
        check("layer", layer, LAYERS)
        self.layer, self.padding, self.activation = layer, padding, activation
        kind, widths = LAYERS[layer], (inputs, features)
        changes = kind.form == "residual" and inputs != features
        self.before = Layer(*widths, kind.linear, side, padding, rngs=rngs) if changes else None
        made = draws(layer, features if changes else inputs, features, side)
        self.raw = nnx.Dict({name: nnx.Param(draw(rngs.params())) for name, draw in made.items()})

    def __call__(self, x: Array) -> Array:
        x = x if self.before is None else self.before(x)
        params = {name: param[...] for name, param in self.raw.items()}
        return apply(self.layer, params, x, padding=self.padding, activation=self.activation)


class BatchNorm(nnx.Module):
    """`batch_normalised` with a learned gain, by the batch or by running statistics, momentum 0.9.

    Without an offset, since the layers before it have a bias.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs | None = None):
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.use_running_average = False  # which train() and eval() set

    def __call__(self, x: Array) -> Array:
        m, v = self.mean[...], self.var[...]
        if not self.use_running_average:
            axes = tuple(range(x.ndim - 1))
            m, v = wide(x).mean(axes), wide(x).var(axes)
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * m
            self.var[...] = 0.9 * self.var[...] + 0.1 * v
        return batch_normalised(x, m, v, self.scale[...])


class UnitHead(nnx.Module):
    """`x w + b` with columns of norm 1: last-layer normalisation (`unit_columns`)."""

    def __init__(self, inputs: int, classes: int, *, rngs: nnx.Rngs):
        drawn = nnx.initializers.orthogonal()(rngs.params(), (inputs, classes), jnp.float32)
        self.kernel = nnx.Param(drawn)
        self.bias = nnx.Param(jnp.zeros(classes, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return jnp.matmul(x, unit_columns(self.kernel[...])) + self.bias[...][None]
