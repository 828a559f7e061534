"""Rows in batches: the permutations of an epoch, and a function over consecutive batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from lipreg import parallel

__all__ = ["epoch_batches", "in_batches", "map_batches", "mixed_batches", "packed"]


class Kept(Protocol):
    """Where the results of finished batches are kept by name, as in `evaluation.Store`."""

    def get(self, name: str) -> dict[str, np.ndarray] | None: ...

    def put(self, name: str, **arrays: Any) -> None: ...


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


def mixed_batches(key: Array, n: int, more: int, batch_size: int, share: float) -> np.ndarray:
    """An epoch's batches with a share of `round(share batch_size)` rows from n to n + more - 1.

    Those are drawn with replacement, and stand at the end of a batch. The others are from 0 to
    n - 1, as in `epoch_batches`, and so are the number of batches and its errors: an epoch sees so
    many examples, and a part of the n.

    >>> batches = mixed_batches(jax.random.key(0), 10, 1000, 5, 0.4)
    >>> batches.shape, (batches >= 10).tolist()
    ((2, 5), [[False, False, False, True, True], [False, False, False, True, True]])
    """
    rows, drawn = epoch_batches(key, n, batch_size), round(share * batch_size)
    if not 0 < drawn < batch_size:
        raise ValueError(f"share = {share}; of a batch of {batch_size}, it is {drawn} examples.")
    to_draw = jax.random.fold_in(key, n)  # apart from the permutation
    others = np.asarray(jax.random.randint(to_draw, (len(rows), drawn), n, n + more), np.int32)
    return np.concatenate([rows[:, : batch_size - drawn], others], 1)


def packed(rows: np.ndarray, batch_size: int, parts: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Rows in batches of one size, filled up with the last row: (rows, how many of them count).

    With `parts`, rows that do not fill a batch come in smaller ones, of that part of its size.

    >>> [(batch.tolist(), count) for batch, count in packed(np.arange(5), 4, parts=2)]
    [([0, 1, 2, 3], 4), ([4, 4], 1)]
    """
    part, full = parallel.multiple(-(-batch_size // parts)), parallel.multiple(batch_size)
    start = 0
    while start < len(rows):
        left = len(rows) - start
        size = full if left > full - part else part
        places = np.minimum(np.arange(start, start + size), len(rows) - 1)
        yield rows[places], min(size, left)
        start += size


def in_batches(
    f: Callable[..., Any],
    rows: np.ndarray,
    batch_size: int,
    *arrays: Any,
    parts: int = 1,
    store: Kept | None = None,
    name: str = "",
) -> Iterator[tuple[np.ndarray, Any]]:
    """`f` on these rows of the arrays, batch after batch: yields rows, and a pytree of numpy.

    The batches are those of `packed`, so a jitted f compiles once per size; inside `parallel.over`
    each is sharded over the devices. With a `store` f returns a dict of arrays, which is kept under
    `name` and not computed again.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; it must be 1 or more.")
    done = 0
    for batch, count in packed(rows, batch_size, parts):
        now, unit = batch[:count], f"{name}-{done}"
        output = (store.get(unit) if store else None) or {}
        if not np.array_equal(output.pop("rows", ()), now):
            output = parallel.gather(f(*parallel.shard([a[batch] for a in arrays])))
            for leaf in jax.tree.leaves(output):
                if np.shape(leaf)[:1] != batch.shape:
                    raise ValueError(
                        f"f returned {np.shape(leaf)}; it must return {len(batch)} rows."
                    )
            output = jax.tree.map(lambda leaf, count=count: leaf[:count], output)
            if store:
                store.put(unit, rows=now, **output)
        done += count
        yield now, output


def map_batches(
    f: Callable[..., Any],
    batch_size: int,
    *arrays: Any,
    progress: Callable | None = None,
    store: Kept | None = None,
    name: str = "",
) -> Any:
    """`f` over consecutive batches of N rows: its outputs joined, a pytree of numpy `[N, ...]`.

    Every batch has `batch_size` rows, so a jitted f compiles once: the last is filled up with the
    last row, whose outputs are cut off. f treats rows one by one, and every array that it returns
    has `batch_size` rows. Inside `parallel.over` a batch is sharded over the devices, and
    `batch_size` is raised to a multiple of their number. `progress` wraps the iterator, as `tqdm`
    does. `store` and `name` are those of `in_batches`.

    >>> map_batches(jnp.sqrt, 2, np.array([1, 4, 9], np.float32))
    array([1., 2., 3.], dtype=float32)
    """
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) != 1 or 0 in lengths:
        raise ValueError(f"The arrays have {lengths} rows; give them one length, 1 or more.")
    batches = in_batches(f, np.arange(lengths[0]), batch_size, *arrays, store=store, name=name)
    starts = range(0, lengths[0], max(parallel.multiple(batch_size), 1))
    turns = zip(progress(starts) if progress else starts, batches, strict=True)
    outputs = [output for _, (_, output) in turns]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)
