"""A process as `cpu.tune` leaves it, against one as it was found: the same training steps.

    python benchmarks/tuned.py --cases=CNN/32,CNN/128

Each form is a process of its own, and the processes take turns. Page faults are those of one step,
when it has run some ten times.
"""

import multiprocessing
import os
import resource
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import asked
import jax
import numpy as np
import steps
from absl import app
from timing import interleaved, publish, ratio, table

from lipreg.training import cpu

# Whether `tune` is called, and with which environment.
FORMS: dict[str, tuple[bool, dict[str, str]]] = {
    "untuned": (False, {}),
    "Eigen": (True, {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "1"}),
    "tuned": (True, {}),
}


def usage() -> tuple[int, float]:
    """Page faults so far, and the peak of the memory in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt, used.ru_maxrss / 2**10


def work(pipe: Connection, form: str, network: str, batch: int, name: str) -> None:
    """A step for every message; the answer is the page faults it took and the peak so far."""
    tuned, environment = FORMS[form]
    os.environ |= environment
    if tuned:
        cpu.tune()
    apply, state, inputs = steps.start(network, batch)
    step, strengths = steps.step(apply, name)
    program = jax.jit(step).lower(state, strengths, inputs).compile()
    pipe.send(None)
    while pipe.recv():
        before, _ = usage()
        jax.block_until_ready(program(state, strengths, inputs))
        after, peak = usage()
        pipe.send((after - before, peak))


def started(form: str, *case: Any) -> Callable[[bool], tuple[int, float]]:
    """A process that is ready, as a function that has it make a step (or none more)."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    spawn.Process(target=work, args=(theirs, form, *case), daemon=True).start()
    ours.recv()

    def ask(go_on: bool) -> Any:
        ours.send(go_on)
        return ours.recv() if go_on else None

    return ask


def row(network: str, batch: int, name: str) -> dict[str, str]:
    """A line of the table."""
    forms = {form: started(form, network, batch, name) for form in FORMS}
    programs = {form: partial(ask, True) for form, ask in forms.items()}
    seconds = interleaved(programs, asked.REPEATS.value)
    last = {form: ask(True) for form, ask in forms.items()}
    for ask in forms.values():
        ask(False)
    return {
        "network/batch": f"{network}/{batch}",
        "objective": name,
        **{f"{form}, s": f"{np.median(seconds[form]):.4f}" for form in FORMS},
        "Eigen / untuned": ratio(seconds["Eigen"], seconds["untuned"]),
        "tuned / Eigen": ratio(seconds["tuned"], seconds["Eigen"]),
        "tuned / untuned": ratio(seconds["tuned"], seconds["untuned"]),
        "page faults": " / ".join(f"{faults:,}" for faults, _ in last.values()),
        "peak MiB": " / ".join(f"{peak:.0f}" for _, peak in last.values()),
    }


def report(rows: list[dict[str, str]]) -> str:
    """The table with what it says."""
    return f"""\
# What a process is set to

Training steps on noise, 32 x 32 x 3. "untuned" is a process that nothing has set, "Eigen" one whose
convolutions `cpu.tune` has taken from YNNPACK, "tuned" one whose memory stays mapped, too:
all that `tune` does. Medians of {asked.REPEATS.value} turns; ratios, with quartiles, within a turn.

{table(rows)}
"""


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    rows: list[dict[str, str]] = []
    for network, batch in asked.cases():
        for name in steps.OBJECTIVES:
            if asked.wanted(name):
                rows.append(row(network, batch, name))
                publish(report(rows), Path(asked.OUT.value) / "tuned.md")
    print(report(rows))


if __name__ == "__main__":
    app.run(main)
