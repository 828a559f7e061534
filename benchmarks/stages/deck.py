"""The rows of 1810.00953's table, trained and attacked by the launchers within the time left.

J0, J1, J2 and J2-Lip, each with and without a tanh on the logits: ResNeXt34 (2x32) on CIFAR-10 in
bfloat16, with a cosine schedule over as many steps as fit. Each row has a process and a card, which
it shares with others where there are fewer cards, so that some compile while others train, and is
then measured by PGD on 1,000 test images and, where there is time, by AutoAttack on 200. Of each
network the first row is attacked first, by all attacks at once: it compiles for the others. Without
an accelerator: digits and the small CNN.
"""

import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import steps
from absl import flags
from timing import behind_a_queue, table

from lipreg import files
from lipreg.doors import called
from lipreg.runs import compare, storage
from lipreg.runs.config import Config, options
from lipreg.training import cost
from stages import price
from stages.clock import Clock, shared, toy

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ROWS = tuple(f"{name}{head}" for head in ("", "_tanh") for name in ("j0", "j1", "j2", "j2_lip"))
TRAIN = 0.5  # the share of the time at which training should end
BATCH = 128
EPOCH_STEPS = 45_000 // BATCH
START_S = 60.0  # to import, decode images and compile a row
NORMS = ("l2", "linf")
PARTS = ("train", "pgd", *(f"autoattack {norm}" for norm in NORMS))


class Row(NamedTuple):
    """A row of a config file, and fields of its own: "j2/options.method=penalty"."""

    name: str
    fields: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> "Row":
        name, *fields = text.split("/")
        return cls(name, tuple(fields))

    @property
    def label(self) -> str:
        """What it is called, of characters for a folder: "j2_penalty"."""
        return "_".join([self.name, *(field.rpartition("=")[2] for field in self.fields)])

    @property
    def network(self) -> tuple[Any, ...]:
        """What it shares with the rows whose attacks are the same programs."""
        own = (field for field in self.fields if field.startswith("model."))
        return self.name.endswith("_tanh"), *sorted(own)

    @property
    def price(self) -> float:
        """Forward units of a training step."""
        objective = self.name.removesuffix("_tanh")
        given = {f"options.{name}": value for name, value in options(objective).items()}
        given |= dict(field.split("=", 1) for field in self.fields)
        method, top_k = given.get("options.method", ""), given.get("options.top_k", 1)
        return cost.price(objective, called(method)[0], BATCH, top_k=int(top_k))


class Size(NamedTuple):
    """What is trained and on how many images it is measured."""

    rows: tuple[Row, ...]
    config: str
    overrides: tuple[str, ...]
    examples: int
    attacked: int


def size() -> Size:
    rows = tuple(map(Row.read, flags.FLAGS.rows or ROWS))
    if toy():
        options = ("train.epochs=1", "model.settings.channels=(4,8)")
        return Size(rows[:2], "digits", options, 20, 4)
    options = (
        *("train.schedule=cosine", "train.per_dispatch=1", "model.settings.dtype=bfloat16"),
        *("report.validate_every_epochs=5", "evaluation.batch_size=800"),
        *flags.FLAGS.field,
    )
    return Size(rows, "cifar10", options, 1000, 200)


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The report after each part of a row."""
    shared()
    total_s, made = clock.left, size()
    options, about = list(made.overrides), "one epoch of digits, small CNNs"
    if not toy():
        epochs, steps = flags.FLAGS.epochs, 0
        if not epochs:
            steps = begun(folder) or fitting(TRAIN * total_s - START_S)
            epochs = round(steps / EPOCH_STEPS, 1)
            if steps < EPOCH_STEPS and not begun(folder):
                raise RuntimeError(
                    f"{total_s:.0f} s are {epochs} epochs a row; give it more: --stages=deck"
                )
        options.append(f"train.steps={steps}" if steps else f"train.epochs={epochs}")
        about = f"{epochs} epochs of {made.config}, ResNeXt34 (2x32), {', '.join(options)}"
    heading = f"# The deck\n\n{len(made.rows)} rows at once: {about}. One seed.\n"
    places = {row: folder / "runs" / row.label for row in made.rows}
    done: dict[Row, dict[str, str]] = {row: {} for row in made.rows}
    drawn, end = "", Clock(clock.end - min(20.0, clock.left / 10))  # the rest is for the table
    for row, part, how in at_once(places, made, options, end):
        done[row][part] = how
        if part == "pgd" and all(part in parts for parts in done.values()):
            drawn = tabled(places.values(), folder)
        yield "\n".join([heading, *ended(done), drawn, *attacked(places, made)])


def begun(folder: Path) -> int:
    """The steps of an earlier call's runs, which this one goes on with; 0 where there are none."""
    for path in sorted(folder.glob("runs/*/config.json")):
        config: Config = storage.read_config(path.parent)
        return config.train.steps
    return 0


