"""Runs: a config made into parts, trained in a folder, read back and measured."""

from lipreg.runs.experiment import Experiment, Loaded, largest, load, measure, prepare
from lipreg.runs.train import train_run, train_vmapped

__all__ = [
    "Experiment",
    "Loaded",
    "largest",
    "load",
    "measure",
    "prepare",
    "train_run",
    "train_vmapped",
]
