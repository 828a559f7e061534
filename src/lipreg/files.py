"""Atomic writes: a file is written beside its place, then moved into it."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["arrays", "check_writable", "read", "replacing", "write", "write_arrays", "write_json"]


def check_writable(folder: str | os.PathLike) -> None:
    """Refuse a folder that could not be written, or made, before the work and not after it.

    Raises: ValueError for one on a read-only disk, without permission, or inside of a file.
    """
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{folder} cannot be written: {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written: {there} is read-only.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` at the end of the block; a failure leaves `path` as is.

    Each process has a path of its own. A kill may leave a `.part` beside the file.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
    except Exception:  # a full disk, for instance
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


def write(path: Path, text: str) -> None:
    """Text, in UTF-8 whatever the locale: tables contain ± and ε."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON."""
    write(path, json.dumps(value, indent=2) + "\n")


def write_arrays(path: Path, **arrays: Any) -> None:
    """Arrays by name as a compressed npz."""
    with replacing(path) as part, part.open("wb") as file:  # given a name, NumPy adds .npz to it
        np.savez_compressed(file, **arrays)


def read(path: Path) -> Any:
    """A JSON file's value, or the arrays of an npz by name; pickles are refused.

    Raises: ValueError, with the path, for a file that cannot be read.
    """
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        return arrays(path.read_bytes())
    except ValueError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read: {reason}.") from None


def arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz file's bytes by name; pickles are refused, with a ValueError."""
    try:
        with np.load(io.BytesIO(data)) as file:
            return dict(file)
    except Exception as error:  # of zipfile, zlib, tokenize or numpy: damage may be anywhere
        raise ValueError(str(error) or type(error).__name__) from None
