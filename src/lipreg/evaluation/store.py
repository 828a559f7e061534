"""What a long evaluation has found so far, on disk: a killed one goes on where it was."""

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = ["Store", "fingerprint"]


def fingerprint(tree: Any) -> str:
    """A hash of all arrays of a tree, and of what its structure says."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256()
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(
            f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        )
    digest.update(str(structure.num_leaves).encode())
    return digest.hexdigest()[:16]


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
            try:
                there = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} cannot be read: {error}.") from None
            differ = sorted(k for k in there.keys() | wanted if there.get(k) != wanted.get(k))
            if differ:
                raise ValueError(
                    f"{folder} holds an evaluation with another {', '.join(differ)}: "
                    + "; ".join(f"{k} {there.get(k)} there, {wanted.get(k)} asked" for k in differ)
                    + ". Remove it, or name another folder."
                )
        else:
            _write(path, json.dumps(wanted, indent=2).encode())

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under a name; None for a name that is not there, or is damaged."""
        path = self._folder / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                return dict(file)
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None

    def put(self, name: str, **arrays: Any) -> None:
        """Keep arrays under a name: whole, or not at all."""
        path = self._folder / f"{name}.npz"
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **arrays)
        part.replace(path)


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
