"""What the walk knows about a number that depends on x: its box, its slope, how it was made."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.lipschitz.ellipsoids import Ellipsoid
from lipreg.lipschitz.intervals import Box, outward, upper

__all__ = ["Linear", "Root", "entries", "numbers", "part_of", "summed_over"]


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

    `made` is the value that was settled; `offset` is one that this root is but for a number that is
    the same where the index is; `logsumexp` the logits that it is the log-sum-exp of, and to which
    entry each of them counts.
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
    made: Any = None
    offset: tuple[Any, "Root", np.ndarray] | None = None
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


def summed_over(way: Root, other: Root) -> np.ndarray | None:
    """To which sum each entry of `way` is added, where `other` is these sums, each at its own."""
    whole, index = part_of(other)
    if whole.sums is None or whole.sums[0] is not way:
        return None
    group = whole.sums[1]
    if index.ndim != group.ndim or np.broadcast_shapes(index.shape, group.shape) != group.shape:
        return None
    return group if group.size and (index == group).all() else None


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
