"""Sets that do not fit in memory: images are read, cropped and resized when they are needed.

In training a `Stream` takes the place of a `datasets.Dataset`. Its batches come from Grain and are
a function of seed and step alone, whatever the number of threads, workers and processes, and
wherever a run is resumed.
"""

import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from lipreg import datasets
from lipreg.datasets import prepared

__all__ = ["Stream", "centre_box", "load", "random_box"]

SUFFIXES = (".jpg", ".jpeg", ".png")

# From a row to its file, its class, and what to call it when it is broken.
Read = Callable[[int], tuple[Any, int, str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Images of any size on disk, and their classes; see `load`.

    Attributes:
      read: the source, `row -> (file, class, name)`.
      rows: those of this split, in random order.
      classes: the number of classes.
      side: of the squares that images become, in pixels.
      threads: how many decode, a batch each; with 0 a batch is decoded when it is needed.
      workers: processes with this many threads each; 0 for threads of this process.
      names: of the classes, where they are known.
    """

    read: Read
    rows: np.ndarray
    classes: int
    side: int
    threads: int = 4
    workers: int = 0
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, 3

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_step: int = 0,
        process: int | None = None,
        processes: int | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches to train on, without end: x uint8 `[B, side, side, 3]` and y int32 `[B]`.

        An epoch is a permutation; rows that do not fill a batch are dropped. Each image is cropped
        at random (`random_box`). Batch s depends on seed and s alone, and `first_step` is the first
        s. With several processes, by default as jax counts them, B is the share of one, and row r
        of the global batch belongs to process `r // B`.

        Raises: ValueError for a `batch_size` that is not from 1 to the number of examples, or that
        the processes can't share equally; and, from the iterator, naming it, for a file that is no
        image.
        """
        import grain  # a second that sets in memory need not pay for

        process = jax.process_index() if process is None else process
        processes = jax.process_count() if processes is None else processes
        if not 1 <= batch_size <= len(self):
            raise ValueError(
                f"batch_size = {batch_size}; it must be from 1 to the {len(self)} examples."
            )
        if batch_size % processes:
            raise ValueError(
                f"batch_size = {batch_size}; it must be a multiple of the {processes} processes."
            )
        if self.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own, which nobody parses in a notebook
        used = len(self) // batch_size * batch_size
        # Not shuffle(seed), which would begin at seed 1 with the second epoch of seed 0.
        source: Any = self.rows
        rows = grain.MapDataset.source(source).seed(seed).shuffle()[:used].repeat()
        examples = rows.random_map(self._cropped)
        # Without drop_remainder Grain divides the endless length as a float, which overflows.
        shares = examples.batch(batch_size // processes, drop_remainder=True)
        shares = shares[first_step * processes + process :: processes]
        # A batch per thread is held at a time: 256 images of 224 x 224 pixels are 39 MB.
        stream = shares.to_iter_dataset(grain.ReadOptions(self.threads, self.threads))
        return iter(stream.mp_prefetch(grain.MultiprocessingOptions(self.workers)))

    def sample(self, n: int) -> datasets.Dataset:
        """The first n images in memory, as an evaluation sees them (`centre_box`).

        Raises: ValueError for n that is not from 1 to the number of examples.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"n = {n}; it must be from 1 to the {len(self)} examples.")
        x, y = np.empty((n, *self.shape), np.uint8), np.empty(n, np.int32)
        decoded = partial(self._decoded, box=centre_box)
        with ThreadPoolExecutor(self.threads or 1) as pool:
            for row, example in enumerate(pool.map(decoded, self.rows[:n])):
                x[row], y[row] = example
        return datasets.Dataset(x, y, self.classes, self.names)

    def _cropped(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.int32]:
        return self._decoded(row, partial(random_box, rng))

    def _decoded(self, row: int, box: Callable) -> tuple[np.ndarray, np.int32]:
        file, label, name = self.read(row)
        try:
            with Image.open(file) as image:
                x = _resized(image, box(*image.size), self.side)
        except Exception as error:  # whatever a broken file makes of Pillow
            raise ValueError(f"{name} cannot be read as an image: {error}.") from None
        return x, np.int32(label)


def random_box(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """`(left, top, right, bottom)` of 8 to 100 % of the area, 3:4 to 4:3 (Szegedy et al. 2015).

    Area and log ratio are uniform, and so is the place. Of ten draws the first that lies inside
    the image is taken; after ten misses it is the largest box of a permitted shape.

    >>> random_box(np.random.default_rng(0), 500, 375).round()
    array([  3.,   7., 390., 329.])
    """
    bounds = np.array([width, height])
    area = bounds.prod() * rng.uniform(0.08, 1.0, 10)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 10))
    largest = np.minimum(bounds, bounds[::-1] * 4 / 3)
    sizes = np.vstack([np.sqrt(np.stack([area * ratio, area / ratio], 1)), largest])
    size = sizes[(sizes <= bounds).all(1).argmax()]
    corner = rng.uniform(0, bounds - size)
    return np.concatenate([corner, corner + size])


def centre_box(width: int, height: int) -> np.ndarray:
    """`(left, top, right, bottom)` of the central square with 224/256 of the shorter side.

    Resized to `side`, that is the centre of an image whose shorter side became 256/224 of it.

    >>> centre_box(500, 256)
    array([138.,  16., 362., 240.])
    """
    centre, half = np.array([width, height]) / 2, min(width, height) * 224 / 256 / 2
    return np.concatenate([centre - half, centre + half])


def _resized(image: Image.Image, box: np.ndarray, side: int) -> np.ndarray:
    """The box of an image as RGB, uint8 `[side, side, 3]`."""
    # A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves twice the pixels that are needed.
    size = np.array(image.size)
    needed = 2 * side * size / (box[2:] - box[:2])
    drafted = image.draft("RGB", tuple(needed.astype(int)))
    if drafted:
        box = box * drafted[1][2] / size[0]
    box = np.minimum(box, image.size * 2)  # rounding may put a corner outside
    if image.mode.startswith("I"):  # 16 bits: keep the high byte, as Pillow does for colours;
        image = Image.fromarray(np.uint8(np.asarray(image) >> 8))  # convert would clip at 255
    square = image.convert("RGB").resize(
        (side, side), Image.Resampling.BILINEAR, tuple(box), reducing_gap=2.0
    )
    return np.asarray(square)


def load(
    name: str,
    split: str,
    *,
    dir: str | os.PathLike[str] = "",
    side: int = 224,
    seed: int = 0,
    validation: float = 0.1,
    threads: int = 4,
    workers: int = 0,
) -> Stream:
    """One split of a set of images with classes; splits are those of `datasets.load`.

    `name` is that of a TFDS data set with `image` and `label`, prepared as array_record in `dir` as
    for `datasets.load`, or "folder" for JPEG and PNG files `DIR/train/CLASS/*` and
    `DIR/validation/CLASS/*`, classes in order of their names. `train` and `validation` partition
    the official training split. `test` is the official test split, or the official validation split
    where there is no other with labels, as in ImageNet.

    Raises: ValueError for missing data, saying what is wanted, and for an empty split.

    >>> load("folder", "train", dir="imagenet").shape  # doctest: +SKIP
    (224, 224, 3)
    """
    datasets.check_split(split, validation)
    if side < 1:
        raise ValueError(f"side = {side}; it must be 1 or more pixels.")
    if name == "folder":
        read, n, names, where = _folder(Path(dir), split)
    else:
        read, n, names, where = _prepared(name, split, prepared.folder(dir))
    if split == "test":  # in random order, too: a folder's first images are of one class
        rows = np.random.default_rng(0).permutation(n)
    else:
        rows = datasets.part(n, split, seed=seed, validation=validation)
    if not len(rows):
        raise ValueError(f"{where} has {n} images: none for the split {split!r}.")
    return Stream(read, rows, len(names), side, threads, workers, tuple(names))


def _folder(dir: Path, split: str) -> tuple[Read, int, list[str], str]:
    official = prepared.TESTS if split == "test" else ("train",)
    root = next((dir / name for name in official if (dir / name).is_dir()), dir / official[0])
    classes, here = _classes(dir / "train"), _classes(root)
    unknown = sorted(set(here) - set(classes))
    if unknown:
        raise ValueError(f"{root} has a class {unknown[0]!r} that {dir / 'train'} has not.")
    files = [
        (os.path.join(root, name, file), label)
        for label, name in enumerate(classes)
        if name in here
        for file in sorted(os.listdir(root / name))
        if file.lower().endswith(SUFFIXES)
    ]
    where = f"{root} ({', '.join(SUFFIXES)})"
    return partial(_read_file, files), len(files), classes, where


def _classes(root: Path) -> list[str]:
    """The names of the folders in a folder."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not names:
        raise ValueError(
            f"There is no {root}/CLASS/*.jpg; config.data.dir names a folder with "
            "train/CLASS/*.jpg and validation/CLASS/*.jpg."
        )
    return names


def _read_file(files: list[tuple[str, int]], row: int) -> tuple[str, int, str]:
    path, label = files[row]
    return path, label, path


def _prepared(name: str, split: str, dir: str) -> tuple[Read, int, list[str], str]:
    import tensorflow_datasets as tfds

    # The bytes of the files: decoding is ours, in threads.
    decoders = {"image": tfds.decode.SkipDecoding()}
    source, features, where = prepared.source(name, split, dir, decoders)
    names = features["label"].names
    return partial(_read_record, source, where), len(source), names, where


def _read_record(source: Any, where: str, row: int) -> tuple[io.BytesIO, int, str]:
    record = source[row]
    return io.BytesIO(record["image"]), record["label"], f"Record {row} of {where}"
