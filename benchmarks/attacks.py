"""PGD in `lax.fori_loop` against the same steps unrolled: `python benchmarks/attacks.py`.

The two programs run in turn within one process; what counts is the ratio of their medians, since
the machine's own speed wanders. Compilation is timed apart. The lines `flax's own convolution` show
what the rule of lipreg.convolution is for: there XLA:CPU runs gradients in a loop on a slow path.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from lipreg import attacks, models, runs
from lipreg.norms import L2

_REPEATS = flags.DEFINE_integer("repeats", 9, "interleaved repetitions", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 20, "of PGD", lower_bound=1)

# (what it is, model, images a batch, whether its convolutions are the library's)
CASES = (
    ("CNN", "CNN", 128, True),
    ("CNN", "CNN", 32, True),
    ("CNN, flax's own convolution", "CNN", 32, False),
    ("ResNeXt34 (2x32)", "ResNeXt34_2x32", 8, True),
)


def compiled(logits_fn: Callable, x: Any, y: Any, unroll: bool) -> tuple[Callable, float]:
    """The attack as a program, and the seconds that its compilation takes."""
    attack = partial(attacks.pgd, norm=L2, steps=_STEPS.value, unroll=unroll)
    run = lambda key, x, y: attack(key, logits_fn, x, y, 0.5)
    start = time.perf_counter()
    program = jax.jit(run).lower(jax.random.key(0), x, y).compile()
    return partial(program, jax.random.key(0), x, y), time.perf_counter() - start


def interleaved(programs: dict[str, Callable], repeats: int) -> dict[str, np.ndarray]:
    """Seconds per call `[repeats]`, the programs taking turns after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def case(name: str, batch: int, library: bool) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Compile seconds, and run seconds, of both forms of the attack on a network as initialised."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((batch, 32, 32, 3), np.float32))
    y = jnp.asarray(rng.integers(0, 10, batch, np.int32))
    convolution = models.conv if library else jax.lax.conv_general_dilated
    with mock.patch.object(models, "conv", convolution):
        model = models.build(name, classes=10)
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
        logits_fn = partial(model.apply, variables, train=False)
        forms = {"loop": 1, "unrolled": True}
        programs = {form: compiled(logits_fn, x, y, unroll) for form, unroll in forms.items()}
    times = interleaved({form: program for form, (program, _) in programs.items()}, _REPEATS.value)
    return {form: seconds for form, (_, seconds) in programs.items()}, times


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    print(f"PGD, {_STEPS.value} steps, l2, 32 x 32 x 3; medians of {_REPEATS.value} in turn\n")
    print("| network | batch | loop, s | unrolled, s | loop / unrolled | compile, s |")
    print("|---|---|---|---|---|---|")
    for title, name, batch, library in CASES:
        compile_s, run_s = case(name, batch, library)
        loop, unrolled = np.median(run_s["loop"]), np.median(run_s["unrolled"])
        # The spread of the ratio: quartiles over the turns.
        low, high = np.quantile(run_s["loop"] / run_s["unrolled"], (0.25, 0.75))
        print(
            f"| {title} | {batch} | {loop:.3f} | {unrolled:.3f} "
            f"| {loop / unrolled:.2f} ({low:.2f} to {high:.2f}) "
            f"| {compile_s['loop']:.1f} and {compile_s['unrolled']:.1f} |",
            flush=True,
        )
    print("\n" + json.dumps(runs.about()))


if __name__ == "__main__":
    app.run(main)
