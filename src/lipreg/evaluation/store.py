"""A long evaluation's results so far, on disk, from which a killed one resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np

from lipreg import files, parallel

__all__ = ["Store"]


class Store:
    """Named results in a folder, which belongs to one `identity`: model, data, settings, seed.

    Raises: ValueError for a folder of another identity, naming what differs.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]):
        self._folder = Path(folder)
        wanted = json.dumps(identity).encode()
        path, there = self._folder / "identity.json", None
        if parallel.is_main():
            self._folder.mkdir(parents=True, exist_ok=True)
            there = files.read(path) if path.exists() else None
        # Of several processes the first one decides for all: they must not part ways.
        there = json.loads(parallel.from_main(json.dumps(there).encode()))
        wanted = json.loads(parallel.from_main(wanted))
        if there is None:
            if parallel.is_main():
                files.write_json(path, wanted)
            return
        if not isinstance(there, dict):
            raise ValueError(f"{path} cannot be read: it is no evaluation's. Remove {folder}.")
        differ = sorted(k for k in there.keys() | wanted if there.get(k) != wanted.get(k))
        if differ:
            raise ValueError(
                f"{folder} holds an evaluation with another {', '.join(differ)}: "
                + "; ".join(f"{k} {there.get(k)} there, {wanted.get(k)} asked" for k in differ)
                + ". Remove it, or name another folder."
            )

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under a name; None for a name that is not there, or is damaged.

        Where there are several processes, every one gets what the first one reads.
        """
        path = self._path(name)
        kept = path.read_bytes() if parallel.is_main() and path.is_file() else b""
        try:
            arrays = files.arrays(parallel.from_main(kept))
        except ValueError:
            return None
        # numpy writes bfloat16 as two bytes without a type.
        half = lambda array: array.view(jnp.bfloat16) if array.dtype == "V2" else array
        return {name: half(array) for name, array in arrays.items()} or None

    def put(self, name: str, **arrays: Any) -> None:
        """Write arrays under a name, atomically; of several processes the first one does."""
        if parallel.is_main():
            files.write_arrays(self._path(name), **arrays)

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.npz"
