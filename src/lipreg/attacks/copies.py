"""Restarts and targets of an attack, as copies of its images in one batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.contracts import LogitsFn, at_least_one, check_labels, check_radius
from lipreg.keys import example_keys, fold_in
from lipreg.tracing import output

__all__ = ["Targets", "check_targets", "likeliest_wrong", "strongest_copy"]

Targets = int | Array


def check_targets(targets: Array, y: Array, classes: int) -> None:
    """ValueError for targets that are not `[B, T]`, or not wrong classes of the model."""
    check_labels(targets, "targets")
    if targets.ndim != 2 or len(targets) != len(y):
        raise ValueError(f"targets have shape {list(targets.shape)}; want [{len(y)}, T].")
    if isinstance(targets, Tracer):
        return
    values = np.asarray(targets)
    if not ((values >= 0) & (values < classes)).all():
        least, most = values.min(), values.max()
        raise ValueError(f"targets from {least} to {most}; logits_fn has 0 to {classes - 1}.")
    if not isinstance(y, Tracer) and (values == np.asarray(y)[:, None]).any():
        row = int((values == np.asarray(y)[:, None]).any(1).argmax())
        raise ValueError(f"targets[{row}] = {values[row].tolist()} has the true class, {y[row]}.")


def likeliest_wrong(logits: Array, y: Array, n: int) -> Array:
    """The n classes other than y with the largest logits, the likeliest first, `[B, n]`."""
    # A masked class, with a logit of -inf, still ranks before y, which must not be returned.
    others = jnp.maximum(logits, jnp.finfo(logits.dtype).min)
    is_y = jax.nn.one_hot(y.astype(jnp.int32), logits.shape[1], dtype=bool)
    others = jnp.where(is_y, -jnp.inf, others)
    return jax.lax.top_k(others, n)[1]


def strongest_copy(
    one: Callable[..., tuple[Array, Array]],
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    restarts: int,
    targets: Targets,
) -> Array:
    """Restarts and targets of an attack as one batch, `restarts * max(targets, 1)` times as large.

    `one(keys, x, y, eps, target) -> (x_adv, score)` is the attack on the copies, `[C * B, ...]`:
    each has a key of its own, and the copies of an example approach its targets in turn. `targets`
    is a number, for that many of the likeliest wrong classes, or the classes themselves, `[B, T]`,
    which may be traced; with 0 `target` is None. Returns each example's copy with the largest
    score, `[B, ...]`, without a derivative.
    """
    batch, classes = x.shape[0], output(logits_fn, x).shape[1]
    at_least_one("an attack", restarts=restarts)
    check_radius(eps)
    if isinstance(targets, int):
        if not 0 <= targets < classes:
            raise ValueError(
                f"targets = {targets} of {classes} classes; choose 0 to {classes - 1}."
            )
        likeliest = likeliest_wrong(logits_fn(x), y, targets) if targets else None
    else:
        check_targets(targets, y, classes)
        likeliest = targets
    copies = restarts * (1 if likeliest is None else likeliest.shape[1])

    def tile(a: Array) -> Array:
        return jnp.tile(a, (copies,) + (1,) * (a.ndim - 1))  # copy by copy

    keys = example_keys(key, batch)
    keys = jax.vmap(lambda copy: fold_in(keys, copy))(jnp.arange(copies)).reshape(-1)
    target = None if likeliest is None else jnp.tile(likeliest.T.reshape(-1), restarts)
    eps = tile(jnp.broadcast_to(jnp.asarray(eps, x.dtype), (batch,)))
    x_adv, score = one(keys, tile(x), tile(y), eps, target)
    winner = jnp.argmax(score.reshape(copies, batch), axis=0)
    chosen = x_adv.reshape((copies, *x.shape))[winner, jnp.arange(batch)]
    return jax.lax.stop_gradient(chosen)
