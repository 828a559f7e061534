"""Files that are whole or not there: written beside their place, then moved into it."""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read", "replacing", "write", "write_arrays", "write_json"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end of the block; a failure leaves what was there.

    After a kill a `.part` may lie beside it, which the next writing takes.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
    except Exception:  # a full disk, for instance
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


def write(path: Path, text: str) -> None:
    """A text, in UTF-8 whatever the locale: tables have ± and ε."""
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
    """What a JSON file holds, or the arrays of an npz by name; nothing in them is executed.

    Raises: ValueError naming a file that cannot be read.
    """
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return dict(file)
    except (ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read: {reason}.") from None
