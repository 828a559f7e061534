"""What every attack shares: inputs checked, a key per example, random points, copies, the boundary.

Functions in this file that treat examples one by one accept and return batches.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.norms import Norm, expand, wide
from lipreg.tracing import output

__all__ = [
    "Bounds",
    "LogitsFn",
    "LogitsLoss",
    "Targets",
    "at_least_one",
    "check_inputs",
    "check_inside",
    "check_labels",
    "check_norm",
    "check_radius",
    "check_scale",
    "check_targets",
    "example_keys",
    "fold_in",
    "likeliest_wrong",
    "misclassified",
    "nudge",
    "random_in_ball",
    "select",
    "strongest_copy",
    "to_boundary",
    "within",
]

LogitsFn = Callable[[Array], Array]
LogitsLoss = Callable[[Array, Array], Array]
Bounds = tuple[float, float]
Targets = int | Array


def example_keys(key: Array, n: int) -> Array:
    """One key per example: `fold_in(key, row)`; a batch `[n]` of keys is returned as it is."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"A key of dtype {key.dtype}; make it with jax.random.key(seed).")
    return key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(n))


def fold_in(keys: Array, number: ArrayLike) -> Array:
    """`fold_in(key, number)` for each key of a batch `[B]`: the keys of one round of an attack."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def at_least_one(attack: str, **options: float) -> None:
    """ValueError for a count, such as `steps`, below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{attack}: {name} = {value}; it must be at least 1.")


def check_norm(attack: str, norm: Norm, *served: Norm) -> None:
    """ValueError for a norm that the attack does not serve, with those that it does."""
    if norm not in served:
        choices = ", ".join(n.name for n in served)
        raise ValueError(f"{attack}: no form for the norm {norm.name}; choose one of {choices}.")


def check_inside(x: Array, bounds: Bounds) -> None:
    """ValueError for x outside of the box, and for a box that is none."""
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds = {bounds}: the first must be less than the second.")
    if isinstance(x, Tracer):
        return
    values = np.asarray(x)
    # Pixels normalised in x's type differ by one rounding from bounds normalised in another.
    room = float(jnp.finfo(values.dtype).eps)
    least, most = float(values.min()), float(values.max())
    if not (least >= low - room * abs(low) and most <= high + room * abs(high)):
        raise ValueError(f"x has values from {least:.9g} to {most:.9g}, outside bounds {bounds}.")


def check_scale(attack: str, bounds: Bounds) -> None:
    """ValueError for an infinite box, for attacks that measure lengths in widths of the box."""
    if not np.isfinite(bounds).all():
        raise ValueError(
            f"{attack}: bounds = {bounds}; it measures in widths of the box, which must be finite. "
            "fgsm, pgd, apgd, fab, deepfool and square need no such box."
        )


def check_radius(eps: ArrayLike) -> None:
    """ValueError for a radius that is negative or NaN."""
    if not isinstance(eps, Tracer) and not (np.asarray(eps) >= 0).all():
        raise ValueError(f"eps = {eps}; a radius must be 0 or more.")


def check_labels(y: ArrayLike, what: str = "y") -> None:
    """ValueError for labels that are not integers."""
    dtype = jnp.result_type(y)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{what} has dtype {dtype}; want classes, which are integers.")


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


def check_inputs(logits_fn: LogitsFn, x: Array, y: Array, bounds: Bounds) -> None:
    """One clear sentence for what users get wrong; values are looked at outside of `jit` only."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; attacks need floating-point pixels in {bounds}.")
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y has shape {list(y.shape)}, dtype {y.dtype}; want classes [{len(x)}].")
    if not x.size:
        raise ValueError(f"x has shape {list(x.shape)}: no images.")
    logits = output(logits_fn, x)
    if not hasattr(logits, "shape") or logits.ndim != 2 or logits.shape[0] != x.shape[0]:
        got = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(f"logits_fn must return [{x.shape[0]}, K]; it returned {got}.")
    if logits.shape[1] < 2:
        raise ValueError(f"logits_fn returned {logits.shape[1]} class; an attack needs at least 2.")
    last = logits.shape[1] - 1
    # In numpy: inside jit, where y may be a constant, jnp would give a tracer.
    if not isinstance(y, Tracer):
        classes = np.asarray(y)
        if not ((classes >= 0) & (classes <= last)).all():
            least, most = classes.min(), classes.max()
            raise ValueError(f"y has values from {least} to {most}; logits_fn has 0 to {last}.")
    check_inside(x, bounds)


def misclassified(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    """`argmax_k logits_k(x) != y`, [B]; also true where a logit is nan or inf.

    A logit of -inf is legal and masks its class. Classes of any integer type are compared as int32.
    """
    check_labels(y)
    logits = logits_fn(x)
    answer = jnp.argmax(logits, -1).astype(jnp.int32)
    return (answer != jnp.asarray(y).astype(jnp.int32)) | ~jnp.isfinite(logits.max(-1))


def select(mask: Array, a: Array, b: Array) -> Array:
    """Row i of `a` where `mask[i]`, of `b` elsewhere: `[B], [B, ...], [B, ...] -> [B, ...]`."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)


