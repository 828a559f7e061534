"""The Lipschitz constant of labelled data, and the pairs that set it.

The search is exact, in l_inf up to ties. A pass in float32 on the device bounds the quotient of
every pair from above, rounding included; the pairs whose bound reaches the best quotient of their
image are computed again in float64, from the data as handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.batching import map_batches
from lipreg.norms import L2, LINF, Norm, NormLike, by_name

__all__ = ["DataConstant", "of_data", "worst_pairs"]

PAIRS = 4096  # computed in float64 at a time
EPS = float(np.finfo(np.float32).eps)
# In l_inf distances take few values (of binary images, one): pairs this close to a tie are tied.
TIES = 4e-6


class DataConstant(NamedTuple):
    """The Lipschitz constant of data, and for each image the partner with the largest quotient.

    Where labels are classes the partner is the nearest image of another class: `distances.mean()`
    and `np.median(distances)` say how far apart the classes are.

    Attributes:
      value: `L0`; inf where two equal images have different labels.
      pair: two images that attain it.
      quotients: `max_j ||y_i - y_j|| / ||x_i - x_j||`, float64 `[n]`.
      partners: the j that attains it, `[n]`.
      distances: `||x_i - x_j||` to that partner, float64 `[n]`.
      duplicates: the number of pairs of equal images with equal labels, which are left out.
      conflicts: the number of pairs of equal images with different labels.
      kind: "exact".
    """

    value: float
    pair: tuple[int, int]
    quotients: np.ndarray
    partners: np.ndarray
    distances: np.ndarray
    duplicates: int
    conflicts: int
    kind: str = "exact"

    @property
    def distance(self) -> float:
        """`||x_i - x_j||` of `pair`."""
        return float(self.distances[self.pair[0]])


class _Points(NamedTuple):
    """Rows in float32, their mean taken away (distances stay, rounding shrinks), and their norms.

    Attributes:
      values: `[n, d]`.
      sizes: `[n]`.
    """

    values: Array
    sizes: Array


def of_data(
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    *,
    norm: NormLike = L2,
    label_norm: NormLike = LINF,
    block: int = 256,
    progress: Callable | None = None,
) -> DataConstant:
    """`L0 = max_{i, j} ||y_i - y_j|| / ||x_i - x_j||`, the constant of the data (1808.09540).

    x is `[n, ...]`, floating; L0 is per unit of x. y is classes `[n]`, which stand for one-hot
    rows, or floating labels `[n]` or `[n, K]`. With classes and LINF this is 1 over the smallest
    distance between two classes.

    All n^2 pairs are compared, `block` rows at a time, in the memory of a few arrays `[block, n]`.
    In l_2 that is a product of matrices, in other norms it is many times slower. Data that form
    clusters a thousand times smaller than their spread leave many pairs to float64, which is slow.
    `progress` wraps the iterator over blocks, as `tqdm` does.

    Raises: ValueError for shapes and dtypes other than these, for fewer than 2 rows, for values
    that are not finite, and where all labels are equal (L0 = 0, which no pair sets).

    >>> x, y = jnp.array([[0.0], [1.0], [1.5], [3.0]]), jnp.array([0, 0, 1, 1])
    >>> of_data(x, y).value, of_data(x, y).pair
    (2.0, (1, 2))
    """
    norm, label_norm = by_name(norm), by_name(label_norm)
    x, y = np.asarray(x), np.asarray(y)
    classes = y.dtype.kind in "biu"
    _check(x, y, classes, block)
    n = len(x)
    x, y = x.reshape(n, -1), y.reshape(n, -1)
    images, labels = _identities(x), _identities(y)
    if not labels.any():
        raise ValueError(f"All {n} labels are equal: the Lipschitz constant is 0, set by no pair.")
    duplicates = _pairs(np.unique(images * n + labels, return_counts=True)[1])
    conflicts = _pairs(np.bincount(images)) - duplicates

    def exactly(i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quotients and distances of pairs with different labels, float64."""
        distances = _distances(x, i, j, norm)
        gaps = np.linalg.norm([1, -1], label_norm.p) if classes else _distances(y, i, j, label_norm)
        with np.errstate(divide="ignore"):
            return gaps / distances, distances

    bounds = partial(
        _upper_bounds,
        x=_points(x, norm),
        y=None if classes else _points(y, label_norm),
        labels=jnp.asarray(labels, jnp.int32),
        norm=norm,
        label_norm=label_norm,
    )

    def best(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The partners of some rows, with quotients and distances."""
        upper, likely = map(np.asarray, bounds(rows))
        known, _ = exactly(rows, likely)
        # Not `>=`: data beyond the range of float32 make bounds that are not numbers.
        candidates = ~(upper < known.astype(np.float32)[:, None])
        candidates[np.arange(len(rows)), likely] = True
        row, j = np.nonzero(candidates)
        quotient, distance = exactly(rows[row], j)
        order = np.lexsort((-quotient, row))
        first = order[np.searchsorted(row, np.arange(len(rows)))]
        return j[first], quotient[first], distance[first]

    partners, quotients, distances = map_batches(
        best, min(block, n), np.arange(n), progress=progress
    )
    worst = int(quotients.argmax())
    pair = (worst, int(partners[worst]))
    value = float(quotients[worst])
    return DataConstant(value, pair, quotients, partners, distances, duplicates, conflicts)


def worst_pairs(constant: DataConstant, k: int) -> np.ndarray:
    """The k pairs `i < j` with the largest quotients, the largest first, `[k, 2]`.

    A pair is listed if one of its images has no larger quotient with another image, so there may
    be fewer than k. These are the images to check for wrong labels and near duplicates.

    >>> x, y = jnp.array([[0.0], [1.0], [1.5], [3.0]]), jnp.array([0, 0, 1, 1])
    >>> worst_pairs(of_data(x, y), 2)
    array([[1, 2],
           [0, 2]])
    """
    order = np.argsort(-constant.quotients, kind="stable")
    pairs = np.sort(np.stack([order, constant.partners[order]], 1), axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return pairs[np.sort(first)[:k]]


def _check(x: np.ndarray, y: np.ndarray, classes: bool, block: int) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; want floating, L0 is per unit of x.")
    if x.ndim < 2 or len(x) < 2 or not x.size:
        raise ValueError(f"x has shape {list(x.shape)}; want [n, ...] with n of 2 or more.")
    floating = jnp.issubdtype(y.dtype, jnp.floating)
    if y.shape[:1] != x.shape[:1] or not (y.ndim == 1 if classes else floating and y.ndim < 3):
        raise ValueError(
            f"y has shape {list(y.shape)}, dtype {y.dtype}; want classes [{len(x)}] or floating "
            f"labels [{len(x)}] or [{len(x)}, K]."
        )
    for name, a in {"x": x, "y": y}.items():
        wrong = ~np.isfinite(a).reshape(len(a), -1).all(1)
        if wrong.any():
            raise ValueError(f"{name}[{wrong.argmax()}] has values that are not finite.")
    if block < 1:
        raise ValueError(f"block = {block}; it must be 1 or more.")


def _identities(a: np.ndarray) -> np.ndarray:
    """A number for each row `[n]`, the same where rows are equal."""
    rows = np.ascontiguousarray(a) + a.dtype.type(0)  # -0 becomes 0
    return np.unique(rows.view(np.dtype((np.void, rows[0].nbytes))), return_inverse=True)[1].ravel()


def _pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _points(a: np.ndarray, norm: Norm) -> _Points:
    a = a.astype(np.promote_types(a.dtype, np.float32), copy=False)
    values = jnp.asarray((a - a.mean(0, dtype=np.float64).astype(a.dtype)).astype(np.float32))
    return _Points(values, jax.jit(norm.size)(values))


def _distances(a: np.ndarray, i: np.ndarray, j: np.ndarray, norm: Norm) -> np.ndarray:
    """`||a_i - a_j||` for each pair, float64."""
    parts = [slice(start, start + PAIRS) for start in range(0, len(i), PAIRS)]
    differences = (a[i[p]].astype(np.float64) - a[j[p]].astype(np.float64) for p in parts)
    return np.concatenate([np.linalg.norm(v, norm.p, axis=1) for v in differences])


@partial(jax.jit, static_argnames=("norm", "label_norm"))
def _upper_bounds(
    i: Array, x: _Points, y: _Points | None, labels: Array, norm: Norm, label_norm: Norm
) -> tuple[Array, Array]:
    """Upper bounds of the quotients of rows i with all rows, `[B, n]`, and their argmax, `[B]`.

    -1 for equal labels. A sum of d products in float32 is wrong by at most `d u` times the sum of
    their sizes, u = 2^-24, in whatever order (Higham 2002, section 3.1). With the norms and the
    rounding of x that is `(2 d + 24) u`; twice as much is taken off.
    """
    rows = _Points(x.values[i], x.sizes[i])
    if norm == L2:
        squares = jnp.square(rows.sizes)[:, None] + jnp.square(x.sizes)[None]
        # The device's default may be a product of 16-bit numbers.
        products = jnp.matmul(rows.values, x.values.T, precision=jax.lax.Precision.HIGHEST)
        apart = jnp.sqrt(jnp.maximum(squares - 2 * products - _slack(x, norm) * squares, 0.0))
    else:
        apart, rounding = _differences(rows, x, norm)
        apart = jnp.maximum(apart - rounding, 0.0)
    if y is None:
        gap = label_norm.size(jnp.array([[1.0, -1.0]]))[:, None]
    else:
        gap, rounding = _differences(_Points(y.values[i], y.sizes[i]), y, label_norm)
        gap = gap + rounding
    upper = jnp.where(labels[i][:, None] == labels[None], -1.0, gap / apart)
    upper = upper * (1 - TIES) if norm == LINF else upper
    return upper, jnp.argmax(upper, axis=1)


def _slack(a: _Points, norm: Norm) -> float:
    return 2 * EPS if norm == LINF else (2 * a.values.shape[1] + 32) * EPS


def _differences(rows: _Points, a: _Points, norm: Norm) -> tuple[Array, Array]:
    """`||a_i - a_j||` and a bound of its rounding error, `[B, n]`."""
    # Mapped over all rows, so that the few of the batch stay in the cache.
    sizes = jax.lax.map(lambda row: norm.size(rows.values - row[None]), a.values).T
    return sizes, _slack(a, norm) * sizes + EPS * (rows.sizes[:, None] + a.sizes[None])
