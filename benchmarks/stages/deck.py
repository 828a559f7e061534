"""The rows of 1810.00953's table, trained and attacked by the launchers within the time left.

J0, J1, J2 and J2-Lip, each with and without a tanh on the logits: ResNeXt34 (2x32) on CIFAR-10 in
bfloat16, with a cosine schedule over as many steps as fit. Each row has a process, all at once on
the same card, so that some compile while others train. Then every row is measured by PGD on 1,000
test images and by AutoAttack on 200. Without an accelerator: digits and the small CNN.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import steps
from absl import flags
from timing import behind_a_queue, table

from lipreg import files
from lipreg.runs import compare
from lipreg.training import cost
from stages import price
from stages.clock import Clock, toy

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ROWS = tuple(f"{name}{head}" for head in ("", "_tanh") for name in ("j0", "j1", "j2", "j2_lip"))
TRAIN, MEASURE = 0.55, 0.85  # shares of the time at which training and measuring should end
EPOCH_STEPS = 45_000 // 128
START_S = 60.0  # to import, decode images and compile a row


class Size(NamedTuple):
    """What is trained and on how many images it is measured."""

    rows: tuple[str, ...]
    config: str
    overrides: tuple[str, ...]
    examples: int
    attacked: int


def size() -> Size:
    if toy():
        options = ("train.epochs=1", "model.settings.channels=(4,8)")
        return Size(ROWS[:2], "digits", options, 20, 4)
    options = ("train.schedule=cosine", "model.settings.dtype=bfloat16")
    return Size(tuple(flags.FLAGS.rows) or ROWS, "cifar10", options, 1000, 200)


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The report after training, after PGD and after AutoAttack."""
    total_s, made = clock.left, size()
    options, about = list(made.overrides), "one epoch of digits, small CNNs"
    if not toy():
        epochs, steps = flags.FLAGS.epochs, 0
        if not epochs:
            steps = fitting(TRAIN * total_s - START_S)
            epochs = round(steps / EPOCH_STEPS, 1)
        options.append(f"train.steps={steps}" if steps else f"train.epochs={epochs}")
        about = f"{epochs} epochs of {made.config}, ResNeXt34 (2x32), bfloat16, cosine schedule"
    places = {row: folder / "runs" / row for row in made.rows}
    lines = [f"# The deck\n\n{len(made.rows)} rows at once on one device: {about}. One seed.\n"]

    def commands(launcher: str, *arguments: str) -> dict[str, list[str]]:
        return {row: [launcher, f"--run={run}", *arguments] for row, run in places.items()}

    config = f"--config={EXPERIMENTS}/configs/{made.config}.py"
    fields = [f"--config.{option}" for option in options]
    training = {
        row: ["train", f"{config}:{row}", f"--workdir={run}", *fields]
        for row, run in places.items()
    }
    start = time.monotonic()
    lines.append(said("Training", at_once(training, clock.left), start))
    yield "\n".join(lines)
    start = time.monotonic()
    images = f"--examples={made.examples}"
    lines.append(said("PGD", at_once(commands("evaluate", images), clock.left), start))
    evaluated = [str(run) for run in places.values() if record(run, "pgd")]
    if evaluated:
        argv = [*command("table"), *evaluated, f"--out={folder}/table"]
        made_table = subprocess.run(argv, capture_output=True, text=True)
        lines.append(made_table.stdout or made_table.stderr.strip())
    yield "\n".join(lines)
    start = time.monotonic()
    chosen = ("--protocol=autoattack", f"--examples={made.attacked}")
    lines.append(said("AutoAttack", at_once(commands("evaluate", *chosen), clock.left), start))
    done = {row: errors(run) for row, run in places.items()}
    if rows := [{"row": row} | cells for row, cells in done.items() if cells]:
        lines.append(f"% error under AutoAttack, {made.attacked} test images:\n\n{table(rows)}\n")
    yield "\n".join(lines)


def record(run: Path, protocol: str) -> Path | None:
    """The file of a run's evaluation by a protocol, where there is one."""
    return next(run.glob(f"evaluations/{protocol}_test_*/evaluation.json"), None)


def errors(run: Path) -> dict[str, str]:
    """A run's AutoAttack errors by norm and radius, and how many masking checks do not pass."""
    path = record(run, "autoattack")
    if not path:
        return {}
    norms = files.read(path)["norms"]
    cells = {
        f"{norm} {float(eps):.3g}": f"{100 * list(after.values())[-1]:.3g}"
        for norm, measured in norms.items()
        for eps, after in measured["errors"].items()
    }
    checks = [check for measured in norms.values() for check in measured["checks"]]
    return cells | {"masking flags": str(sum(check["status"] != "pass" for check in checks))}


def fitting(seconds: float) -> int:
    """How many steps of all rows fit, by the measured plain step and the objectives' prices."""
    steps.start("ResNeXt34_2x32", 128)
    built = price.build(price.Case("ResNeXt34_2x32", 128, "bf16"), "j0")
    step = float(np.median(behind_a_queue({"j0": built.run}, 3)["j0"]))
    prices = [
        cost.price(row.removesuffix("_tanh"), "" if row.startswith("j0") else "attack", 128)
        for row in size().rows
    ]
    return compare.fitting(seconds, step * sum(prices) / 3)


def command(launcher: str) -> list[str]:
    return [sys.executable, str(EXPERIMENTS / f"{launcher}.py")]


def at_once(commands: Mapping[str, Sequence[str]], seconds: float) -> dict[str, str]:
    """Run launchers side by side for at most `seconds`; the messages of those that fail or stop."""
    share = 0.9 / len(commands)
    env = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}"}
    end = time.monotonic() + seconds
    processes = {
        row: subprocess.Popen(
            [*command(launcher), *rest, "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for row, (launcher, *rest) in commands.items()
    }
    failures = {}
    try:
        for row, process in processes.items():
            try:
                _, words = process.communicate(timeout=max(end - time.monotonic(), 0.1))
                if process.returncode:
                    failures[row] = (words.strip().splitlines() or ["no word"])[-1][:200]
            except subprocess.TimeoutExpired:
                failures[row] = "no time left"
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return failures


def said(what: str, failures: Mapping[str, str], start: float) -> str:
    seconds = time.monotonic() - start
    sentences = [f"{what}: {seconds:.0f} s."]
    sentences += [f"{row}: {why}." for row, why in failures.items()]
    return "\n".join(sentences) + "\n"
