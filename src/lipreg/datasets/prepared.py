"""Data sets that tensorflow-datasets has prepared as array_record, found without TensorFlow."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from absl import logging

__all__ = ["builder", "folder", "quiet"]


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
                f"No data set {name!r}; name one of TFDS, or folder for DIR/train/CLASS/*.jpg."
            ) from None
        # The question comes first: TFDS answers for a missing folder with an unrelated error.
        kind = found.info.file_format.value if found.is_prepared() else ""
    if kind != "array_record":
        raise ValueError(_how_to_prepare(name, dir, str(found.data_path), kind))
    return found


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
