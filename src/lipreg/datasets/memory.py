"""A data set as two arrays in memory.

`digits` comes with scikit-learn; others are read from a folder that tensorflow-datasets prepared as
array_record, without TensorFlow and without a download; an outsider's own are four arrays.
"""

import os
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from lipreg.datasets import arrays, prepared

__all__ = [
    "NAMES",
    "SPLITS",
    "Dataset",
    "check",
    "check_split",
    "load",
    "part",
    "size",
    "training",
    "wrong_labels",
]

NAMES = ("cifar10", "cifar100", "digits", "mnist")  # those that the experiments have configs for
SPLITS = ("train", "validation", "test")


class Dataset(NamedTuple):
    """Images, or vectors of features, and their classes.

    Attributes:
      x: uint8 `[N, H, W, C]`; an outsider's may also be float32, and `[N, D]`.
      y: int32 `[N]`, in 0 … classes - 1.
      classes: the number of classes.
      names: what they are called, where that is known.
    """

    x: np.ndarray
    y: np.ndarray
    classes: int
    names: tuple[str, ...] = ()


def check(dataset: Dataset, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
    """ValueError for arrays that are no data set: lengths that differ, classes that there are not,
    pixels that are not finite, or that are 0 to 255 as floats and beyond their `bounds`.
    """
    x, y, classes, _ = dataset
    if len(x) != len(y):
        raise ValueError(f"A data set of {len(x)} x and {len(y)} y; each example has one class.")
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise ValueError(f"y is {y.dtype}{list(y.shape)}; want classes, integers [N].")
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"y has classes from {y.min()} to {y.max()}; of {classes} there are 0 to {classes - 1}."
        )
    if x.dtype == np.uint8 or not x.size:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"x is {x.dtype}; want uint8, 0 to 255, or floating.")
    least, most = float(x.min()), float(x.max())
    if not np.isfinite([least, most]).all():
        raise ValueError("x has values that are not finite (nan or inf).")
    if x.ndim == 4 and max(1, bounds[1]) < most <= 255 and least >= 0 and (x == np.round(x)).all():
        raise ValueError(
            f"x is {x.dtype} with whole numbers up to {most:g}, which look like pixels of 0 to "
            "255: hand them in as uint8, or divide them by 255."
        )


