"""What an evaluation hands on: a model, its images, and how to go through them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from lipreg.batching import in_batches
from lipreg.box import Bounds
from lipreg.contracts import LogitsFn, check_inputs
from lipreg.evaluation.store import Store
from lipreg.folding import folded
from lipreg.keys import example_keys
from lipreg.tracing import compiled, output, snapshot

__all__ = ["Subject", "admitted"]


class Subject(NamedTuple):
    """A model and N images; see `admitted`.

    Attributes:
      model: a snapshot of a `logits_fn`, `folded`.
      x: `[N, ...]`, inside `bounds`.
      y: int32 `[N]`.
      keys: a key for each image, `[N]`.
      bounds: of the pixels.
      batch_size: images attacked at once.
      store: where the results of a batch are kept when it is done.
      tell: is called with a line of progress after each batch.
    """

    model: Partial
    x: np.ndarray
    y: np.ndarray
    keys: Array
    bounds: Bounds
    batch_size: int
    store: Store | None
    tell: Callable[[str], None]

    @property
    def classes(self) -> int:
        """The number of logits."""
        return output(self.model, jnp.asarray(self.x[:1])).shape[1]

    def each(
        self, name: str, function: Callable, *settings: Any, rows: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """`function(*settings, keys, model, x, y)` for images, by batches: arrays `[R, ...]`.

        For all images, or those of `rows`, at least one. The function returns a dict of arrays.
        `name` is that of the results in the store, and of what is told.
        """
        program = compiled(self.model, function, *settings)
        rows = np.arange(len(self.y)) if rows is None else rows
        batches = in_batches(
            lambda keys, x, y: program(keys, self.model, x, y),
            rows,
            min(self.batch_size, len(self.y)),  # one shape, however many rows
            *(self.keys, self.x, self.y),
            store=self.store,
            name=name,
        )
        outputs, done = [], 0
        for now, result in batches:
            outputs.append(result)
            done += len(now)
            self.tell(f"{name}: {done} of {len(rows)} images")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)


def admitted(
    key: Array,
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    *,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 256,
    store: Store | None = None,
    progress: Callable[[str], None] | None = None,
) -> Subject:
    """The model as it is at this call; all images, clipped to `bounds`, and labels, checked."""
    model = snapshot(logits_fn)
    x, y = np.asarray(x), np.asarray(y)
    check_inputs(model, x, y, bounds)  # pyright: ignore[reportArgumentType]
    bounds = float(bounds[0]), float(bounds[1])
    low, high = (np.asarray(end, x.dtype) for end in bounds)
    x = np.minimum(np.maximum(x, low), high)  # np.clip has no bfloat16
    keys = example_keys(key, len(x))
    tell = progress or (lambda message: None)
    model = folded(model, jnp.asarray(x[:batch_size]))
    return Subject(model, x, y.astype(np.int32), keys, bounds, batch_size, store, tell)
