"""A data set as two arrays, its batches by key, augmentation on the device.

A set that fits in memory is one uint8 array: move it to the device once, index and augment it
inside the compiled step. `digits` comes with scikit-learn; the others are read from a folder that
tensorflow-datasets prepared as array_record, without TensorFlow and without a download.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg import parallel, prepared

__all__ = [
    "NAMES",
    "Dataset",
    "augment",
    "check_split",
    "epoch_batches",
    "load",
    "map_batches",
    "part",
    "size",
    "to_unit",
    "wrong_labels",
]

NAMES = ("cifar10", "cifar100", "digits", "mnist")
SPLITS = ("train", "validation", "test")


class Dataset(NamedTuple):
    """Images and their classes.

    Attributes:
      x: uint8 `[N, H, W, C]`.
      y: int32 `[N]`, in 0 … classes - 1.
      classes: their number.
    """

    x: np.ndarray
    y: np.ndarray
    classes: int


def load(
    name: str,
    split: str,
    *,
    dir: str | os.PathLike[str] = "",
    seed: int = 0,
    validation: float = 0.1,
) -> Dataset:
    """One split of a data set; `train` and `validation` partition the official training split.

    `validation` is the fraction held out, drawn by `seed`, at least one image. `test` is the
    official test split and knows neither; digits has none, so 360 of its 1797 images, the same for
    every seed, are its own. `dir` is the folder of prepared TFDS data sets; "" stands for the
    environment variable TFDS_DATA_DIR, then for TFDS's own default. The arrays may be read-only.

    Raises: ValueError for an unknown name or split, for a fraction outside (0, 1), and, with the
    command to run, for a data set that is not prepared.

    >>> load("digits", "test").x.shape
    (360, 8, 8, 1)
    """
    if name not in NAMES:
        raise ValueError(
            f"No data set {name!r}; choose one of {', '.join(NAMES)}, or set config.data.side, in "
            "pixels, to stream another set from TFDS or a folder."
        )
    check_split(split, validation)
    official = "test" if split == "test" else "train"
    x, y, classes = _official(name, official, prepared.folder(dir))
    if split == "test":
        return Dataset(x, y, classes)
    rows = part(len(y), split, seed=seed, validation=validation)
    return Dataset(x[rows], y[rows], classes)


def check_split(split: str, validation: float) -> None:
    """ValueError for another split than those of `load`, and for no fraction to hold out."""
    if split not in SPLITS:
        raise ValueError(f"No split {split!r}; choose one of {', '.join(SPLITS)}.")
    if not 0 < validation < 1:
        raise ValueError(f"validation = {validation}; it must be greater than 0 and less than 1.")


def part(n: int, split: str, *, seed: int, validation: float) -> np.ndarray:
    """The rows of the official training split's n that are `train` or `validation`, shuffled.

    >>> len(part(20, "train", seed=0, validation=0.1))
    18
    """
    rows = np.random.default_rng(seed).permutation(n)
    held_out = int(np.clip(round(validation * n), 1, max(n - 1, 1)))
    return rows[:held_out] if split == "validation" else rows[held_out:]


# One split is kept: `train` and `validation` share one, and decoding it takes seconds.
@lru_cache(maxsize=1)
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
        builder = prepared.builder(name, dir)
        source, features = builder.as_data_source(split=split), builder.info.features
        x = np.empty((len(source), *features["image"].shape), np.uint8)
        y = np.empty(len(source), np.int32)
        for start in range(0, len(y), 1024):  # a record at a time is slower, all at once is big
            rows = range(start, min(start + 1024, len(y)))
            for row, record in zip(rows, source.__getitems__(rows), strict=True):
                x[row], y[row] = record["image"], record["label"]
    return Dataset(x, y, features["label"].num_classes)


def wrong_labels(dataset: Dataset, fraction: float, *, seed: int = 0) -> Dataset:
    """The data set with this fraction of its labels replaced by another class, each as likely.

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
    """The number of examples of a `Dataset`, whose len is that of a tuple, or of a `Stream`."""
    return len(dataset.y) if isinstance(dataset, Dataset) else len(dataset)


