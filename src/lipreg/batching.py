"""Rows in batches: the permutations of an epoch, and a function over consecutive batches."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from lipreg import parallel

__all__ = ["epoch_batches", "map_batches"]


def epoch_batches(key: Array, n: int, batch_size: int) -> np.ndarray:
    """The rows of an epoch's batches, int32 `[n // batch_size, batch_size]`: a permutation of n.

    Rows that would not fill a batch are dropped, different ones for each key.

    >>> epoch_batches(jax.random.key(0), 10, 3).shape
    (3, 3)
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size = {batch_size}; it must be from 1 to the {n} examples.")
    rows = np.asarray(jax.random.permutation(key, n), np.int32)
    return rows[: n // batch_size * batch_size].reshape(-1, batch_size)


def map_batches(
    f: Callable[..., Any],
    batch_size: int,
    *arrays: Any,
    progress: Callable | None = None,
) -> Any:
    """`f` over consecutive batches of N rows: its outputs joined, a pytree of numpy `[N, ...]`.

    Every batch has `batch_size` rows, so a jitted f compiles once: the last is filled up with the
    last row, whose outputs are cut off. f treats rows one by one, and every array that it returns
    has `batch_size` rows. Inside `parallel.over` a batch is sharded over the devices, and
    `batch_size` is raised to a multiple of their number. `progress` wraps the iterator, as `tqdm`
    does.

    >>> map_batches(jnp.sqrt, 2, np.array([1, 4, 9], np.float32))
    array([1., 2., 3.], dtype=float32)
    """
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) != 1 or 0 in lengths:
        raise ValueError(f"The arrays have {lengths} rows; give them one length, 1 or more.")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; it must be 1 or more.")
    n, batch_size = lengths[0], parallel.multiple(batch_size)
    starts = range(0, n, batch_size)
    outputs = []
    for start in progress(starts) if progress else starts:
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        output = parallel.gather(f(*parallel.shard([a[rows] for a in arrays])))
        for leaf in jax.tree.leaves(output):
            if np.shape(leaf)[:1] != (batch_size,):
                raise ValueError(f"f returned {np.shape(leaf)}; it must return {batch_size} rows.")
        outputs.append(output)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *outputs)
