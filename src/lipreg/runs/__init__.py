"""Runs: a config made into parts, trained in a folder, read back and measured."""

from lipreg.runs.experiment import (
    Experiment,
    Loaded,
    largest,
    load,
    measure,
    prepare,
    train_run,
    train_together,
)

__all__ = [
    "Experiment",
    "Loaded",
    "largest",
    "load",
    "measure",
    "prepare",
    "train_run",
    "train_together",
]