def nudge(x: Array, norm: Norm, bounds: Bounds) -> Array:
    """The least length of a step, for when the linearised boundary is at x itself: the size in
    `norm` of a millionth of the box's width in every pixel; a millionth of 1 if it is infinite.
    """
    width = bounds[1] - bounds[0] if np.isfinite(bounds).all() else 1.0
    return norm.size(jnp.full((1, *x.shape[1:]), 1e-6 * width, x.dtype))[0]


def within(slope: Array, x: Array, bounds: Bounds) -> Array:
    """The slope, with 0 in entries that cannot follow it because x is at the bound already."""
    low, high = bounds
    return jnp.where(jnp.where(slope > 0, x < high, x > low), slope, 0.0)


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
    is their number, the likeliest wrong classes, or the classes themselves, `[B, T]`, which may be
    traced; with 0 `target` is None. Returns, `[B, ...]`, the copy with the largest score of each
    example, without a derivative.
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


def to_boundary(logits_fn: LogitsFn, x: Array, y: Array, x_adv: Array, *, steps: int = 10) -> Array:
    """The misclassified end of `steps` bisections between x and x_adv, forward passes only.

    x itself where it is misclassified, and where x_adv is not: an attack that failed.
    """
    fooled = misclassified(logits_fn, x_adv, y)
    start, way = wide(x), wide(x_adv) - wide(x)
    at = lambda fraction: (start + expand(fraction, way) * way).astype(x.dtype)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        """Fractions of the way to x_adv: right at the first, misclassified at the second."""
        right, wrong = ends
        middle = (right + wrong) / 2
        fooled = misclassified(logits_fn, at(middle), y)
        return jnp.where(fooled, right, middle), jnp.where(fooled, middle, wrong)

    ends = jnp.zeros(x.shape[0], way.dtype), jnp.ones(x.shape[0], way.dtype)
    _, fraction = jax.lax.fori_loop(0, steps, halve, ends)
    # The end itself as it was handed in: x + 1 (x_adv - x) may round to another point.
    nearest = select(fraction < 1, at(fraction), x_adv)
    # Classified again: in another program the last bit may differ.
    nearest = select(misclassified(logits_fn, nearest, y), nearest, x_adv)
    return select(misclassified(logits_fn, x, y) | ~fooled, x, nearest)


def random_in_ball(keys: Array, x: Array, norm: Norm) -> Array:
    """A random point of the unit ball, one key per example; in l_inf uniform, in other norms its
    size is: nearly all of a ball's volume is at its surface when there are hundreds of pixels, and
    noise of full size is one that an attack has to undo.
    """
    shape, dtype, n = x.shape[1:], x.dtype, math.prod(x.shape[1:])
    if not n:
        return x

    def start(key: Array) -> Array:
        if norm.p == float("inf"):
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
        to_point, to_size = jax.random.split(key)
        if norm.p == 2:  # random.ball, for any p, draws slow gamma samples
            point = jax.random.normal(to_point, (1, n), dtype)
        else:
            point = jax.random.ball(to_point, n, norm.p, dtype=dtype)[None]
        size = jax.random.uniform(to_size, (1,), dtype) / jnp.maximum(norm.size(point), 1e-30)
        return (point * size[:, None]).reshape(shape)

    return jax.vmap(start)(keys)
