"""The layers by name: what each draws, and what it makes of that.

| name | map | norm |
|---|---|---|
| `aol`, `spectral` | `x w + b`, rescaled | at most 1; zero-padded or circular |
| `bjorck`, `cayley`, `bro` | `x w + b`, orthogonal | all singular values 1; circular |
| `cpl`, `sll` | `x - 2 w* relu(w x + b)`, rescaled | at most 1; zero-padded or circular |
| `sandwich` | `sqrt(2) relu(sqrt(2) x B + b) A*` | at most 1; circular |

A convolution of an orthogonal layer is one matrix for each frequency (`fourier`). Those that have
an activation inside take one of `activations.MONOTONE`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.models.layers import check
from lipreg.models.lipschitz.activations import MONOTONE
from lipreg.models.lipschitz.fourier import transform
from lipreg.models.lipschitz.maps import linear, residual, sandwich
from lipreg.models.lipschitz.orthogonal import bro, cayley, newton_schulz
from lipreg.models.lipschitz.rescaled import aol, sll, spectral

__all__ = ["LAYERS", "Construction", "apply", "draws"]

Init = Callable[[Array], Array]


class Construction(NamedTuple):
    """How a layer is built.

    Attributes:
      weight: `(params, kernel, inputs, outputs) -> w`, of norm at most 1.
      form: "linear", "residual" or "sandwich".
      frequencies: whether a convolution is one matrix for each frequency.
      linear: the layer that stands for it where a linear one is needed.
    """

    weight: Callable[[dict[str, Array], Array, int, int], Array]
    form: str = "linear"
    frequencies: bool = False
    linear: str = ""


LAYERS: dict[str, Construction] = {
    "aol": Construction(lambda params, w, i, o: aol(w)),
    "spectral": Construction(lambda params, w, i, o: spectral(w)),
    "bjorck": Construction(lambda params, w, i, o: newton_schulz(w), frequencies=True),
    "cayley": Construction(lambda params, w, i, o: cayley(w), frequencies=True),
    "bro": Construction(lambda params, w, i, o: bro(w, i, o), frequencies=True),
    "sll": Construction(lambda params, w, i, o: sll(w, params["log_q"]), "residual", linear="aol"),
    "cpl": Construction(lambda params, w, i, o: spectral(w), "residual", linear="spectral"),
    "sandwich": Construction(lambda params, w, i, o: cayley(w), "sandwich", True, "cayley"),
}


def draws(layer: str, inputs: int, outputs: int, side: int = 0) -> dict[str, Init]:
    """The raw parameters of a layer, each as a function of a key; `side` 0 is a dense layer's.

    Rescaled kernels begin as orthogonal matrices at their centre, where rescaling changes nothing;
    of random ones it would leave a third. `bro` reflects half of the directions.
    """
    check("layer", layer, LAYERS)
    if side and side % 2 == 0:
        raise ValueError(f"A kernel of side {side}; want an odd one, which has a centre.")
    sides = (side, side) if side else ()
    shape = {
        "bro": (max(inputs, outputs), max(1, min(inputs, outputs) // 2)),
        "sandwich": (inputs + outputs, outputs),
    }.get(layer, (inputs, outputs))
    zeros = partial(jnp.zeros, dtype=jnp.float32)

    def kernel(key: Array) -> Array:
        if layer in ("bro", "cayley", "sandwich"):
            random = jax.random.normal(key, (*sides, *shape), jnp.float32)
            return random / (max(1, side) * math.sqrt(shape[0]))
        centre = jax.nn.initializers.orthogonal()(key, shape, jnp.float32)
        return zeros((*sides, *shape)).at[(side // 2,) * len(sides)].set(centre)

    made: dict[str, Init] = {"kernel": kernel, "bias": lambda key: zeros(outputs)}
    return made | ({"log_q": lambda key: zeros(outputs)} if layer == "sll" else {})


def apply(
    layer: str,
    params: dict[str, Any],
    x: Array,
    *,
    padding: str = "own",
    activation: str = "relu",
) -> Array:
    """The 1-Lipschitz map `layer` of x, `[B, in]` or `[B, H, W, in]`, with parameters of `draws`.

    `padding` "own" is zeros, and circular for layers by frequency. The dtype of x is kept.

    Raises: ValueError for an unknown layer, padding or activation, and for zeros around a layer
    that is orthogonal on a torus only.
    """
    check("layer", layer, LAYERS)
    kind = LAYERS[layer]
    kernel, b = params["kernel"], params["bias"]
    if kernel.ndim == 4:
        known = ("circular",) if kind.frequencies else ("zeros", "circular")
        padding = known[0] if padding == "own" else padding
        check(f"padding of {layer}", padding, known)
        if kind.frequencies:
            kernel = transform(kernel, x.shape[1:3])
    w = kind.weight(params, kernel, x.shape[-1], b.shape[0])
    if kind.form == "linear":
        return linear(x, w, padding) + b.astype(x.dtype).reshape((1,) * (x.ndim - 1) + b.shape)
    check(f"activation inside of {layer}", activation, MONOTONE)
    act = MONOTONE[activation]
    if kind.form == "sandwich":
        return sandwich(x, w, b, act)
    return residual(x, w, b, act, padding)
