"""Robustness as numbers: error, distance, error curves, medians and the table of 1810.00953.

Nobody believes an attack here: its output is classified again and its distance measured. A
distance is the size of the smallest perturbation found that changes the answer: 0 where the clean
image is already misclassified, inf where every attack failed. All functions are pure and may be
jitted; radii are traced, so a curve compiles once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.boundary import misclassified, to_boundary
from lipreg.box import Bounds
from lipreg.contracts import LogitsFn, check_radius
from lipreg.keys import example_keys, fold_in
from lipreg.norms import L2, Norm, NormLike, by_name, select, wide
from lipreg.rows import spread, to_csv, to_markdown

__all__ = [
    "distance",
    "error",
    "error_at",
    "error_curve",
    "median_distance",
    "minimal_distance",
    "nearest",
    "row",
    "spread",
    "summary",
    "to_csv",
    "to_markdown",
]

Attack = Callable[..., Array]


def error(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    """`P(argmax_k logits_k(x) != y)` over the batch: a number in [0, 1].

    >>> error(lambda x: x, jnp.eye(2), jnp.array([0, 0]))
    Array(0.5, dtype=float32)
    """
    return misclassified(logits_fn, x, y).mean()


def distance(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    x_adv: Array,
    *,
    norm: NormLike = L2,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """`||x_adv - x||` [B] where x_adv fools the model; 0 where x does; inf where neither.

    An x_adv outside `bounds` counts as a failure.

    >>> x = jnp.array([[0.6, 0.4]])
    >>> distance(lambda x: x, x, jnp.array([0]), x[:, ::-1])
    Array([0.28284273], dtype=float32)
    """
    (low, high), norm = bounds, by_name(norm)
    inside = ((x_adv >= low) & (x_adv <= high)).reshape(x.shape[0], -1).all(1)
    fooled = misclassified(logits_fn, x_adv, y) & inside
    size = jnp.where(fooled, norm.size(wide(x_adv) - wide(x)), jnp.inf)
    return jnp.where(misclassified(logits_fn, x, y), 0.0, size)


def nearest(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    epsilons: ArrayLike,
    *,
    attack: Attack,
    norm: NormLike | None = None,
    bounds: Bounds = (0.0, 1.0),
    refine: int = 8,
    unroll: int | bool = 1,
) -> tuple[Array, Array]:
    """The smallest distance that a fixed-radius attack finds over a grid of radii, [B], and where.

    The second result is the misclassified image at that distance, `[B, ...]`: x itself where it is
    misclassified, and where the attack fails, at the distance inf.

    The grid `epsilons`, increasing, is bisected per example: an image broken at a radius is broken
    at every larger one, so E radii cost `ceil(log2(E + 1))` attacks and not E. Where the attack
    would break an image at some radius, but fails at a larger one that is tried first, the distance
    comes out too large: like every attack's, it bounds the true one from above. The smallest
    distance *measured* is kept, and at the end `refine` bisections of the segment from x to the
    point found, forward passes only, bring it to the boundary.

    `attack` takes `(key, logits_fn, x, y, eps [B])`, configured by `functools.partial`. Distances
    are in its norm, and in `norm`, by default l_2, for an attack that has no option of that name.
    `unroll` is that of the loop over attacks.

    Raises: ValueError for a norm or a box that is not the attack's, and for an attack without a
    radius.
    """
    norm = _norm_of(attack, norm, bounds)
    epsilons = jnp.asarray(epsilons, wide(x).dtype)
    if epsilons.ndim != 1 or epsilons.size == 0:
        raise ValueError(f"epsilons has shape {list(epsilons.shape)}; want a list of radii [E].")
    concrete = not isinstance(epsilons, Tracer)
    if concrete and not (np.diff(np.asarray(epsilons)) > 0).all():
        raise ValueError(f"epsilons must increase; got {np.asarray(epsilons).tolist()}.")
    if concrete:
        check_radius(np.asarray(epsilons))
    keys = example_keys(key, x.shape[0])

    def body(round_: Array, carry: tuple) -> tuple:
        # Not broken below `low`; broken from `high` on, or never tried there.
        low, high, best, point = carry
        middle = (low + high) // 2
        eps = epsilons[jnp.minimum(middle, epsilons.size - 1)]
        x_adv = attack(fold_in(keys, round_), logits_fn, x, y, eps)
        size = distance(logits_fn, x, y, x_adv, norm=norm, bounds=bounds)
        # A point at the end of the ball, measured with a rounding, is inside.
        size = jnp.where(size <= eps * (1 + 1e-5), jnp.minimum(size, eps), size)
        broken = size < jnp.inf
        # A successful point may lie well inside the ball: skip the radii beyond it.
        high = jnp.where(broken, jnp.minimum(middle, jnp.searchsorted(epsilons, size)), high)
        low = jnp.minimum(jnp.where(broken, low, middle + 1), high)
        closer = size < best
        point = select(closer, x_adv, point)
        return low, high, jnp.where(closer, size, best), point

    batch = x.shape[0]
    low = jnp.zeros(batch, jnp.int32)
    high = jnp.full(batch, epsilons.size, jnp.int32)
    rounds = math.ceil(math.log2(epsilons.size + 1))
    best = jnp.where(misclassified(logits_fn, x, y), 0.0, jnp.full(batch, jnp.inf, epsilons.dtype))
    _, _, best, point = jax.lax.fori_loop(0, rounds, body, (low, high, best, x), unroll=unroll)

    closest = to_boundary(logits_fn, x, y, point, steps=refine)
    size = distance(logits_fn, x, y, closest, norm=norm, bounds=bounds)
    return jnp.minimum(best, size), select(size <= best, closest, point)


def _norm_of(attack: Attack, norm: NormLike | None, bounds: Bounds) -> Norm:
    """The norm in which an attack with a radius is measured; its box is that of the measure."""
    asked = None if norm is None else by_name(norm)
    try:
        signature = inspect.signature(attack)
    except (TypeError, ValueError):  # a callable without one
        return asked or L2
    try:
        signature.bind(*("key", "logits_fn", "x", "y", "eps"))
    except TypeError:
        raise ValueError(
            f"{_name(attack)} takes no radius: it looks for the nearest image. Measure that with "
            "curves.distance; curves.error_at gives the curve of the distances."
        ) from None
    box = signature.parameters.get("bounds")
    if box and box.default is not box.empty and tuple(box.default) != tuple(bounds):
        raise ValueError(f"bounds = {bounds}, and {_name(attack)} attacks in {box.default}.")
    option = signature.parameters.get("norm")
    own = None if option is None or option.default is option.empty else by_name(option.default)
    if asked and own and asked != own:
        raise ValueError(f"norm = {asked!r}, and {_name(attack)} attacks in {own!r}.")
    return asked or own or L2


def _name(attack: Attack) -> str:
    return getattr(getattr(attack, "func", attack), "__name__", "the attack")


def minimal_distance(
    key: Array, logits_fn: LogitsFn, x: Array, y: Array, epsilons: ArrayLike, **options: Any
) -> Array:
    """Each example's smallest distance found by a fixed-radius attack over a grid of radii, [B].

    That of `nearest`, with its options.

    >>> from lipreg import attacks
    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> d = minimal_distance(jax.random.key(0), lambda x: x, x, y, jnp.linspace(0.1, 1, 15),
    ...     attack=attacks.pgd)
    >>> d.round(2)  # the exact one is 0.2 / sqrt(2)
    Array([0.14], dtype=float32)
    """
    return nearest(key, logits_fn, x, y, epsilons, **options)[0]


def error_at(distances: ArrayLike, epsilons: ArrayLike) -> Array:
    """`P(distance <= eps)` for each radius: the error curve that distances [N] imply, [E].

    >>> error_at(jnp.array([0.0, 0.5, jnp.inf, 0.2]), jnp.array([0.0, 0.2, 1.0]))
    Array([0.25, 0.5 , 0.75], dtype=float32)
    """
    distances = jnp.asarray(distances)
    epsilons = jnp.asarray(epsilons, distances.dtype)
    return (distances[None, :] <= jnp.atleast_1d(epsilons)[:, None]).mean(1)


def error_curve(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    epsilons: ArrayLike,
    *,
    attack: Attack,
    **options: Any,
) -> Array:
    """`P(some x' with ||x' - x|| <= eps is misclassified)` as far as the attack finds one, [E].

    Never decreases in eps. Compiled once, it serves any grid of the same length; the options
    are those of `minimal_distance`, which does the work.

    >>> from functools import partial
    >>> from lipreg import attacks
    >>> x, y = jnp.array([[0.6, 0.4], [0.9, 0.1]]), jnp.array([0, 0])
    >>> curve = jax.jit(partial(error_curve, attack=attacks.pgd), static_argnums=1)
    >>> curve(jax.random.key(0), lambda x: x, x, y, jnp.array([0.1, 0.2, 0.6]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    sizes = minimal_distance(key, logits_fn, x, y, epsilons, attack=attack, **options)
    return error_at(sizes, epsilons)


def median_distance(distances: ArrayLike) -> Array:
    """The median over all examples, errors as 0 and failures as inf (1810.00953's first column).

    >>> median_distance(jnp.array([0.0, 0.5, jnp.inf]))
    Array(0.5, dtype=float32)
    """
    if not np.size(distances) or (
        not isinstance(distances, Tracer) and np.isnan(np.asarray(distances)).any()
    ):
        raise ValueError(
            "The median of no distances, or of nan; give inf for an attack that failed."
        )
    # jnp.median would average 0.5 and inf, or inf and inf by way of inf - inf = nan.
    ranked = jnp.sort(jnp.asarray(distances))
    return ranked[(len(ranked) - 1) // 2]


def row(distances: Mapping[str, ArrayLike], radii: Mapping[str, float]) -> dict[str, float]:
    """A table's row from distances [N] and a radius by norm: medians, and errors in %.

    >>> row({"l1": jnp.array([0.0, 2.0])}, {"l1": 1.0})
    {'% clean error': 50.0, 'l1 median': 0.0, '% error at l1 1': 50.0}
    """

    def percent(norm: str, eps: float) -> float:
        return round(100 * float(error_at(distances[norm], eps)[0]), 4)  # 8.0, not 8.000000566

    cells = {"% clean error": percent(next(iter(distances)), 0.0)}
    for norm, values in distances.items():
        cells[f"{norm} median"] = float(median_distance(values))
        cells[f"% error at {norm} {radii[norm]:g}"] = percent(norm, radii[norm])
    return cells


def summary(
    l2: ArrayLike, linf: ArrayLike, *, eps_l2: float = 0.1, eps_linf: float = 1 / 16
) -> dict[str, float]:
    """The `row` of 1810.00953's table from l_2 and l_inf distances [N].

    >>> summary(jnp.array([0.0, 0.2]), jnp.array([0.0, 0.1]))["% error at l2 0.1"]
    50.0
    """
    return row({"l2": l2, "linf": linf}, {"l2": eps_l2, "linf": eps_linf})
