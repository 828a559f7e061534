"""What is proved of a function of images: its interval and its Lipschitz constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from lipreg.box import check_finite, check_inside
from lipreg.contracts import at_least_one
from lipreg.float64 import in_float64
from lipreg.lipschitz.bounds.declared import check
from lipreg.lipschitz.bounds.exponentials import without_common
from lipreg.lipschitz.bounds.intervals import Box, largest, length, outward, product, times, upper
from lipreg.lipschitz.bounds.values import Value, bound
from lipreg.lipschitz.bounds.walk import walk_from
from lipreg.tracing import snapshot, trace

__all__ = ["LipschitzBound", "bounder", "interval", "lipschitz"]


MARGIN = 1e-6  # relative, for results of float64 that are returned in another type


class LipschitzBound(NamedTuple):
    """Bounds of `||f(u) - f(v)||_2 / ||u - v||_2` and of `|m(u) - m(v)| / ||u - v||_2`, proved.

    Attributes:
      output: of f, `[B]`.
      margins: of every difference of two outputs `m = z_j - z_k`, `[B, K, K]`; where `bounder` was
        given classes y, only of `z_y - z_k`, `[B, 1, K]`.
      kind: "certified", or "estimate" with a constant that was declared without a proof.
      eps: the radius around each example within which they hold.
    """

    output: Array
    margins: Array
    kind: str = "certified"
    eps: ArrayLike = math.inf


def interval(f: Callable[[Array], Array], low: Array, high: Array) -> Box:
    """`low' <= f(x) <= high'` for all `low <= x <= high`: interval propagation (1810.12715).

    `low` and `high` are `[B, ...]`, the results shaped as f's output: computed in float64, rounded
    outwards and widened by 1e-6 of their size, and infinite where nothing is proved, as for `1 / x`
    about 0. May be jitted and differentiated in reverse; outside of `jit` each call compiles.

    Raises: ValueError where a primitive has no rule, or `low > high`, or f returns another number
      of arrays or examples.

    >>> interval(lambda x: x @ jnp.array([[1.0], [-2.0]]), jnp.zeros((1, 2)), jnp.ones((1, 2)))
    (Array([[-2.0000021]], dtype=float32), Array([[1.0000011]], dtype=float32))
    """
    if low.shape != high.shape or low.ndim < 2 or not low.size:
        raise ValueError(f"low {list(low.shape)} and high {list(high.shape)}: want [B, ...] twice.")
    _check_floating(low=low, high=high)
    if not isinstance(low, Tracer) and not isinstance(high, Tracer):
        count = int((~(np.asarray(low) <= np.asarray(high))).sum())
        if count:
            raise ValueError(f"low <= high does not hold in {count} of {low.size} entries.")
    traced, _ = trace(snapshot(f), low[:1])
    shapes = [list(out.shape) for out in traced.out_avals]
    if len(shapes) != 1 or shapes[0][:1] != [1]:
        raise ValueError(f"f must return one array [B, ...]; for one example it returned {shapes}.")

    # Compiled, because the Lipschitz half of the walk is then left out.
    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def run(constants: list[Array], low: Array, high: Array) -> Box:
        out = walk_from(traced, constants, None, (low, high), None)
        box = bound(out)[0] if isinstance(out, Value) else (out, out)
        return box[0][0], box[1][0]

    dtype = traced.out_avals[0].dtype
    _check_floating(**{"f's output": traced.out_avals[0]})

    def wide(constants: list[Array], low: Array, high: Array) -> Box:
        least, most = run(constants, low.astype(float), high.astype(float))
        return _widened(least, -1, dtype), _widened(most, 1, dtype)

    return in_float64(wide)(traced.consts, low, high)


def lipschitz(
    f: Callable[[Array], Array],
    x: Array,
    eps: ArrayLike = math.inf,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> LipschitzBound:
    """`sup ||f(u) - f(v)||_2 / ||u - v||_2` over u, v in the l2 ball of radius eps, bounded above.

    The ball around each `x [B, ...]` is cut with the box `bounds`. `eps` is a number or `[B]`; inf,
    the default, stands for all of the box, and gives one number for all examples. A dense layer
    counts with its spectral norm, the units that are off left out; a convolution with the largest
    spectral norm of its kernel's Fourier transform, which is an upper bound for any zero padding
    (Sedghi et al., 1805.10408, on a torus large enough for no window to wrap around). Exact for a
    linear map.

    Call it outside of `jit`, with concrete parameters. Each call compiles a program of its own, in
    float64, and computes the norms of all layers anew, so hand in many examples at once, and use
    `bounder` for several eps. A bound is inf where nothing is proved, as for a step; it is rounded
    up to the type of x. Norms of wide layers cost the cube of their smaller side, per example where
    eps is finite.

    Raises: ValueError where a primitive has no rule, or x is outside of `bounds`.

    >>> f = lambda x: x @ jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> lipschitz(f, jnp.zeros((1, 2))).margins.round(3)  # ||(3, -4)||
    Array([[[0., 5.],
            [5., 0.]]], dtype=float32)
    """
    return bounder(f, x, bounds=bounds)(eps)


def bounder(
    f: Callable[[Array], Array],
    x: Array,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    y: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Callable[[ArrayLike], LipschitzBound]:
    """`eps -> lipschitz(f, x, eps, bounds=bounds)`, compiled once for all finite eps.

    With classes `y [B]` it computes only the K margins of `z_y`, `[B, 1, K]`, not all K^2; with a
    `batch_size` so many examples at a time.

    >>> bound_at = bounder(lambda x: jax.nn.relu(x - 0.5), jnp.zeros((1, 1)))
    >>> [round(bound_at(eps).output.item(), 4) for eps in (0.25, 0.75)]
    [0.0, 1.0]
    """
    check_finite(bounds)
    at_least_one("lipschitz", batch_size=1 if batch_size is None else batch_size)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"x has shape {list(x.shape)}; want examples [B, ...], B >= 1.")
    _check_floating(x=x)
    traced, _ = trace(snapshot(f), x[:1])
    shapes = [out.shape for out in traced.out_avals]
    shape = shapes[0] if len(shapes) == 1 else ()
    if len(shape) != 2 or shape[0] != 1:
        found = ", ".join(str(list(one)) for one in shapes) or "nothing"
        raise ValueError(f"f must return [B, K]; for one example it returned {found}.")
    _check_floating(**{"f's output": traced.out_avals[0]})
    if any(isinstance(value, Tracer) for value in (x, *traced.consts)):
        raise ValueError("lipschitz needs numbers, not tracers: call it outside of jit and grad.")
    kind = check(traced, x, bounds)
    points = np.asarray(x, np.float64)
    # The rows of margins to compute: each example's K, or that of its class.
    every = np.arange(shape[1], dtype=np.int32)
    rows, row = (every, None) if y is None else np.unique(np.asarray(y), return_inverse=True)
    own = np.broadcast_to(every, (len(x), len(every))) if y is None else np.asarray(y)[:, None]
    check_inside(x, bounds)
    low, high = min(bounds[0], points.min()), max(bounds[1], points.max())  # by a rounding of x

    def one(
        constants: list[Array], x: Array, eps: Array | None, classes: Array
    ) -> tuple[Array, Array]:
        box = jnp.full_like(x, low), jnp.full_like(x, high)
        if eps is not None:
            ball = outward((x - eps, x + eps))
            box = jnp.maximum(ball[0], box[0]), jnp.minimum(ball[1], box[1])
        out = walk_from(traced, constants, None if eps is None else x, box, eps)
        if not isinstance(out, Value):
            return jnp.zeros(()), jnp.zeros((classes.size, shape[1]))
        output, margins = _constants(out, classes)
        if (logits := without_common(out)) is not out:
            margins = jnp.minimum(margins, _constants(logits, classes)[1])
        return output, margins

    @jax.jit
    def run(constants: list[Array], *given: Any) -> tuple[Array, Array]:
        if batch_size is None or len(given[0]) <= batch_size:
            return jax.vmap(partial(one, constants))(*given)
        return jax.lax.map(lambda row: one(constants, *row), given, batch_size=batch_size)

    def bound_at(eps: ArrayLike) -> LipschitzBound:
        if isinstance(eps, Tracer):
            raise ValueError("eps is a tracer; lipschitz needs numbers: call it outside of jit.")
        radii = np.asarray(eps, np.float64)
        if radii.shape not in ((), points.shape[:1]) or not (radii >= 0).all():
            raise ValueError(f"eps = {eps}: want a radius >= 0, or one per example [{len(x)}].")
        everywhere = bool(np.isinf(radii).all())
        radii = np.broadcast_to(radii, points.shape[:1])
        with jax.enable_x64(True):
            # The whole box is the same for all examples, and has no centre.
            given = (points[:1], None, rows[None]) if everywhere else (points, radii, own)
            constants = run(traced.consts, *given)
            output, margins = (_widened(upper(a), 1, x.dtype) for a in constants)
        if y is not None:
            margins = margins[0, row][:, None] if everywhere else margins
        output = jnp.broadcast_to(output, (len(x),))
        margins = jnp.broadcast_to(margins, (len(x), *margins.shape[1:]))
        return LipschitzBound(output, margins, kind, math.inf if everywhere else radii)

    return bound_at


def _check_floating(**arrays: Any) -> None:
    for name, a in arrays.items():
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {a.dtype}; want real floating numbers.")


def _widened(a: Array, sign: int, dtype: Any) -> Array:
    """Farther out by MARGIN and by the rounding to dtype; 0 and what is infinite stay."""
    info = jnp.finfo(dtype)
    room = (MARGIN + float(info.eps)) * jnp.abs(a) + jnp.where(a == 0, 0.0, float(info.tiny))
    return jnp.where(jnp.isfinite(a), a + sign * room, a).astype(dtype)


def _constants(value: Value, classes: Array) -> tuple[Array, Array]:
    """Lipschitz constants of the outputs, `[1, K]`, and of `z_j - z_k`, j in `classes`, `[R, K]`.

    `d(z_j - z_k) = (s_j a_j - s_k a_k) dx` with rows a of A and slopes s in a box: the norm is
    convex in s, so largest at a corner.
    """
    root = value.root
    _, slope, _ = bound(value)
    low, high = (s[0] for s in product(slope, root.slope))
    most = jnp.maximum(jnp.abs(low), jnp.abs(high))
    rows = times(most, root.rows[0])
    norm = root.norm or (lambda c: times(largest(c), root.lip))
    output = jnp.minimum(upper(norm(most[None])), length(rows))
    if root.ellipsoid is not None:  # that of the root times its own slopes
        low, high = (s[0] for s in slope)
    # Relative to the larger of a pair, since the squares of small slopes would underflow; where it
    # is infinite, inf / inf is no number, and the bound infinite.
    steep = jnp.maximum(jnp.abs(low), jnp.abs(high))
    steepest = jnp.maximum(steep[classes, None], steep[None])
    relative = lambda s: s / jnp.where(steepest > 0, steepest, 1.0)
    is_class = jnp.arange(low.size, dtype=classes.dtype)[None] == classes[:, None]
    if root.ellipsoid is None:
        unit, terms = norm(jnp.ones_like(root.rows)), 1
        squares, gram = jnp.ones_like(low), is_class.astype(low.dtype)
    else:
        gram, unit, terms = root.ellipsoid
        squares, gram = jnp.diagonal(gram), gram[classes]
    corners = [
        a**2 * squares[classes, None] - 2 * a * b * gram + b**2 * squares[None]
        for a in (relative(low[classes, None]), relative(high[classes, None]))
        for b in (relative(low[None]), relative(high[None]))
    ]
    # Where two rows nearly agree the squares cancel; this bounds the rounding error that remains.
    sizes = [relative(steep[j]) * jnp.sqrt(squares[j]) for j in ((classes, None), (None,))]
    rounding = 4 * (terms + 4) * float(jnp.finfo(gram.dtype).eps)
    rounding = rounding * (sizes[0] + sizes[1]) ** 2
    margins = jnp.sqrt(jnp.maximum(reduce(jnp.maximum, corners), 0.0) + rounding)
    margins = times(upper(margins), times(steepest, unit))
    margins = jnp.minimum(upper(margins), upper(rows[classes, None] + rows[None]))
    return output, jnp.where(is_class, 0.0, margins)
