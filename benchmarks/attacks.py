"""PGD in `lax.fori_loop` against the same steps unrolled, and a whole error curve against one PGD.

    python benchmarks/attacks.py

The programs of a line run in turn within one process (`timing.interleaved`). Compilation is timed
apart, for the three in turn. The lines `flax's own convolution` show what the rule of
lipreg.convolution is for: there XLA:CPU runs gradients in a loop on a slow path.
"""

import json
from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from timing import compiled, interleaved, ratio

from lipreg import attacks, curves, models
from lipreg.models import layers
from lipreg.norms import L2
from lipreg.runs import storage
from lipreg.training import cpu

_REPEATS = flags.DEFINE_integer("repeats", 9, "interleaved repetitions", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 20, "of PGD", lower_bound=1)

# (what it is, model, images a batch, whether its convolutions are the library's)
CASES = (
    ("CNN", "CNN", 128, True),
    ("CNN", "CNN", 32, True),
    ("CNN, flax's own convolution", "CNN", 32, False),
    ("ResNeXt34 (2x32)", "ResNeXt34_2x32", 8, True),
)


def programs(logits_fn: Callable) -> dict[str, Callable]:
    """PGD by a loop, PGD unrolled, and the error at 20 radii by PGD in a loop."""
    attack = partial(attacks.pgd, norm=L2, steps=_STEPS.value)
    radii = jnp.geomspace(0.05, 1.0, 20)
    curve = partial(curves.error_curve, attack=attack, norm=L2)
    return {
        "loop": lambda key, x, y: attack(key, logits_fn, x, y, 0.5),
        "unrolled": lambda key, x, y: attack(key, logits_fn, x, y, 0.5, unroll=True),
        "curve": lambda key, x, y: curve(key, logits_fn, x, y, radii),
    }


def case(name: str, batch: int, library: bool) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Compile seconds and run seconds of the programs on a network as initialised."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((batch, 32, 32, 3), np.float32))
    convolution = layers.conv if library else jax.lax.conv_general_dilated
    with mock.patch.object(layers, "conv", convolution):
        model = models.build(name, classes=10)
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
        logits_fn: Callable = partial(model.apply, variables, train=False)
        y = jnp.argmax(jax.jit(logits_fn)(x), 1)  # a curve would not attack what is wrong
        inputs = (jax.random.key(0), x, y)
        built = {form: compiled(run, *inputs) for form, run in programs(logits_fn).items()}
    turns = {form: partial(program, *inputs) for form, (program, _) in built.items()}
    times = interleaved(turns, _REPEATS.value)
    return {form: seconds for form, (_, seconds) in built.items()}, times


def main(argv: list[str]) -> None:
    cpu.tune()
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    print(f"PGD, {_STEPS.value} steps, l2, 32 x 32 x 3; medians of {_REPEATS.value} in turn\n")
    print("| network | batch | loop, s | loop / unrolled | curve of 20 radii / loop | compile, s |")
    print("|---|---|---|---|---|---|")
    for title, name, batch, library in CASES:
        compile_s, run_s = case(name, batch, library)
        loop = run_s["loop"]
        print(
            f"| {title} | {batch} | {np.median(loop):.3f} | {ratio(loop, run_s['unrolled'])} "
            f"| {ratio(run_s['curve'], loop)} "
            f"| {', '.join(f'{seconds:.1f}' for seconds in compile_s.values())} |",
            flush=True,
        )
    print("\n" + json.dumps(storage.about()))


if __name__ == "__main__":
    app.run(main)
