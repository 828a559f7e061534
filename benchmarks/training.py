"""The loop around a training step: what data, augmentation and reports add, and the first step.

    python benchmarks/training.py

A step of j0, the cheapest, on one batch takes turns with `training.fit` on the same: rows of a data
set on the device, crops and flips, a report now and then, and 1, 4 or 16 steps to a dispatch. The
first step is timed in processes of its own, from the imports' end: with no compiled program on
disk, and with those that the process before has left.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asked
import jax
import jax.numpy as jnp
import numpy as np
import steps
from absl import app, flags
from timing import interleaved, publish, ratio, table, times

from lipreg import datasets, objectives, training
from lipreg.training import cpu

_FIRST = flags.DEFINE_bool("first", False, "print the seconds to the first step, and stop")

EVERY = {"CNN": 48}  # steps to a report
PER_DISPATCH = (1, 4, 16)
SHARE = 0.03  # of a step: what the pipeline may cost
augment = partial(datasets.augment, flip=True, pad=4)


def alone(network: str, batch: int) -> Callable[[], Any]:
    """As many steps as there are to a report, on one batch."""
    apply, state, inputs = steps.start(network, batch)
    step, strengths = steps.step(apply, "j0")
    program = jax.jit(step, donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)

    def turn() -> Any:
        nonlocal state
        for _ in range(EVERY.get(network, 16)):
            state, parts = program(state, strengths, inputs)
        return parts

    return turn


def by_fit(
    network: str, batch: int, images: datasets.Dataset, per_dispatch: int
) -> Callable[[], Any]:
    """The same by `training.fit`."""
    apply, state, _ = steps.start(network, batch)
    reports = training.fit(
        training.make_step(apply, objectives.j0, steps.SGD, augment=augment),
        state,
        {},
        images,
        batch_size=batch,
        steps=1_000_000,  # more than are asked for
        every=EVERY.get(network, 16),
        key=jax.random.key(0),
        per_dispatch=per_dispatch,
    )
    return partial(next, reports)


def pipeline(batch: int, images: datasets.Dataset) -> Callable[[], Any]:
    """One batch's rows, crops and flips, and nothing else."""
    x, rows = jax.device_put((images.x, np.arange(batch)))
    program = jax.jit(lambda key, x, rows: datasets.to_unit(augment(key, x[rows])))
    return partial(program, jax.random.key(0), x, rows)


def case(network: str, batch: int) -> dict[str, np.ndarray]:
    """Seconds `[repeats]` of one step by each program."""
    every, rng = EVERY.get(network, 16), np.random.default_rng(0)
    size = 6 * every * batch  # an epoch ends with a report
    x = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
    images = datasets.Dataset(x, rng.integers(0, 10, size, np.int32), 10)
    programs = {"alone": alone(network, batch)}
    programs |= {str(n): by_fit(network, batch, images, n) for n in PER_DISPATCH}
    seconds = interleaved(programs | {"data": pipeline(batch, images)}, asked.REPEATS.value)
    return {name: s if name == "data" else s / every for name, s in seconds.items()}


def cells(where: str, seconds: dict[str, np.ndarray]) -> dict[str, str]:
    """A line of the table."""
    share = 100 * times(seconds["data"], seconds["alone"])
    return {
        "network/batch": where,
        "step alone, ms": f"{1000 * np.median(seconds['alone']):.1f}",
        "data and augmentation alone": f"{share:.1f} %",
        **{f"fit, {n} a dispatch": ratio(seconds[str(n)], seconds["alone"]) for n in PER_DISPATCH},
    }


def first_step(network: str, batch: int) -> float:
    """Seconds from weights to the end of the first step, on j2_lip."""
    start = time.perf_counter()
    apply, state, inputs = steps.start(network, batch)
    step, strengths = steps.step(apply, "j2_lip")
    jax.block_until_ready(jax.jit(step)(state, strengths, inputs))
    return time.perf_counter() - start


def cold_and_warm(network: str, batch: int) -> dict[str, str]:
    """A line of the second table: the first step of two processes, one after the other."""
    command = [sys.executable, __file__, f"--cases={network}/{batch}", "--first"]
    row = {"network/batch": f"{network}/{batch}"}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
        for name in ("cold, s", "warm, s"):
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            row[name] = f"{float(done.stdout):.1f}"
    return row


def report(seconds: dict[str, dict[str, np.ndarray]], first: list[dict[str, str]]) -> str:
    """Both tables, and where the pipeline costs too much."""
    shares = {where: times(s["1"], s["alone"]) - 1 for where, s in seconds.items()}
    beyond = [f"- {where}: {100 * s:.1f} % of a step." for where, s in shares.items() if s > SHARE]
    return f"""\
# The loop around a training step

Noise, 32 x 32 x 3; j0, the cheapest step. "fit" is the time of a step in `training.fit`, with rows
from a data set on the device, crops, flips and a report every 48 steps (ResNeXt: 16), over that of
a step alone in the same turn. Medians and quartiles of {asked.REPEATS.value} turns.

{table([cells(where, s) for where, s in seconds.items()])}

## Loops that add more than {100 * SHARE:.0f} % to a step

{chr(10).join(beyond or ["None."])}

## The first step

Of j2_lip, from the imports' end: weights, tracing, compiling, and the step. "warm" finds the
compiled programs of another process in JAX_COMPILATION_CACHE_DIR.

{table(first)}
"""


def main(argv: list[str]) -> None:
    cpu.tune()
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if _FIRST.value:
        print(first_step(*asked.cases()[0]))
        return
    first = [cold_and_warm(*parts) for parts in asked.cases()]
    seconds = {"/".join(map(str, parts)): case(*parts) for parts in asked.cases()}
    text = report(seconds, first)
    publish(text, Path(asked.OUT.value) / "training.md")
    print(text)


if __name__ == "__main__":
    app.run(main)
