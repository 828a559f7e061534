"""Data sets: as arrays in memory, streamed from disk, prepared by tensorflow-datasets.

A set that fits in memory is one uint8 array: move it to the device once, index and augment it
inside the compiled step. `streamed` reads what does not fit.
"""

from lipreg.datasets.images import augment, to_unit
from lipreg.datasets.memory import (
    NAMES,
    SPLITS,
    Dataset,
    check,
    check_split,
    load,
    part,
    size,
    training,
    wrong_labels,
)
from lipreg.datasets.mixed import Mixture, mixture

__all__ = [
    "NAMES",
    "SPLITS",
    "Dataset",
    "Mixture",
    "augment",
    "check",
    "check_split",
    "load",
    "mixture",
    "part",
    "size",
    "to_unit",
    "training",
    "wrong_labels",
]
