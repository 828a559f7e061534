"""Proved bounds of any function of images, read off its jaxpr: intervals and Lipschitz constants.

No list of layers is asked for: a linen, nnx or plain function is traced, and its primitives are
walked in two domains at once, for all inputs of a box or ball:
- interval: `low <= v <= high`, entry by entry (interval bound propagation, 1810.12715);
- Lipschitz: `||dv||_2 <= lip ||dx||_2`, and `|dv_i| <= rows_i ||dx||_2` for each entry.

A value is a root, which is the result of the last operation that mixed entries, and the elementwise
expression built on it since. The slopes of the expression are bounded when the next mixing
operation asks for them. So a normalisation joins the weights before it, relu units that are off
drop out of the weights after it, and an activation written in several operations, `x sigmoid(x)`,
is bounded cell by cell as one function.

The function is taken one example at a time and in exact arithmetic: what its own floating point
adds is not bounded. A primitive without a rule is refused by name.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal
from jax.typing import ArrayLike

from lipreg import convolution
from lipreg.lipschitz import mixing
from lipreg.lipschitz.slopes import ELEMENTWISE, Box, most, product
from lipreg.lipschitz.values import Root, Value, bound, settle

__all__ = ["LipschitzBound", "bounder", "interval", "lipschitz"]


class LipschitzBound(NamedTuple):
    """Bounds of `||f(u) - f(v)||_2 / ||u - v||_2` and of `|m(u) - m(v)| / ||u - v||_2`, proved.

    Attributes:
      output: of f, `[B]`.
      margins: of every difference of two outputs `m = z_j - z_k`, `[B, K, K]`.
      kind: "certified".
    """

    output: Array
    margins: Array
    kind: str = "certified"


def interval(f: Callable[[Array], Array], low: Array, high: Array) -> Box:
    """`low' <= f(x) <= high'` for all `low <= x <= high`: interval propagation (1810.12715).

    `low` and `high` are `[B, ...]`, the results as f's output. May be jitted and differentiated;
    outside of `jit` it compiles at every call.

    Raises: ValueError where a primitive has no rule, or `low > high`.

    >>> interval(lambda x: x @ jnp.array([[1.0], [-2.0]]), jnp.zeros((1, 2)), jnp.ones((1, 2)))
    (Array([[-2.]], dtype=float32), Array([[1.]], dtype=float32))
    """
    if low.shape != high.shape or low.ndim < 2 or not low.size:
        raise ValueError(f"low {list(low.shape)} and high {list(high.shape)}: want [B, ...] twice.")
    if not isinstance(low, Tracer) and not isinstance(high, Tracer):
        count = int((~(np.asarray(low) <= np.asarray(high))).sum())
        if count:
            raise ValueError(f"low <= high does not hold in {count} of {low.size} entries.")
    traced = jax.make_jaxpr(f)(low[:1])

    def one(low: Array, high: Array) -> Box:
        centre, value = _walk_from(traced, traced.consts, (low + high) / 2, (low, high), None)
        return (
            (centre[0], centre[0])
            if value is None
            else jax.tree.map(lambda v: v[0], bound(value)[0])
        )

    # Compiled, because the Lipschitz half of the walk is then left out.
    return jax.jit(jax.vmap(one))(low, high)


def lipschitz(
    f: Callable[[Array], Array],
    x: Array,
    eps: ArrayLike = math.inf,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> LipschitzBound:
    """`sup ||f(u) - f(v)||_2 / ||u - v||_2` over u, v in the l2 ball of radius eps, bounded above.

    The ball around each `x [B, ...]` is cut with the box `bounds`; `eps`, a number or `[B]`, inf by
    default: the whole box, and one number for all examples. A dense layer counts with its spectral
    norm, the units that are off left out; a convolution with the largest spectral norm of its
    kernel's Fourier transform, which is an upper bound for any zero padding (Sedghi et al.,
    1805.10408, on a torus large enough for no window to wrap around). Exact for a linear map.

    Called outside of `jit`, the parameters being numbers: each call compiles a program of its own,
    in float64, and takes the norms of all layers anew, so hand in many examples at once, and take
    `bounder` for several eps. A bound is inf where nothing is proved, as for a step. Norms of wide
    layers cost the cube of their smaller side, per example where eps is finite.

    Raises: ValueError where a primitive has no rule, or x is outside of `bounds`.

    >>> f = lambda x: x @ jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> lipschitz(f, jnp.zeros((1, 2))).margins.round(3)  # ||(3, -4)||
    Array([[[0., 5.],
            [5., 0.]]], dtype=float32)
    """
    return bounder(f, x, bounds=bounds)(eps)


def bounder(
    f: Callable[[Array], Array], x: Array, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Callable[[ArrayLike], LipschitzBound]:
    """`eps -> lipschitz(f, x, eps, bounds=bounds)`, compiled once for all finite eps.

    >>> of_radius = bounder(lambda x: jax.nn.relu(x - 0.5), jnp.zeros((1, 1)))
    >>> [of_radius(eps).output.item() for eps in (0.25, 0.75)]
    [0.0, 1.0000009536743164]
    """
    low, high = bounds
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"bounds = {bounds}: want two finite numbers, the first the smaller.")
    if x.ndim < 2 or not len(x):
        raise ValueError(f"x has shape {list(x.shape)}; want examples [B, ...], B >= 1.")
    traced = jax.make_jaxpr(f)(x[:1])
    shape = traced.out_avals[0].shape
    if len(traced.out_avals) != 1 or len(shape) != 2 or shape[0] != 1:
        raise ValueError(f"f must return [B, K]; for one example it returned {list(shape)}.")
    if any(isinstance(value, Tracer) for value in (x, *traced.consts)):
        raise ValueError("lipschitz needs numbers, not tracers: call it outside of jit and grad.")
    points = np.asarray(x, np.float64)
    if not ((points >= low) & (points <= high)).all():
        raise ValueError(f"x from {points.min():g} to {points.max():g}: outside bounds {bounds}.")

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def run(constants: list[Array], x: Array, eps: Array) -> tuple[Array, Array]:
        box = jnp.maximum(x - eps, low), jnp.minimum(x + eps, high)
        _, value = _walk_from(traced, constants, x, box, eps)
        if value is None:
            return jnp.zeros(()), jnp.zeros((shape[1], shape[1]))
        return _constants(value)

    def of_radius(eps: ArrayLike) -> LipschitzBound:
        if isinstance(eps, Tracer):
            raise ValueError("eps is a tracer; lipschitz needs numbers: call it outside of jit.")
        radii = np.asarray(eps, np.float64)
        if radii.shape not in ((), points.shape[:1]) or not (radii >= 0).all():
            raise ValueError(f"eps = {eps}: want a radius >= 0, or one per example [{len(x)}].")
        whole = bool(np.isinf(radii).all())
        radii = np.broadcast_to(radii, points.shape[:1])
        with jax.enable_x64(True):
            found = run(traced.consts, *(a[:1] if whole else a for a in (points, radii)))
            # Above the rounding of float64, and of the result to x's type.
            found = [
                jnp.where(jnp.isnan(a), jnp.inf, a * (1 + 1e-6)).astype(x.dtype) for a in found
            ]
        output, margins = (jnp.broadcast_to(a, (len(x), *a.shape[1:])) for a in found)
        return LipschitzBound(output, margins)

    return of_radius


def _constants(value: Value) -> tuple[Array, Array]:
    """Lipschitz constants of the outputs `[1, K]` and of their differences `[K, K]`.

    `d(z_j - z_k) = (s_j a_j - s_k a_k) dx` with rows a of A and slopes s in a box: the norm is
    convex in s, so largest at a corner.
    """
    root = value.root
    _, slope, _ = bound(value)
    low, high = (s[0] for s in product(slope, root.slope))
    most = jnp.maximum(jnp.abs(low), jnp.abs(high))
    rows = most * root.rows[0]
    norm = root.norm or (lambda c: c.max() * root.lip)
    output = jnp.minimum(norm(most[None]), jnp.linalg.norm(rows))
    gram = root.gram
    if gram is None:
        gram = jnp.eye(low.size) * norm(jnp.ones_like(root.rows)) ** 2
    squares = jnp.diagonal(gram)
    corners = [
        (a**2 * squares)[:, None] - 2 * a[:, None] * b[None] * gram + (b**2 * squares)[None]
        for a in (low, high)
        for b in (low, high)
    ]
    margins = jnp.sqrt(jnp.maximum(reduce(jnp.maximum, corners), 0.0))
    margins = jnp.minimum(margins, rows[:, None] + rows[None])
    return output, jnp.where(jnp.eye(low.size, dtype=bool), 0.0, margins)


# The walk. A variable is a pair: its number at the centre of the box, and a value or, of a
# constant, None.

MOVES = {"broadcast_in_dim", "copy", "copy_p", "dynamic_slice", "name", "pad", "reshape", "rev"}
MOVES |= {"slice", "split", "squeeze", "transpose"}
SUMS = {"reduce_sum", "reduce_window_sum"}
EXTREMES = {"reduce_max": 1, "reduce_window_max": 1, "reduce_min": -1, "reduce_window_min": -1}
WEIGHTED = {"dot_general", "conv_general_dilated"}
MIXING = MOVES | SUMS | EXTREMES.keys() | WEIGHTED
CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}


def _walk_from(
    traced: ClosedJaxpr, constants: Any, centre: Array, box: Box, eps: Any
) -> tuple[Array, Any]:
    """The output of one example, for inputs in the box and within eps of its centre if not None."""
    box = box[0][None], box[1][None]
    ones = jnp.ones_like(box[0])
    root = Root(box, (ones, ones), jnp.ones((), ones.dtype), ones)
    return _walk(traced.jaxpr, constants, [(centre[None], Value(root))], eps)[0]


def _walk(jaxpr: Any, constants: Any, args: list, eps: Any) -> list:
    inputs = [(value, None) for value in constants] + args
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

    def read(v: Any) -> tuple:
        return (jnp.asarray(v.val, v.val.dtype), None) if isinstance(v, Literal) else known[v]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        if eqn.params.get("branches_platforms"):
            # One function, written differently for different platforms: the default form.
            inner = eqn.params["branches"][-1]
            outputs = _walk(inner.jaxpr, inner.consts, inputs[1:], eps)
        elif eqn.primitive.name in CALLS:
            inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
            inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            outputs = _walk(inner.jaxpr, inner.consts, inputs, eps)
        elif eqn.primitive is convolution.partial_p:
            form = partial(convolution.in_lax, **eqn.params)
            inner = jax.make_jaxpr(form)(*(v.aval for v in eqn.invars))
            outputs = _walk(inner.jaxpr, inner.consts, inputs, eps)
        elif all(value is None for _, value in inputs):
            outputs = [(out, None) for out in _bind(eqn, *(number for number, _ in inputs))]
        elif eqn.primitive.name == "ne" and eqn.invars[0] is eqn.invars[1]:
            outputs = [(jnp.zeros(eqn.outvars[0].aval.shape, bool), None)]  # not a number: never
        else:
            outputs = _step(eqn, inputs, eps)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _bind(eqn: Any, *args: Any) -> list[Array]:
    out = eqn.primitive.bind(*args, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]


def _step(eqn: Any, inputs: list, eps: Any) -> list:
    """One primitive of which at least one argument depends on x."""
    name, params = eqn.primitive.name, eqn.params
    sources = [value for _, value in inputs if value is not None]
    dtype = sources[0].root.rows.dtype  # constants keep their own until they meet x
    if name == "convert_element_type" and jnp.issubdtype(inputs[0][0].dtype, jnp.floating):
        return inputs
    if params.get("preferred_element_type"):
        eqn = eqn.replace(params={**params, "preferred_element_type": dtype})

    def wide(number: Any) -> Array:
        number = jnp.asarray(number)
        return number.astype(dtype) if jnp.issubdtype(number.dtype, jnp.floating) else number

    numbers = [wide(number) for number, _ in inputs]
    args = [n if v is None else v for n, (_, v) in zip(numbers, inputs, strict=True)]
    if name in ELEMENTWISE:
        rule = ELEMENTWISE[name]
        rule = partial(rule, y=params["y"]) if name == "integer_pow" else rule
        args = [a if isinstance(a, Value) else a.astype(dtype) for a in args]
        centres = _bind(eqn, *numbers)
        root, shape = sources[0].root, centres[0].shape
        if all(v.root is root for v in sources) and root.rows.shape == shape:
            return [(centres[0], Value(root, name, rule, tuple(args)))]
        # Where a case ends is found along one root only.
        if name in {"gt", "ge", "lt", "le"} or (name == "select_n" and isinstance(args[0], Value)):
            raise ValueError(f"No bound for {name!r} of several values that depend on x.")
        roots = [mixing.combine(rule, args, shape)]
    elif name == "concatenate":
        centres, roots = _bind(eqn, *numbers), [mixing.concatenate(params, args)]
    elif name not in MIXING or len(sources) > 1:
        rules = ", ".join(sorted({*ELEMENTWISE, *MIXING, "concatenate"}))
        what = "several values that depend" if len(sources) > 1 else "a value that depends"
        raise ValueError(f"No bound for {name!r} of {what} on x; there are rules for {rules}.")
    else:
        centres, roots = _bind(eqn, *numbers), _mix(eqn, args)
    outputs = zip(centres, roots, strict=True)
    return [(centre, Value(_trim(root, centre, eps))) for centre, root in outputs]


def _mix(eqn: Any, args: list) -> list[Root]:
    """An operation that mixes the entries of one value; its other arguments are constants."""
    name, params = eqn.primitive.name, eqn.params
    if name in WEIGHTED:
        left = isinstance(args[0], Value)
        value, w = args if left else reversed(args)
        apply = lambda v, w: _bind(eqn, *((v, w) if left else (w, v)))[0]
        if name == "dot_general":
            return [mixing.dense(params, apply, w, settle(value), left)]
        return [mixing.convolution(params, apply, w, settle(value))]
    if not isinstance(args[0], Value):
        raise ValueError(f"No bound for {name!r} where x decides more than what is moved.")
    root = settle(args[0])
    if name in SUMS:
        return [mixing.total(params, lambda v: _bind(eqn, v)[0], root)]
    if name in EXTREMES:
        return [mixing.extreme(params, lambda v: _bind(eqn, v)[0], root, EXTREMES[name])]
    # Where to, or the number that a pad is filled with: 0 for slopes.
    empty = [0 * a for a in args[1:]] if name == "pad" else args[1:]
    move = lambda v: _bind(eqn, v, *args[1:])
    return mixing.move(name, move, lambda v: _bind(eqn, v, *empty), root)


def _trim(root: Root, centre: Array, eps: Any) -> Root:
    """The box cut to `|v_i - centre_i| <= rows_i eps`."""
    if eps is None:
        return root
    reach = most(root.slope) * root.rows
    reach = jnp.where(reach > 0, reach * eps, 0.0)
    low, high = root.box
    low = jnp.minimum(jnp.maximum(low, centre - reach), centre)
    return dataclasses.replace(
        root, box=(low, jnp.maximum(jnp.minimum(high, centre + reach), centre))
    )