def to_unit(x: Array | np.ndarray) -> Array:
    """`x / 255`: uint8 in 0 … 255 to float32 in [0, 1]. Floating x is returned as it is.

    Raises: ValueError for any other dtype.

    >>> to_unit(np.array([0, 255], np.uint8))
    Array([0., 1.], dtype=float32)
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype != jnp.uint8:
        raise ValueError(f"x is {x.dtype}; images are uint8 in 0 … 255 or floating in [0, 1].")
    # XLA makes this product of `/ 255` in some programs: the last bit would depend on the jit.
    return x.astype(jnp.float32) * np.float32(1 / 255)


def augment(key: Array, x: Array, *, flip: bool = True, pad: int = 4, cutout: int = 0) -> Array:
    """Random crop after zero padding by `pad`, horizontal flip (p = 1/2), a black square.

    x `[B, H, W, C]`, uint8 or floating; the result has its shape and dtype. The square has side
    `cutout`, a centre uniform over the image's pixels (so it may stick out), and the value 0, like
    the padding (DeVries & Taylor 2017). Image b draws from `fold_in(key, b)`: its batch-mates
    change nothing. With `flip=False, pad=0, cutout=0` x itself is returned.

    >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 3), jnp.uint8), pad=2).shape
    (2, 8, 8, 3)
    """
    if pad < 0 or cutout < 0:
        raise ValueError(f"pad = {pad}, cutout = {cutout}; both must be 0 or more pixels.")
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}; augment takes images [B, H, W, C].")
    if not (flip or pad or cutout):
        return x

    def one(row: Array, image: Array) -> Array:
        to_crop, to_flip, to_cut = jax.random.split(jax.random.fold_in(key, row), 3)
        if pad:
            image = _crop(to_crop, image, pad)
        if flip:
            image = jnp.where(jax.random.bernoulli(to_flip), image[:, ::-1], image)
        return _cut(to_cut, image, cutout) if cutout else image

    return jax.vmap(one)(jnp.arange(len(x)), x)


def _crop(key: Array, image: Array, pad: int) -> Array:
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


def _cut(key: Array, image: Array, side: int) -> Array:
    size = jnp.array(image.shape[:2])
    first = jax.random.randint(key, (2,), 0, size) - side // 2
    rows, columns = (jnp.arange(n) - start for n, start in zip(image.shape, first, strict=False))
    in_rows, in_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    square = in_rows[:, None, None] & in_columns[None, :, None]
    return jnp.where(square, jnp.zeros_like(image), image)


def epoch_batches(key: Array, n: int, batch_size: int) -> np.ndarray:
    """The rows of one epoch's batches, int32 `[n // batch_size, batch_size]`: a permutation of n.

    What does not fill a batch is left out, a different rest for each key.

    >>> epoch_batches(jax.random.key(0), 10, 3).shape
    (3, 3)
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size = {batch_size}; it must be from 1 to the {n} examples.")
    rows = np.asarray(jax.random.permutation(key, n), np.int32)
    return rows[: n // batch_size * batch_size].reshape(-1, batch_size)


def map_batches(
    f: Callable[..., Any],
    batch_size: int,
    *arrays: Any,
    progress: Callable | None = None,
) -> Any:
    """`f` over consecutive batches of N rows: its outputs joined, a pytree of numpy `[N, ...]`.

    Every batch has `batch_size` rows, so a jitted f compiles once: the last is filled up with the
    last row, whose outputs are cut off. f treats rows one by one, and every array that it returns
    has `batch_size` rows; inside `parallel.over` the devices share them, and `batch_size` is raised
    to a multiple. `progress` wraps the iterator, as `tqdm` does.

    >>> map_batches(jnp.sqrt, 2, np.array([1, 4, 9], np.float32))
    array([1., 2., 3.], dtype=float32)
    """
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) != 1 or 0 in lengths:
        raise ValueError(f"The arrays have {lengths} rows; give them one length, 1 or more.")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; it must be 1 or more.")
    n, batch_size = lengths[0], parallel.multiple(batch_size)
    starts = range(0, n, batch_size)
    outputs = []
    for start in progress(starts) if progress else starts:
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        output = parallel.gather(f(*parallel.split([a[rows] for a in arrays])))
        for leaf in jax.tree.leaves(output):
            if np.shape(leaf)[:1] != (batch_size,):
                raise ValueError(f"f returned {np.shape(leaf)}; it must return {batch_size} rows.")
        outputs.append(output)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *outputs)