def at_once(
    places: Mapping[Row, Path], made: Size, options: Sequence[str], clock: Clock
) -> Iterator[tuple[Row, str, str]]:
    """Train and measure all rows: (row, part, its seconds or why it failed), as they end."""
    results: queue.Queue[tuple[Row, str, str]] = queue.Queue()
    seen, beside = cards() or [""], share(len(places))
    env = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / beside:.3f}"}
    own = {row: {"CUDA_VISIBLE_DEVICES": card} for row, card in zip(places, cycle(seen)) if card}
    first = {row.network: row for row in reversed(list(places))}
    compiled = {(row, part): threading.Event() for row in first.values() for part in PARTS}

    def commands(row: Row, place: Path) -> dict[str, list[str]]:
        config = f"--config={EXPERIMENTS}/configs/{made.config}.py:{row.name}"
        fields = [f"--config.{option}" for option in (*options, *row.fields)]
        evaluate = ["evaluate", f"--run={place}"]
        chosen = ["--protocol=autoattack", f"--examples={made.attacked}"]
        return {
            "train": ["train", config, f"--workdir={place}", *fields],
            "pgd": [*evaluate, f"--examples={made.examples}"],
            **{f"autoattack {n}": [*evaluate, *chosen, f"--norms={n}"] for n in NORMS},
        }

    def run(row: Row, part: str, command: Sequence[str]) -> None:
        start = time.monotonic()
        failure = launched(command, clock, env | own.get(row, {}))
        results.put((row, part, failure or f"{time.monotonic() - start:.0f}"))

    def chain(row: Row, place: Path) -> None:
        ahead = first[row.network]
        train, *attacks = commands(row, place).items()
        with ExitStack() as stack:
            for part, _ in attacks if row == ahead else ():
                stack.callback(compiled[row, part].set)  # whatever happens
            run(row, *train)
            if row == ahead:
                pool = stack.enter_context(ThreadPoolExecutor(len(attacks)))
                for part, command in attacks:
                    one = pool.submit(run, row, part, command)
                    one.add_done_callback(lambda _, part=part: compiled[row, part].set())
            else:
                for part, command in attacks:
                    compiled[ahead, part].wait()  # its programs are then kept
                    run(row, part, command)

    with ThreadPoolExecutor(len(places)) as pool:
        chains = [pool.submit(chain, row, place) for row, place in places.items()]
        while not (all(one.done() for one in chains) and results.empty()):
            with suppress(queue.Empty):
                yield results.get(timeout=0.5)
    for one in chains:
        one.result()  # or the exception that ended it


def cards() -> list[str]:
    """The GPUs, as CUDA_VISIBLE_DEVICES calls them; none on CPU."""
    if jax.default_backend() != "gpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [f"{n}" for n in range(jax.local_device_count())]


def share(rows: int) -> int:
    """How many of so many rows are on the same card."""
    return math.ceil(rows / max(1, len(cards())))


def launched(command: Sequence[str], clock: Clock, env: Mapping[str, str]) -> str:
    """Run a launcher while there is time; why it failed, or nothing."""
    launcher, *rest = command
    argv = [sys.executable, str(EXPERIMENTS / f"{launcher}.py"), *rest, "--silent"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": env}
    try:
        done = subprocess.run(argv, timeout=max(clock.left, 0.1), **options)
    except subprocess.TimeoutExpired:
        return "no time left"
    return (done.stderr.strip().splitlines() or ["no word"])[-1][:200] if done.returncode else ""


def ended(done: Mapping[Row, Mapping[str, str]]) -> list[str]:
    """The seconds of each part of a row, and why a part failed."""
    failures = [
        f"{row.label}, {part}: {how}."
        for row, parts in done.items()
        for part, how in parts.items()
        if not how.isdigit()
    ]
    cells = lambda parts: {part: how if how.isdigit() else "" for part, how in parts.items()}
    rows = [{"row": row.label} | dict.fromkeys(PARTS, "") | cells(done[row]) for row in done]
    return [f"Seconds, all beside each other:\n\n{table(rows)}\n", *failures]


def tabled(places: Iterable[Path], folder: Path) -> str:
    """The table of the PGD distances, and its pictures in `folder`."""
    runs = [str(run) for run in places if record(run, "pgd_test_*")]
    argv = [sys.executable, str(EXPERIMENTS / "table.py"), *runs, f"--out={folder}/table"]
    made = subprocess.run(argv, capture_output=True, text=True)
    return made.stdout or made.stderr.strip()


def record(run: Path, protocol: str) -> Path | None:
    """The file of a run's evaluation by a protocol, where there is one."""
    return next(run.glob(f"evaluations/{protocol}/evaluation.json"), None)


def attacked(places: Mapping[Row, Path], made: Size) -> list[str]:
    """The table of the AutoAttack errors by norm and radius, with the masking checks that fail."""
    rows = [{"row": row.label} | cells for row, run in places.items() if (cells := errors(run))]
    columns = dict.fromkeys(name for row in rows for name in row)
    lines = [dict.fromkeys(columns, "") | row for row in rows]
    heading = f"% error under AutoAttack, {made.attacked} test images"
    return [f"{heading}:\n\n{table(lines)}\n"] if rows else []


def errors(run: Path) -> dict[str, str]:
    """A run's AutoAttack errors by norm and radius, and how many masking checks do not pass."""
    cells = {}
    for norm in NORMS:
        if path := record(run, f"autoattack_test_*_{norm}"):
            measured = files.read(path)["norms"][norm]
            for eps, after in measured["errors"].items():
                cells[f"{norm} {float(eps):.3g}"] = f"{100 * list(after.values())[-1]:.3g}"
            flags = sum(check["status"] != "pass" for check in measured["checks"])
            cells[f"{norm} masking flags"] = str(flags)
    return cells


def fitting(seconds: float) -> int:
    """How many steps fit on the card with the dearest rows, by their prices and a plain step's
    measured time."""
    steps.start("ResNeXt34_2x32", BATCH)
    built = price.build(price.Case("ResNeXt34_2x32", BATCH, "bf16"), "j0")
    step = float(np.median(behind_a_queue({"j0": built.run}, 3)["j0"]))
    prices = sorted((row.price for row in size().rows), reverse=True)
    return compare.fitting(seconds, step * sum(prices[: share(len(prices))]) / 3)
