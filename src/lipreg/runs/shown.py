"""What a training run says while it trains: a bar on a terminal, lines elsewhere."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lipreg import parallel
from lipreg.progress import lines
from lipreg.runs import logs
from lipreg.runs.experiment import Experiment

__all__ = ["advancing", "bar", "quiet", "resumed", "say"]


def resumed(experiment: Experiment, workdir: str | Path, step: int) -> str:
    """What a run says that goes on from this step."""
    if step == experiment.steps:
        return f"{workdir} is trained already: step {step} of {step}."
    rows = logs.metrics(workdir)
    there = rows[-1]["step"] if rows else step
    lost = f"; its reports had got to step {there}" if there > step else ""
    return f"{workdir} goes on from step {step} of {experiment.steps}{lost}."


def bar(experiment: Experiment, first: int, name: str, silent: bool) -> Any:
    """A bar on a terminal; elsewhere nothing is drawn, and `advancing` prints it as a line."""
    from tqdm import tqdm  # at the top, every import of this module would pay for it

    size, terminal = experiment.config.train.batch_size, sys.stderr.isatty()
    text = "{desc}: {percentage:.0f} %{postfix}, {rate_fmt}, {remaining} left"
    return tqdm(
        total=experiment.steps * size,
        initial=first * size,
        desc=name,
        unit=" images",
        unit_scale=True,
        bar_format=None if terminal else text,
        file=sys.stderr if terminal else io.StringIO(),
        disable=quiet(silent),
    )


def say(bar: Any, silent: bool) -> Callable[[str], object]:
    """What writes a line above the bar."""
    return (lambda line: None) if quiet(silent) else bar.write


def quiet(silent: bool) -> bool:
    """Whether nothing is shown: as asked for, and in all processes but the first."""
    return silent or not parallel.is_main()


SHOWN = {
    "objective": "objective",
    "validation_error": "validation error",
    "validation_error_pgd": "under PGD",
}


def advancing(bar: Any, experiment: Experiment) -> Callable[[int, dict[str, float]], None]:
    """A function that shows a report's row: on the bar, or as a line where there is no terminal."""
    now_and_then = lines(every=2.0)

    def advance(step: int, row: dict[str, float]) -> None:
        bar.update(step * experiment.config.train.batch_size - bar.n)
        bar.set_postfix({text: row[name] for name, text in SHOWN.items() if name in row})
        if not (bar.disable or sys.stderr.isatty()):
            (now_and_then if step < experiment.steps else lines())(str(bar))

    return advance
