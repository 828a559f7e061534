"""Runs: a config made into parts, trained in a folder, read back."""

from lipreg.runs.experiment import Experiment, Loaded, load, prepare
from lipreg.runs.train import train_run, train_vmapped

__all__ = [
    "Experiment",
    "Loaded",
    "load",
    "prepare",
    "train_run",
    "train_vmapped",
]
