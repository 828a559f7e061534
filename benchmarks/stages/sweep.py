"""Many small networks at once: K runs vmapped in one program against one after the other."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import steps
from timing import all_at_once, behind_a_queue, ratio, table

from stages.clock import Clock, toy
from stages.sound import reason

COUNTS = (1, 4, 16)


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The table after each objective."""
    del folder
    rows: list[dict[str, str]] = []
    for name in ("j2_lip", "j0"):
        if clock.left < 0:
            break
        rows += measured(name)
        yield report(rows)


def measured(name: str) -> list[dict[str, str]]:
    """An objective's lines: seconds of a step of K runs, both ways."""
    counts = COUNTS[:2] if toy() else COUNTS
    batch, side = (4, 8) if toy() else (128, 32)
    steps.start("CNN", batch, side)
    jobs = {k: partial(program, name, k, batch, side) for k in counts}
    built = all_at_once(jobs)
    rows = []
    for k, vmapped in built.items():
        row = {"objective": name, "runs": str(k)}
        if failed := [f for f in (vmapped, built[1]) if isinstance(f, Exception)]:
            rows.append(row | dict.fromkeys(COLUMNS, "") | {COLUMNS[0]: reason(failed[0])})
            continue
        one = built[1]

        def in_turn(calls: int, one: Callable = one, k: int = k) -> None:
            one(calls * k)

        seconds = behind_a_queue({"vmapped": vmapped, "in turn": in_turn}, 5)
        vmapped_s, in_turn_s = seconds["vmapped"], seconds["in turn"]
        values = (
            f"{1e3 * np.median(vmapped_s):.2f}",
            f"{1e3 * np.median(in_turn_s):.2f}",
            ratio(in_turn_s, vmapped_s),
            f"{k * batch / np.median(vmapped_s):,.0f}",
        )
        rows.append(row | dict(zip(COLUMNS, values, strict=True)))
    return rows


COLUMNS = ("vmapped ms", "in turn ms", "in turn / vmapped", "images/s of all")


def program(name: str, k: int, batch: int, side: int) -> Callable[[int], Any]:
    """A step of k runs that differ in their strengths, on batches of their own."""
    apply, state, inputs = steps.start("CNN", batch, side)
    step, strengths = steps.step(apply, name)
    if k > 1:
        step = jax.vmap(step)
        stack = partial(jax.tree.map, lambda a: jnp.stack([jnp.asarray(a)] * k))
        state, strengths, inputs = stack(state), stack(strengths), stack(inputs)
    compiled = jax.jit(step, donate_argnums=0).lower(state, strengths, inputs).compile()
    return steps.repeated(compiled, state, strengths, inputs)


def report(rows: list[dict[str, str]]) -> str:
    return f"""\
# Sweep

K runs of the small CNN on 32 x 32 x 3, batches of 128 each, float32: one program over all of them
(`vmap`, as experiments/sweep.py does on accelerators) against K steps of one program.

{table(rows)}
"""
