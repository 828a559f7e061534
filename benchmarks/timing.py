"""Programs that take turns, the ratios of their times, and how a report is kept.

What counts is a ratio within a turn, since the machine's own speed wanders.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lipreg.runs import storage

LOAD = os.getloadavg()[0]  # of the other programs: at the start


def compiled(run: Callable, *arguments: Any) -> tuple[Any, float]:
    """A program for such arguments, and the seconds that tracing and compiling it takes."""
    start = time.perf_counter()
    program = jax.jit(run).lower(*arguments).compile()
    return program, time.perf_counter() - start


def interleaved(
    programs: Mapping[str, Callable[[], Any]], repeats: int, *, turn_s: float = 0.25
) -> dict[str, np.ndarray]:
    """Seconds per call `[repeats]`, the programs taking turns after one turn to warm up.

    In its turn a program is called until `turn_s` are over, at least once: what the one before has
    left in caches and thread pools then weighs little.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            start, calls = time.perf_counter(), 0
            while not calls or time.perf_counter() - start < turn_s:
                jax.block_until_ready(program())
                calls += 1
            if turn:
                times[name].append((time.perf_counter() - start) / calls)
    return {name: np.array(seconds) for name, seconds in times.items()}


def behind_a_queue(
    programs: Mapping[str, Callable[[int], Any]], repeats: int, *, turn_s: float = 0.25
) -> dict[str, np.ndarray]:
    """Seconds per call `[repeats]` on a device with a queue, the programs taking turns.

    `program(n)` issues n calls and waits once, as training does between two reports. A turn makes
    as many calls as fit in `turn_s`, as estimated from an earlier one.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    calls = dict.fromkeys(programs, 1)
    for turn in range(-2, repeats):  # one to warm up, one to count
        for name, program in programs.items():
            start = time.perf_counter()
            program(calls[name])
            seconds = (time.perf_counter() - start) / calls[name]
            if turn == -1:
                calls[name] = max(1, round(turn_s / seconds))
            elif turn >= 0:
                times[name].append(seconds)
    return {name: np.array(seconds) for name, seconds in times.items()}


def all_at_once(jobs: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """What each job returns, or its exception; XLA compiles several programs at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
    return {name: future.exception() or future.result() for name, future in futures.items()}


def times(above: np.ndarray, below: np.ndarray) -> float:
    """The ratio within a turn: its median over the turns."""
    return float(np.median(above / below))


def ratio(above: np.ndarray, below: np.ndarray) -> str:
    """The same with its quartiles."""
    low, high = np.quantile(above / below, (0.25, 0.75))
    return f"{times(above, below):.2f} ({low:.2f} to {high:.2f})"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows that have the same columns, as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(text: str, path: Path, **versions: str) -> None:
    """Keep a report, with what stands beside every number: command, commit, versions, hardware."""
    about: dict[str, Any] = storage.about() | {"load before": LOAD}
    about["versions"] |= versions
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n{json.dumps(about)}\n")
