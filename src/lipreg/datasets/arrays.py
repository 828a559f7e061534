"""An outsider's data: four arrays from an `.npz` file or from a function of theirs.

    x_train, y_train, x_test, y_test

x are images, uint8 or floating, `[N, H, W, C]` or `[N, H, W]`, or vectors of features `[N, D]`;
floating x lie within `bounds`, by default (0, 1). y are the classes, integers from 0 on; `names`
may say what they are called, for pictures.
"""

import inspect
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lipreg.doors import named, told

__all__ = ["NAMES", "is_outside", "load", "training"]

NAMES = ("x_train", "y_train", "x_test", "y_test")
GENERATED = ("image", "label")  # in the files that 2302.04638 published


def is_outside(name: str) -> bool:
    """Whether it names a file or a function, and not a set: TFDS writes `mnist:3.0.1`."""
    return name.endswith(".npz") or name.partition(":")[2].isidentifier()


def load(name: str, *, dir: str = "", bounds: tuple[float, float] = (0.0, 1.0)) -> dict[str, Any]:
    """The four arrays by name, checked: x uint8 or float32, read-only, and y int32; and `names`.

    `name` is a file, `my_data.npz`, in `dir` where its path is relative, or a function without
    arguments, `package.module:name`, that returns a tuple or a dict of the four. It is read once.

    Raises: ValueError, in one line, for what is missing or not as above.
    """
    return _checked(name, *_place(name, dir), _finite(bounds))


def training(
    name: str, *, dir: str = "", bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """x_train and y_train alone, checked as by `load`; a file may call them image and label."""
    return _checked_training(name, *_place(name, dir), _finite(bounds))


def _finite(bounds: tuple[float, float]) -> tuple[float, float]:
    lower, upper = bounds
    if not -np.inf < lower < upper < np.inf:
        raise ValueError(f"bounds = {bounds}; they must be two finite numbers, the lower first.")
    return lower, upper


def _place(name: str, dir: str) -> tuple[str, int]:
    """A file's path, and when it was changed; "" and 0 for a function."""
    if not name.endswith(".npz"):
        return "", 0
    path = Path(dir) / name
    if not path.is_file():
        raise ValueError(f"No data set {name!r}: there is no file {path.absolute()}.")
    return str(path), path.stat().st_mtime_ns


# One set is kept, like one split of the others; a file that has changed is read again.
@lru_cache(maxsize=1)
def _checked(name: str, path: str, changed: int, bounds: tuple[float, float]) -> dict[str, Any]:
    given = _given(name, path, (*NAMES, "names"))
    for key in NAMES:
        if key not in given:
            raise ValueError(f"{name} has no {key}; it must have {', '.join(NAMES)}.")
    arrays = {}
    for x, y in (NAMES[:2], NAMES[2:]):
        arrays[x], arrays[y] = _pair(name, given, x, y, bounds)
    first, second = arrays["x_train"], arrays["x_test"]
    if (first.shape[1:], first.dtype) != (second.shape[1:], second.dtype):
        raise ValueError(
            f"{name} has x_train {first.dtype}{list(first.shape)} and x_test "
            f"{second.dtype}{list(second.shape)}; they must differ in their number alone."
        )
    classes = 1 + max(arrays[f"y_{split}"].max() for split in ("train", "test"))
    return arrays | {"names": _class_names(name, given, classes)}


def _class_names(what: str, given: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    names = tuple(map(str, given.get("names", ())))
    if names and len(names) < classes:
        raise ValueError(f"{what} has {len(names)} names for {classes} classes.")
    return names


@lru_cache(maxsize=1)
def _checked_training(
    name: str, path: str, changed: int, bounds: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    given = _given(name, path, (*NAMES[:2], *GENERATED))
    for x, y in (NAMES[:2], GENERATED):
        if x in given and y in given:
            return _pair(name, given, x, y, bounds)
    raise ValueError(f"{name} has no x_train and y_train, and no image and label.")


def _given(name: str, path: str, names: tuple[str, ...]) -> Mapping[str, Any]:
    return _file(path, names) if path else _returned(name)


def _pair(
    name: str, given: Mapping[str, Any], x: str, y: str, bounds: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and classes by these names, checked and read-only."""
    inputs = _inputs(f"{name}: {x}", np.asarray(given[x]), bounds)
    classes = _classes(f"{name}: {y}", np.asarray(given[y]))
    if len(inputs) != len(classes) or not len(inputs):
        raise ValueError(
            f"{name} has {len(inputs)} {x} and {len(classes)} {y}; it must have one class for "
            "each example, and an example."
        )
    for array in (inputs, classes):
        array.flags.writeable = False  # a view of its own: what was returned stays as it is
    return inputs, classes


def _file(path: str, names: tuple[str, ...]) -> Mapping[str, Any]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names if name in file}
    except Exception as error:  # whatever a broken file, or a pickled object, makes of NumPy
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read: {why}") from error


def _returned(name: str) -> Mapping[str, Any]:
    made = named("data set", name, {})
    try:
        inspect.signature(made).bind()
    except TypeError:
        raise ValueError(f"{name} is no function without arguments, which returns data.") from None
    with told(f"{name} returns no data"):
        made = made()
    if isinstance(made, tuple | list) and len(made) == len(NAMES):
        return dict(zip(NAMES, made, strict=True))
    if not isinstance(made, Mapping):
        raise ValueError(
            f"{name} returns {type(made).__name__}; it must return {', '.join(NAMES)}, as a tuple "
            "or a dict."
        )
    return made


def _inputs(what: str, x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{what} is {x.dtype}; it must be uint8, 0 … 255, or floating.")
    if x.ndim not in (2, 3, 4):
        raise ValueError(
            f"{what} has shape {x.shape}; it must be images [N, H, W, C] or [N, H, W], or vectors "
            "[N, D]."
        )
    if x.dtype == np.uint8:
        if bounds != (0, 1):
            raise ValueError(
                f"{what} is uint8, within (0.0, 1.0) as x / 255, and bounds = {bounds}."
            )
    else:
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise ValueError(f"{what} has values that are not finite.")
        lower, upper = np.float32(bounds[0]), np.float32(bounds[1])
        if x.size and not lower <= x.min() <= x.max() <= upper:
            raise ValueError(
                f"{what} has values from {x.min():g} to {x.max():g}, and bounds = {bounds}; name "
                "those of the data, config.data.bounds."
            )
    return x[..., None] if x.ndim == 3 else x.view()


def _classes(what: str, y: np.ndarray) -> np.ndarray:
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise ValueError(f"{what} is {y.dtype}{list(y.shape)}; it must be integers [N].")
    if y.size and not 0 <= y.min() <= y.max() < 2**31:
        raise ValueError(f"{what} has classes from {y.min()} to {y.max()}; they must be 0 or more.")
    return y.astype(np.int32)
