"""How long a training step of an experiment takes, and how many steps fit into some seconds."""

import time
from contextlib import suppress

import jax

from lipreg import training
from lipreg.runs.experiment import Experiment, key_for
from lipreg.runs.train import fit_options

__all__ = ["DISPATCH", "fitting", "pace"]

DISPATCH = 16  # steps at a time on accelerators, which a report would cut short


def fitting(seconds: float, step_s: float) -> int:
    """The steps that fit into some seconds, at least one.

    >>> fitting(60.0, 0.25), fitting(1.0, 5.0)
    (240, 1)
    """
    return max(1, int(seconds / step_s))


def pace(experiment: Experiment, seconds: float) -> dict[str, float]:
    """The mean seconds of a training step, `step_s`, and those of the compilation, `compile_s`.

    Measured by training for so many seconds, with few reports: on small networks one takes longer
    than a step. Empty where the first steps are not finite.
    """
    one = experiment.config.train.per_dispatch or (
        1 if jax.default_backend() == "cpu" else DISPATCH
    )
    rough, first = _timed(experiment, one, 0.0)
    if not rough:
        return {}
    every = int(seconds / 4 / rough)
    step_s, more = _timed(experiment, max(one, every - every % one), seconds)
    return {"step_s": step_s or rough, "compile_s": first + more}


def _timed(experiment: Experiment, every: int, seconds: float) -> tuple[float, float]:
    """Seconds of a step and of compilation, by so many seconds and at least three reports; of a
    step 0 where none was finite."""
    config = experiment.config
    compiled: list[float] = []
    spent: list[float] = []
    taken: list[int] = []
    begun, first, programs = time.perf_counter(), 0, 0
    with suppress(training.Diverged):  # in so many seconds at the highest rate
        for state, _ in training.fit(
            experiment.program.step,
            experiment.state,
            config.strengths.to_dict(),
            experiment.training,
            key=key_for(config, "batches"),
            started=compiled.append,
            **dict(fit_options(experiment), every=every),
        ):
            now, step = time.perf_counter(), int(state.step)
            if len(compiled) == programs:  # nothing was compiled for this report
                spent.append(now - begun)
                taken.append(step - first)
            begun, first, programs = now, step, len(compiled)
            if sum(spent) >= seconds and len(spent) >= 3:
                break
    return sum(spent) / max(1, sum(taken)), sum(compiled)
