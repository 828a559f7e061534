"""Data sets that tensorflow-datasets has prepared as array_record, found without TensorFlow."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from absl import logging

__all__ = ["TESTS", "builder", "folder", "quiet", "source"]

TESTS = ("test", "validation", "val")  # what the official test split is called, the first labelled


def folder(dir: str | os.PathLike[str]) -> str:
    """Where to look: `dir`, or else $TFDS_DATA_DIR, or else "" for TFDS's own default."""
    return os.fspath(dir) or os.environ.get("TFDS_DATA_DIR", "")


def builder(name: str, dir: str) -> Any:
    """TFDS's builder of a set in a folder.

    Raises: ValueError for a name that TFDS has not, and, with the command to run, for a set that is
    not prepared as array_record.
    """
    import tensorflow_datasets as tfds

    with quiet():
        try:
            # No file_format: TFDS would raise its own error for what is prepared as something else.
            found: Any = tfds.builder(name, data_dir=dir or None)
        except tfds.core.DatasetNotFoundError:
            raise ValueError(
                f"No data set {name!r}; choose one of cifar10, cifar100, digits, mnist, name "
                "another of TFDS, my_data.npz or package.module:name, or set config.data.side, in "
                "pixels, to stream one, or folder for DIR/train/CLASS/*.jpg."
            ) from None
        # The question comes first: TFDS answers for a missing folder with an unrelated error.
        kind = found.info.file_format.value if found.is_prepared() else ""
    if kind != "array_record":
        raise ValueError(_how_to_prepare(name, dir, str(found.data_path), kind))
    return found


def source(
    name: str, split: str, dir: str, decoders: dict[str, Any] | None = None
) -> tuple[Any, Any, str]:
    """The records of a split, `train` or `test`, the features of the set, and where they are from.

    Raises: ValueError, also for a set without images and classes, or without such a split.
    """
    made = builder(name, dir)
    features, splits = made.info.features, made.info.splits
    if not {"image", "label"} <= set(features):
        raise ValueError(f"{name} has {', '.join(features)}; it must have image and label.")
    image, label = features["image"], features["label"]
    # TFDS stores floating-point images as their raw bytes, in the four channels of a PNG.
    if image.np_dtype not in (np.uint8, np.uint16) or not hasattr(label, "num_classes"):
        raise ValueError(
            f"{name} has images of {np.dtype(image.np_dtype)} and labels as "
            f"{type(label).__name__}; want images of uint8 or uint16, and labels as ClassLabel."
        )
    official = TESTS if split == "test" else ("train",)
    for which in (which for which in official if which in splits):
        found = made.as_data_source(split=which, decoders=decoders)
        if found[0]["label"] >= 0:  # a test split without labels has -1
            return found, features, f"{name}, {which}"
    raise ValueError(
        f"{name} has the splits {', '.join(splits)}; none of {', '.join(official)} has labels."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """TFDS logs an error per file whose group size is not 1, a warning for a missing folder, ..."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _how_to_prepare(name: str, dir: str, folder: str, found: str) -> str:
    where = f", data_dir={json.dumps(dir)}" if dir else ""
    code = (
        f'import tensorflow_datasets as tfds; tfds.builder("{name}"{where})'
        '.download_and_prepare(file_format="array_record")'
    )
    instead = f" (it is there as {found}: prepare it in another folder)" if found else ""
    return (
        f"{name} is not prepared as array_record in {folder}{instead}. Prepare it once by "
        f"`python -c {shlex.quote(code)}`, where there are network access and TensorFlow, or name "
        "a prepared folder by TFDS_DATA_DIR or config.data.dir; digits needs nothing."
    )
