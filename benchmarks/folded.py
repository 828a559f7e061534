"""PGD on networks that make their weights of parameters: made once (`folded`), or at each call.

    python benchmarks/folded.py --images=100,10

`PGD` is a loop in one program, of which XLA may itself move out what does not change. `calls` is
the gradient of one batch, a program of its own. Both forms take turns.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import Array
from jax.tree_util import Partial
from timing import interleaved, publish, ratio, table

from lipreg import attacks, models
from lipreg.folding import folded
from lipreg.models.adapters import network
from lipreg.models.lipschitz import LAYERS
from lipreg.norms import L2
from lipreg.training import cpu

_IMAGES = flags.DEFINE_list("images", ["100", "10"], "a batch")
_LAYERS = flags.DEFINE_list("layers", list(LAYERS), "of which the networks are made")
_STEPS = flags.DEFINE_integer("steps", 20, "of PGD", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "interleaved repetitions", lower_bound=3)
_OUT = flags.DEFINE_string("out", "results/speed", "folder of the report")

KEY = jax.random.key(0)


def made_of(layer: str, x: Array) -> Partial:
    """A network for CIFAR-10, of the size that results/certified.py trains, as initialised."""
    settings = {"layer": layer, "channels": (32, 64), "hidden": 128}
    net = network(models.build("LipschitzCNN", classes=10, **settings))
    return Partial(lambda params, x: net.apply(params, {}, x, False)[0], net.init(KEY, x)[0])


def attacked(f: Partial, x: Array, y: Array) -> Array:
    return attacks.pgd(KEY, f, x, y, 0.5, norm=L2, steps=_STEPS.value)


def slope(f: Partial, x: Array, y: Array) -> Array:
    return jax.grad(lambda x: jnp.take_along_axis(f(x), y[:, None], 1).sum())(x)


def row(layer: str, images: int) -> dict[str, str]:
    """A line of the table."""
    x = jax.random.uniform(KEY, (images, 32, 32, 3))
    f = made_of(layer, x)
    y = jax.jit(lambda f, x: f(x).argmax(1))(f, x)
    forms = {"each": f, "once": folded(f, x)}
    line = {"layer": layer, "images": str(images)}
    for name, function in {"PGD": attacked, "calls": slope}.items():
        program = jax.jit(function)
        seconds = interleaved(
            {form: partial(program, g, x, y) for form, g in forms.items()}, _REPEATS.value
        )
        line[f"{name}, s"] = f"{np.median(seconds['once']):.3f}"
        line[f"{name}: each / once"] = ratio(seconds["each"], seconds["once"])
    return line


def report(rows: list[dict[str, str]]) -> str:
    """The table with what it says."""
    return f"""\
# Weights made once

LipschitzCNN as initialised, 32 x 32 x 3, channels 32 and 64, 128 hidden units, on noise. "PGD" is
{_STEPS.value} steps in l2 in one program, "calls" one gradient by the images. "once" is
`folding.folded`, "each" makes the weights at each call. Medians of {_REPEATS.value} turns; ratios,
with quartiles, within a turn.

{table(rows)}
"""


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    cpu.tune()
    rows: list[dict[str, str]] = []
    for layer in _LAYERS.value:
        for images in _IMAGES.value:
            rows.append(row(layer, int(images)))
            publish(report(rows), Path(_OUT.value) / "folded.md")
    print(report(rows))


if __name__ == "__main__":
    app.run(main)
