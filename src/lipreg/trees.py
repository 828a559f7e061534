"""The arrays of a tree by their paths, and a hash of what they hold."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["by_path", "digest"]


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, `params.Conv_0.kernel`; random keys as their raw words.

    Raises: ValueError where two leaves have the same path, as in `{"a.b": 1, "a": {"b": 2}}`.

    >>> by_path({"params": {"w": 1.0, "b": 2.0}})
    {'params.b': 2.0, 'params.w': 1.0}
    """

    def raw(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in leaves:
            raise ValueError(f"Two arrays have the path {name}; rename one.")
        leaves[name] = raw(leaf)
    return leaves


def digest(tree: Any) -> str:
    """The SHA-256 of all arrays of a tree, with their paths, types and shapes.

    Checkpoints and unfinished evaluations store it: another form would refuse all of them.
    """
    leaves, hashed = by_path(tree), hashlib.sha256()
    for path in sorted(leaves):
        array = np.asarray(leaves[path])
        if array.dtype == object:
            raise TypeError(
                f"{path} is a {type(leaves[path]).__name__}: want an array or a number."
            )
        hashed.update(f"{path} {array.dtype} {array.shape} ".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
