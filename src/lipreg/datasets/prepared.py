"""Data sets that tensorflow-datasets has prepared as array_record, read without TensorFlow."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from absl import logging

__all__ = ["TESTS", "builder", "folder", "quiet", "source"]

TESTS = ("test", "validation", "val")  # names of an official test split, the first with labels


def folder(dir: str | os.PathLike[str]) -> str:
    """Where to look: `dir`, or else $TFDS_DATA_DIR, or else "" for TFDS's own default."""
    return os.fspath(dir) or os.environ.get("TFDS_DATA_DIR", "")


def builder(name: str, dir: str) -> Any:
    """TFDS's builder of a set in a folder.

    Raises: ValueError for a name that TFDS does not have, and, with the command to run, for a set
    that is not prepared as array_record.
    """
    import tensorflow_datasets as tfds

    with quiet():
        try:
            if not re.match(r"[A-Za-z]\w*([:/]|$)", name):  # TFDS would explain its syntax
                raise tfds.core.DatasetNotFoundError
            # No file_format: TFDS would raise its own error for what is prepared as something else.
            prepared: Any = tfds.builder(name, data_dir=dir or None)
        except tfds.core.DatasetNotFoundError:
            raise ValueError(
                f"No data set {name!r}; choose one of cifar10, cifar100, digits, mnist, name "
                "another of TFDS, my_data.npz or package.module:name, or set config.data.side, in "
                "pixels, to stream one, or folder for DIR/train/CLASS/*.jpg."
            ) from None
        # is_prepared comes first: for a missing folder TFDS raises an unrelated error.
        kind = prepared.info.file_format.value if prepared.is_prepared() else ""
    if kind != "array_record":
        raise ValueError(_how_to_prepare(name, dir, str(prepared.data_path), kind))
    return prepared


def source(
    name: str, split: str, dir: str, decoders: dict[str, Any] | None = None
) -> tuple[Any, Any, str]:
    """The records of a split, `train` or `test`, the features of the set, and where they come from.

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
        records = made.as_data_source(split=which, decoders=decoders)
        if records[0]["label"] >= 0:  # a test split without labels has -1
            return records, features, f"{name}, {which}"
    raise ValueError(
        f"{name} has the splits {', '.join(splits)}; none of {', '.join(official)} has labels."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No logs of TFDS: an error per file whose group size is not 1, and the like."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _how_to_prepare(name: str, dir: str, folder: str, kind: str) -> str:
    where = f", data_dir={json.dumps(dir)}" if dir else ""
    code = (
        f'import tensorflow_datasets as tfds; tfds.builder("{name}"{where})'
        '.download_and_prepare(file_format="array_record")'
    )
    instead = f" (it is there as {kind}: prepare it in another folder)" if kind else ""
    return (
        f"{name} is not prepared as array_record in {folder}{instead}. Prepare it once by "
        f"`python -c {shlex.quote(code)}`, where there are network access and TensorFlow, or name "
        "a prepared folder by TFDS_DATA_DIR or config.data.dir; digits needs nothing."
    )
