"""What the walk knows about a number that depends on x: its box, its slope, how it was made."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.bounds.ellipsoids import Ellipsoid
from lipreg.lipschitz.bounds.intervals import Box, largest, most, outward, times, upper

__all__ = [
    "Deviation",
    "Linear",
    "Offset",
    "Root",
    "each_in",
    "entries",
    "grouped",
    "moved_from",
    "numbers",
    "part_of",
    "size",
    "summed_over",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """How a root was made: by a matrix `[m, n]` or a kernel `[O, I, ...]`.

    Attributes:
      source: the root that it was made from, as the origin and the index that `entries` returns;
        None where entries of the origin cannot be told apart.
      lip: of that root's w.
      norm: `norm(c)` is a bound of `||diag(c) A||_2`.
      place: a kernel's, for each side: how far the image is padded before its first entry, and the
        period at which it wraps around, 0 where it does not.
      channel: the axis of a kernel's outputs.
      reads, writes: a kernel's, in which layout its images come and go, and how large they are.
    """

    source: tuple["Root", np.ndarray] | None
    lip: Array
    weight: Array
    norm: Callable[[Array], Array]
    place: tuple[tuple[int, int], ...] | None = None
    channel: int = 0
    reads: Any = None
    writes: Any = None

    def by_output(self, values: Array, choose: Callable) -> Array:
        """`[O]`, the least or largest of each output's values, as `choose` says."""
        if self.place is None:
            return values.reshape(-1)
        return choose(jnp.moveaxis(values, self.channel, 0).reshape(len(self.weight), -1), axis=1)

    def to_output(self, values: Array, like: Array) -> Array:
        """`[O]` in the shape of the root."""
        if self.place is None:
            return values.reshape(like.shape)
        sides = [1] * like.ndim
        sides[self.channel] = -1
        return jnp.broadcast_to(values.reshape(sides), like.shape)


class Deviation(NamedTuple):
    """Of a root from its means over groups of entries, if `valid`."""

    of: "Root"
    group: np.ndarray
    valid: Array


class Offset(NamedTuple):
    """That a root is `value + sign s`; s is one number of `origin` where `same` is the same."""

    value: Any
    origin: "Root"
    same: np.ndarray
    sign: int


@dataclasses.dataclass(frozen=True, eq=False)
class Root:
    """w in `box`, `dw = slope * dh`, `||dh|| <= lip ||dx||`, `|dh_i| <= rows_i ||dx||`.

    A matrix or convolution also has `norm(c)`, a bound of `||diag(c) dh|| / ||dx||` for constants
    `c >= 0`, which replaces lip, and `linear`; their slope is 1. The root that is settled next has
    `units`: that root and the slope of w in it. `ellipsoid` is one of dw. `squares` is the root
    whose squares were added, and how often each of them; `sums` the root whose entries were added,
    and where each of them went.

    What was cut out of another root, its `whole`, knows where: `dh_i = dh_whole[index_i]`, or 0 for
    index -1. So pieces that are put together again are one vector, which counts once. If w, too,
    was only moved, `origin` is the root that it was taken from.

    `variance` and `centred` say of which root this one is the variance, or which less its means.
    `made` is the value that was settled; `offset` one that something was added to; `logsumexp` the
    logits that it is the log-sum-exp of, and to which entry each of them counts.
    """

    box: Box
    centre: Box | None  # w at the centre of a ball, if there is one
    slope: Box
    lip: Any  # None beside norm
    rows: Array
    norm: Callable[[Array], Array] | None = None
    ellipsoid: Ellipsoid | None = None
    linear: Linear | None = None
    units: tuple["Root", Box] | None = None
    squares: tuple["Root", int] | None = None
    sums: tuple["Root", np.ndarray] | None = None
    whole: "Root | None" = None
    index: np.ndarray | None = None
    origin: "Root | None" = None
    variance: "Deviation | None" = None
    centred: "Deviation | None" = None
    made: Any = None
    offset: "Offset | None" = None
    logsumexp: tuple["Root", np.ndarray] | None = None


def entries(root: Root) -> tuple[Root, np.ndarray] | None:
    """The root whose w was moved to make this one, itself if need be, and where its entries are.

    None for an origin that has one entry of its whole twice.
    """
    origin, (_, index) = root.origin or root, part_of(root)
    _, all_of_them = part_of(origin)
    return (origin, index) if len(np.unique(all_of_them)) == all_of_them.size else None


def part_of(root: Root) -> tuple[Root, np.ndarray]:
    """The whole that a root is a part of, itself if need be, and where."""
    if root.whole is None or root.index is None:
        return root, np.arange(root.rows.size).reshape(root.rows.shape)
    return root.whole, root.index


def moved_from(root: Root) -> Root:
    return root.origin or root


def size(root: Root) -> Array:
    """A bound of `||dw|| / ||dx||`."""
    return upper(times(root.lip, largest(most(root.slope))))


def grouped(of: Root, group: np.ndarray, way: Root) -> np.ndarray | None:
    """The group of each entry of `way`, of which `of` has the same entries, each once."""
    if of is way:
        return group
    known, own = entries(of), entries(way)
    if known is None or own is None or known[0] is not own[0]:
        return None
    once = len(np.unique(known[1])) == known[1].size and known[1].min(initial=0) >= 0
    if not once or not np.array_equal(np.sort(known[1].reshape(-1)), np.sort(own[1].reshape(-1))):
        return None
    found = np.zeros(known[1].max(initial=-1) + 1, group.dtype)
    found[known[1].reshape(-1)] = group.reshape(-1)
    return found[own[1]]


def each_in(index: np.ndarray, group: np.ndarray) -> bool:
    """Whether each entry, or a copy of it, has the number of its group."""
    if index.ndim != group.ndim or np.broadcast_shapes(index.shape, group.shape) != group.shape:
        return False
    return bool(group.size and (index == group).all())


def summed_over(way: Root, other: Root) -> np.ndarray | None:
    """To which sum each entry of `way` is added, where `other` is these sums, each at its own."""
    whole, index = part_of(other)
    group = None if whole.sums is None else grouped(*whole.sums, way)
    return group if group is not None and each_in(index, group) else None


def numbers(root: Root) -> Root:
    """Bounds that are NaN, as from `inf - inf`, become infinite."""
    centre = root.centre and outward(root.centre, 0.0)
    lip = None if root.lip is None else upper(root.lip)
    return dataclasses.replace(
        root,
        box=outward(root.box, 0.0),
        centre=centre,
        slope=outward(root.slope, 0.0),
        lip=lip,
        rows=upper(root.rows),
    )
