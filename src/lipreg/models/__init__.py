"""The networks that the experiments train, in flax linen: convolutional, residual, and plain.

Every model of the library is called as `model(x, train=...)`: images `x [B, H, W, C]` in [0, 1] to
logits `[B, classes]` in float32, whatever `dtype` it computes in. With `train=True` batch
normalisation uses the batch's statistics. There are no strided convolutions: resolution falls by
2 x 2 average pooling, and `convolution.conv` keeps the derivatives fast inside loops on CPU.

`network` turns a model into two pure functions, an outsider's in nnx, linen or plain JAX as well.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from lipreg.models.adapters import Network, functional, network
from lipreg.models.layers import ACTIVATIONS, DTYPES, HEADS, Head, c2relu, check
from lipreg.models.lipschitz.networks import LipschitzCNN, LipschitzMLP
from lipreg.models.outsiders import outsider
from lipreg.models.plain import CNN, MLP
from lipreg.models.residual import BottleneckResNet, PreActResNet, ResNeXt

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "DTYPES",
    "HEADS",
    "MLP",
    "NAMES",
    "BottleneckResNet",
    "Head",
    "LipschitzCNN",
    "LipschitzMLP",
    "Network",
    "PreActResNet",
    "ResNeXt",
    "ResNeXt34_2x8",
    "ResNeXt34_2x32",
    "ResNet18",
    "ResNet50",
    "build",
    "c2relu",
    "count_parameters",
    "fields",
    "functional",
    "network",
    "outsider",
]

ResNeXt34_2x32 = partial(ResNeXt, stages=(5, 5, 5), channels=(32, 64, 128), branches=2)
ResNeXt34_2x8 = partial(ResNeXt, stages=(5, 5, 5), channels=(8, 16, 32), branches=2)
ResNet18 = partial(PreActResNet, stages=(2, 2, 2, 2), channels=(64, 128, 256, 512))
ResNet50 = partial(BottleneckResNet, stages=(3, 4, 6, 3), channels=(256, 512, 1024, 2048))

NAMES = (
    *("CNN", "MLP", "ResNeXt34_2x32", "ResNeXt34_2x8", "ResNet18", "ResNet50"),
    *("LipschitzCNN", "LipschitzMLP"),
)


def build(name: str, *, classes: int, **settings: Any) -> nn.Module:
    """The model called `name`, one of `NAMES`; `settings` are its further fields, head among them.

    Raises: ValueError, with the choices, for an unknown model, head, activation, dtype or field.

    >>> build("CNN", classes=10, head="tanh", channels=(8, 16)).channels
    (8, 16)
    """
    known = fields(name)
    for setting in settings:
        check(f"field of {name}", setting, known)
    return globals()[name](classes=classes, **settings)


def fields(name: str) -> list[str]:
    """The fields of the model called `name`, one of `NAMES`, beside its number of classes.

    >>> fields("MLP")
    ['activation', 'dtype', 'head', 'widths']
    """
    check("model", name, NAMES)
    model = globals()[name]
    own = {field.name for field in dataclasses.fields(getattr(model, "func", model))}
    return sorted(own - {"classes", "parent", "name"})  # the last two are flax's


def count_parameters(params: Any) -> int:
    """How many numbers `params` holds.

    >>> count_parameters({"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)})
    12
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))
