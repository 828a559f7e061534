"""Attacks that see the logits of the points they try, and no gradient (`square`)."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lipreg.attacks.copies import strongest_copy
from lipreg.attacks.precision import in_single
from lipreg.boundary import misclassified, score
from lipreg.box import Bounds
from lipreg.contracts import LogitsFn, LogitsLoss, at_least_one, check_inputs, check_norm
from lipreg.keys import fold_in
from lipreg.losses import margin
from lipreg.norms import L2, LINF, NormLike, by_name, expand, select

__all__ = ["square"]

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
TILES = 5  # on a side, where the search in l_2 starts


@in_single
def square(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    loss: LogitsLoss = margin,
    queries: int = 5000,
    initial: float = 0.8,
    restarts: int = 1,
    channels: int | None = None,
    rescale: bool = True,
) -> Array:
    """Random search over squares, kept where the loss rises (Andriushchenko et al., 1912.00049).

    In l_inf it starts from vertical stripes of `+-eps` and overwrites squares with `+-eps`, one
    sign per channel (algorithm 2). In l_2 it starts from 5 x 5 tiles of two opposite bumps each,
    and moves the mass of one window into such bumps in another, using all of the radius (algorithm
    3). A square covers the share `initial` of the pixels, halved at 10, 50, 200, ... of 10,000
    queries, with `rescale` of as many shares of `queries`; the start is the first query. An example
    stops when it is misclassified, and the search when all are.

    An image is `[H, W, ...]`, its last axes the channels, unless `channels` names their axis: 1 for
    `[B, C, H, W]`. A vector is an image of one row. A square that is wider than the image is cut to
    its width and made longer. As in the authors' code, not as in the paper, a square in l_inf that
    would change nothing is reversed in sign, and a window in l_2 is at least 3 wide. Restarts run
    as one batch.

    >>> x, y = jnp.array([[0.75, 0.5]]), jnp.array([0])
    >>> square(jax.random.key(0), lambda x: x, x, y, 0.25, queries=50)
    Array([[0.5 , 0.75]], dtype=float32)
    """
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("square", norm, LINF, L2)
    at_least_one("square", queries=queries)
    if not 0 < initial <= 1:
        raise ValueError(f"square: initial = {initial}; it is a share of the image, in (0, 1].")
    if channels is not None and not (x.ndim > 3 and 1 <= channels < x.ndim):
        raise ValueError(
            f"square: channels = {channels} of images {list(x.shape)}; choose one of the axes from "
            "1 on, so that a height and a width remain."
        )
    axis = -1 if channels is None else channels
    shown = lambda points: logits_fn(jnp.moveaxis(points, -1, axis))
    x = jnp.moveaxis(x, axis, -1)
    shape = (
        (1, math.prod(x.shape[1:]), 1) if x.ndim <= 2 else (*x.shape[1:3], math.prod(x.shape[3:]))
    )
    start, move, least = (_stripes, _overwrite, 1) if norm == LINF else (_tiles, _shift, 3)
    sides = [_sides(initial / 2**n, shape, least) for n in range(len(HALVED_AT) + 1)]
    halved_at = np.array(HALVED_AT, np.int64)
    halved_at = (halved_at * queries // 10_000 if rescale else halved_at).astype(np.int32)

    # All random numbers of a trial in one draw: several draws are slow to compile.
    chances = jax.vmap(lambda key: jax.random.uniform(key, (5 + shape[2],)))

    def one(keys: Array, x: Array, y: Array, eps: Array, _: Array | None) -> tuple[Array, Array]:
        images = x.reshape(len(x), *shape)

        def query(points: Array) -> tuple[Array, Array]:
            logits = shown(points.reshape(x.shape))
            return loss(logits, y), misclassified(lambda logits: logits, logits, y)

        def proceed(carry: tuple) -> Array:
            step, _, _, wrong = carry
            return (step < queries) & ~wrong.all()

        def body(carry: tuple) -> tuple:
            step, points, value, wrong = carry
            side = jnp.asarray(sides, jnp.int32)[(step > halved_at).sum()]
            tried = jax.vmap(partial(move, side=side, bounds=bounds))(
                chances(fold_in(keys, step)), images, points, eps
            )
            risen, fooled = query(tried)
            better = ~wrong & ((risen > value) | fooled)
            value = jnp.where(better, risen, value)
            return step + 1, select(better, tried, points), value, wrong | fooled

        v = jax.vmap(partial(start, shape=shape, dtype=x.dtype))(fold_in(keys, 0))
        moved = images + norm.project(expand(eps, v) * v, eps).astype(x.dtype)
        points = select(query(images)[1], images, jnp.clip(moved, *bounds))
        carry = jnp.int32(1), points, *query(points)
        x_adv = jax.lax.while_loop(proceed, body, carry)[1].reshape(x.shape)
        return x_adv, score(shown(x_adv), y)

    x_adv = strongest_copy(one, key, shown, x, y, eps, restarts=restarts, targets=0)
    return jnp.moveaxis(x_adv, -1, axis)


def _sides(share: float, shape: tuple[int, ...], least: int) -> tuple[int, int]:
    """The window of `share` of the pixels: a square, or longer where the image is too narrow."""
    pixels, narrow = share * shape[0] * shape[1], max(min(shape[:2]), 1)
    side = max(round(math.sqrt(pixels)), least)
    side = side if side <= narrow else max(round(pixels / narrow), least)
    return min(side, shape[0]), min(side, shape[1])


# int32 under x64 too.
_places = partial(jnp.arange, dtype=jnp.int32)


def _signs(chance: Array, dtype: np.dtype) -> Array:
    return jnp.where(chance < 0.5, -1, 1).astype(dtype)


def _window(chance: Array, side: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """A window at random: each row's and column's position in it, and a mask of its pixels."""
    places = jnp.asarray(shape[:2], jnp.int32) - side + 1
    corner = (chance * places.astype(chance.dtype)).astype(jnp.int32)
    row = _places(shape[0])[:, None] - corner[0]
    column = _places(shape[1])[None, :] - corner[1]
    return row, column, (row >= 0) & (row < side[0]) & (column >= 0) & (column < side[1])


def _bumps(row: Array, column: Array, height: Array, width: Array, dtype: np.dtype) -> Array:
    """Equation 2, on a window: the upper half is a bump, the lower half one of the other sign.

    At the distance d (in l_inf) from its centre a bump is `sum_{k > d} 1 / k^2`, over the squares
    around the centre that it consists of.
    """
    terms = 1 / np.arange(1, max(row.size, column.size) + 2) ** 2
    sums = jnp.asarray(np.cumsum([0, *terms]), dtype)
    upper = height // 2
    below = row >= upper
    rows = jnp.where(below, height - upper, upper)
    row = jnp.where(below, row - upper, row)
    ring = jnp.maximum(jnp.abs(row - rows // 2), jnp.abs(column - width // 2))
    bump = sums[jnp.maximum(rows, width) // 2 + 1] - sums[ring]
    return jnp.where(below, -bump, bump)


# One example each: where the search starts, in the unit ball, and its next trial.


def _stripes(key: Array, *, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    chance = jax.random.uniform(key, (1, *shape[1:]))
    return jnp.broadcast_to(_signs(chance, dtype), shape)


def _overwrite(
    chance: Array, x: Array, x_adv: Array, eps: Array, *, side: Array, bounds: Bounds
) -> Array:
    """Algorithm 2: one window becomes x + eps or x - eps, channel by channel."""
    _, _, inside = _window(chance[:2], side, x.shape)
    change = eps * _signs(chance[None, None, 5:], x.dtype)
    tried, reverse = (
        jnp.where(inside[..., None], jnp.clip(x + c, *bounds), x_adv) for c in (change, -change)
    )
    return jnp.where((tried == x_adv).all(), reverse, tried)


def _tiles(key: Array, *, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    height, width = (math.ceil(n / TILES) for n in shape[:2])
    row, column = _places(shape[0])[:, None], _places(shape[1])[None, :]
    tile = row // height, column // width
    chance = jax.random.uniform(key, (TILES, TILES, 1 + shape[2]))[tile]
    row, column = row % height, column % width
    bumps = jnp.where(
        chance[..., 0] < 0.5,
        _bumps(column, row, jnp.int32(width), jnp.int32(height), dtype),
        _bumps(row, column, jnp.int32(height), jnp.int32(width), dtype),
    )
    return L2.direction((_signs(chance[..., 1:], dtype) * bumps[..., None])[None])[0]


def _shift(
    chance: Array, x: Array, x_adv: Array, eps: Array, *, side: Array, bounds: Bounds
) -> Array:
    """Algorithm 3: the mass of a second window, and the unused radius, go to bumps in the first."""
    row, column, inside = _window(chance[:2], side, x.shape)
    _, _, emptied = _window(chance[2:4], side, x.shape)
    bumps = jnp.where(
        chance[4] < 0.5,
        _bumps(column, row, side[1], side[0], x.dtype),
        _bumps(row, column, side[0], side[1], x.dtype),
    )
    v = jnp.moveaxis(x_adv - x, -1, 0)  # the channels one by one
    bumps = L2.direction(jnp.where(inside, bumps, 0.0)[None])
    sign = _signs(chance[5:, None, None], x.dtype)
    unused = jnp.maximum(eps**2 - jnp.square(v).sum(), 0.0) / x.shape[2]
    mass = L2.size(jnp.where((inside | emptied)[None], v, 0.0))
    new = L2.direction(sign * bumps + L2.direction(jnp.where(inside[None], v, 0.0)))
    new = expand(jnp.sqrt(mass**2 + unused), v) * new
    v = jnp.where(inside[None], new, jnp.where(emptied[None], 0.0, v))
    v = L2.project(jnp.moveaxis(v, 0, -1)[None], eps)[0].astype(x.dtype)
    return jnp.clip(x + v, *bounds)