def load(
    name: str,
    split: str,
    *,
    dir: str | os.PathLike[str] = "",
    seed: int = 0,
    validation: float = 0.1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Dataset:
    """One split of a data set; `train` and `validation` partition the official training split.

    `name` is digits, any set of TFDS with images of one size, a file of arrays, `my_data.npz`, or
    `package.module:name`, a function that returns them (`lipreg.datasets.arrays`). `validation` is
    the fraction held out, drawn by `seed`, at least one example. `test` is the official test split
    and depends on neither; digits has none, so 360 of its 1797 images, the same for every seed, are
    its own. `dir` is the folder of prepared TFDS data sets; "" stands for the environment variable
    TFDS_DATA_DIR, then for TFDS's own default. `bounds` are those of floating x. The arrays may be
    read-only.

    Raises: ValueError for an unknown name or split, for a fraction outside (0, 1), for malformed
    arrays, and, with the command to run, for a data set that is not prepared.

    >>> load("digits", "test").x.shape
    (360, 8, 8, 1)
    """
    check_split(split, validation)
    official = "test" if split == "test" else "train"
    if arrays.is_outside(name):
        dataset = _outside(name, official, os.fspath(dir), bounds)
    elif bounds != (0, 1):
        raise ValueError(f"bounds = {bounds}; the images of {name} are within (0.0, 1.0).")
    else:
        dataset = _official(name, official, prepared.folder(dir))
    if split == "test":
        return dataset
    rows = part(len(dataset.y), split, seed=seed, validation=validation)
    return dataset._replace(x=dataset.x[rows], y=dataset.y[rows])


def _outside(name: str, split: str, dir: str, bounds: tuple[float, float]) -> Dataset:
    given = arrays.load(name, dir=dir, bounds=bounds)
    names, y = given["names"], given[f"y_{split}"]
    classes = 1 + max(int(given[f"y_{which}"].max()) for which in ("train", "test"))
    return Dataset(given[f"x_{split}"], y, len(names) or classes, names)


def training(
    name: str, *, dir: str | os.PathLike[str] = "", bounds: tuple[float, float] = (0.0, 1.0)
) -> Dataset:
    """All examples of the official training split, with names, errors and options as for `load`.

    Of an outsider's arrays, those of the test split need not be there.
    """
    if not arrays.is_outside(name):
        return _official(name, "train", prepared.folder(dir))
    x, y = arrays.training(name, dir=os.fspath(dir), bounds=bounds)
    return Dataset(x, y, 1 + int(y.max()))


def check_split(split: str, validation: float) -> None:
    """ValueError for an unknown split, and for a fraction to hold out that is not in (0, 1)."""
    if split not in SPLITS:
        raise ValueError(f"No split {split!r}; choose one of {', '.join(SPLITS)}.")
    if not 0 < validation < 1:
        raise ValueError(f"validation = {validation}; it must be greater than 0 and less than 1.")


def part(n: int, split: str, *, seed: int, validation: float) -> np.ndarray:
    """The rows of an official training split of n that are in `train` or `validation`, shuffled.

    >>> len(part(20, "train", seed=0, validation=0.1))
    18
    """
    rows = np.random.default_rng(seed).permutation(n)
    held_out = int(np.clip(round(validation * n), 1, max(n - 1, 1)))
    return rows[:held_out] if split == "validation" else rows[held_out:]


# Decoding a split takes seconds; `train` and `validation` share one.
@lru_cache(maxsize=2)
def _official(name: str, split: str, dir: str) -> Dataset:
    dataset = _digits(split) if name == "digits" else _prepared(name, split, dir)
    dataset.x.flags.writeable = dataset.y.flags.writeable = False  # the cache's own
    return dataset


def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits  # a second of import that other sets need not pay

    bunch: Any = load_digits()
    x = np.round(bunch.images[..., None] * (255 / 16)).astype(np.uint8)  # 0 … 16 in the file
    rows = np.random.default_rng(0).permutation(len(x))
    rows = rows[:360] if split == "test" else rows[360:]
    return Dataset(x[rows], bunch.target[rows].astype(np.int32), 10)


def _prepared(name: str, split: str, dir: str) -> Dataset:
    with prepared.quiet():
        source, features, _ = prepared.source(name, split, dir)
        shape, dtype = features["image"].shape, features["image"].np_dtype
        if None in shape or dtype != np.uint8:
            raise ValueError(
                f"{name} has images of {np.dtype(dtype)}{list(shape)}, and in memory are those of "
                "uint8 and one size; set config.data.side, in pixels, to stream it."
            )
        x = np.empty((len(source), *shape), np.uint8)
        y = np.empty(len(source), np.int32)
        for start in range(0, len(y), 1024):  # a record at a time is slower, all at once is big
            rows = range(start, min(start + 1024, len(y)))
            for row, record in zip(rows, source.__getitems__(rows), strict=True):
                x[row], y[row] = record["image"], record["label"]
    names = tuple(features["label"].names)
    return Dataset(x, y, len(names), names)


def wrong_labels(dataset: Dataset, fraction: float, *, seed: int = 0) -> Dataset:
    """The data set with this fraction of its labels replaced by another class, all equally likely.

    >>> digits = load("digits", "test")
    >>> int((wrong_labels(digits, 0.25).y != digits.y).sum())
    90
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction}; of the labels, it must be between 0 and 1.")
    rng, y = np.random.default_rng(seed), dataset.y.copy()
    rows = rng.permutation(len(y))[: round(fraction * len(y))]
    y[rows] = (y[rows] + rng.integers(1, dataset.classes, len(rows), y.dtype)) % dataset.classes
    return dataset._replace(y=y)


def size(dataset: Any) -> int:
    """The examples of an epoch: those of a `Dataset`, or the len of a `Mixture` or `Stream`."""
    return len(dataset.y) if isinstance(dataset, Dataset) else len(dataset)
