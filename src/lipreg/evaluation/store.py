"""A long evaluation's results so far, on disk, from which a killed one resumes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipreg import files

__all__ = ["Store"]


class Store:
    """Named results in a folder, which belongs to one `identity`: model, data, settings, seed.

    Raises: ValueError for a folder of another identity, naming what differs.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(identity))
        path = self._folder / "identity.json"
        if path.exists():
            there = files.read(path)
            differ = sorted(k for k in there.keys() | wanted if there.get(k) != wanted.get(k))
            if differ:
                raise ValueError(
                    f"{folder} holds an evaluation with another {', '.join(differ)}: "
                    + "; ".join(f"{k} {there.get(k)} there, {wanted.get(k)} asked" for k in differ)
                    + ". Remove it, or name another folder."
                )
        else:
            files.write_json(path, wanted)

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under a name; None for a name that is not there, or is damaged."""
        path = self._folder / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            return files.read(path)
        except ValueError:
            return None

    def put(self, name: str, **arrays: Any) -> None:
        """Write arrays under a name, atomically."""
        files.write_arrays(self._folder / f"{name}.npz", **arrays)
