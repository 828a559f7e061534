"""The walk through a jaxpr: what is known of each variable, primitive by primitive.

A variable that does not depend on x is an array, any other a `Value`. Primitives without a rule are
refused by name, and so are step functions that look like arithmetic: casts to integers and to 16
bits, and arithmetic in those. Random numbers are refused because an example that is traced alone
draws others than in its batch.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal

from lipreg.lipschitz.bounds import convolutions, joint, mixing
from lipreg.lipschitz.bounds.branches import branches
from lipreg.lipschitz.bounds.combined import broadcast, chosen, combined
from lipreg.lipschitz.bounds.conditions import CONDITIONS, ORDERED
from lipreg.lipschitz.bounds.declared import declared
from lipreg.lipschitz.bounds.elementwise import ELEMENTWISE
from lipreg.lipschitz.bounds.forms import REWRITTEN, other_form
from lipreg.lipschitz.bounds.intervals import Box, largest, most, outward, times
from lipreg.lipschitz.bounds.kinds import (
    CALLS,
    EXTREMES,
    JOINS,
    RANDOM,
    ROUNDED,
    RULES,
    SAME,
    SUMS,
    WEIGHTED,
)
from lipreg.lipschitz.bounds.roots import Root, numbers
from lipreg.lipschitz.bounds.values import Comparison, Value, settle
from lipreg.tracing import primitives

__all__ = ["walk", "walk_from"]

OFF_ON = 0.0, 1.0  # the cases of an indicator


def walk_from(traced: ClosedJaxpr, constants: Any, centre: Array | None, box: Box, eps: Any) -> Any:
    """The output of one example, for inputs in the box and, if not None, within eps of a centre."""
    box = box[0][None], box[1][None]
    ones = jnp.ones_like(box[0])
    centres = None if centre is None else (centre[None], centre[None])
    root = Root(box, centres, (ones, ones), jnp.ones((), ones.dtype), ones)
    return walk(traced.jaxpr, constants, [Value(root)], eps, {})[0]


def walk(jaxpr: Any, constants: Any, args: Sequence, eps: Any, seen: dict) -> list:
    """The outputs. `seen` are operations, with what was made of the same arguments before."""
    pairs = zip(jaxpr.constvars, constants, strict=True)
    known: dict[Any, Any] = {v: _typed(c, v) for v, c in pairs}
    known.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return _typed(v.val, v) if isinstance(v, Literal) else known[v]

    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [read(v) for v in eqn.invars]
        if name in RANDOM:
            _refuse_noise(name)
        moving = any(isinstance(a, (Value, Comparison)) for a in inputs)
        if name == "cond" and moving and not isinstance(inputs[0], (Value, Comparison)):
            index = None if eqn.params.get("branches_platforms") else inputs[0]
            outputs = branches(walk, eqn.params["branches"], index, inputs[1:], eps, seen)
        elif moving and declared(eqn):
            outputs = [Value(_trimmed(_declared(eqn, inputs), eps))]
        elif moving and (form := other_form(eqn)):
            inner = jax.make_jaxpr(form)(*(v.aval for v in eqn.invars))
            outputs = walk(inner.jaxpr, inner.consts, inputs, eps, seen)
        elif name in CALLS:
            inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
            inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            outputs = walk(inner.jaxpr, inner.consts, inputs, eps, seen)
        elif not moving:
            for noise in RANDOM & primitives(eqn):
                _refuse_noise(noise)
            outputs = _bind(eqn, *inputs)
        elif name == "ne" and eqn.invars[0] is eqn.invars[1]:
            outputs = [jnp.zeros(eqn.outvars[0].aval.shape, bool)]  # isnan: false
        else:
            outputs = _once(eqn, inputs, eps, seen)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _typed(constant: Any, v: Any) -> Array:
    """In the type that the function was traced with: float32 also for numpy's float64."""
    dtype = v.aval.dtype
    return constant if jnp.issubdtype(dtype, jax.dtypes.extended) else jnp.asarray(constant, dtype)


def _bind(eqn: Any, *args: Any) -> list[Array]:
    out = eqn.primitive.bind(*args, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]


def _refuse_noise(name: str) -> None:
    raise ValueError(
        f"No bound for {name!r}: random numbers of one example are not those of a batch; "
        "draw them outside of the function."
    )


def _is_bool(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.bool_)


def _refuse_steps(eqn: Any) -> None:
    """ValueError unless values that depend on x are real and at least as precise as float32."""
    name, source = eqn.primitive.name, eqn.invars[0].aval.dtype
    for dtype in (v.aval.dtype for v in eqn.outvars):
        cast = name == "convert_element_type" and dtype != source
        real = jnp.issubdtype(dtype, jnp.floating)
        condition = _is_bool(dtype) and name in {*CONDITIONS, "select_n"}
        if cast and not jnp.issubdtype(source, jnp.floating) and not (real and _is_bool(source)):
            why = "it is a step"
        elif real and jnp.finfo(dtype).bits < 32 and (cast or name in ROUNDED):
            why = "it rounds in steps; compute in float32"
        elif not (real or condition):
            why = "want real floating numbers"
        else:
            continue
        raise ValueError(f"No bound for {name!r} in {dtype} of a value that depends on x: {why}.")


def _once(eqn: Any, inputs: list, eps: Any, seen: dict) -> list:
    """`_step`, once for the same operation on the same values: `x[:, 1:]` twice is one value."""
    pairs = zip(eqn.invars, inputs, strict=True)
    literal = lambda v: ("literal", str(v.val), str(v.aval.dtype))  # 0.1 has two values
    given = [literal(v) if isinstance(v, Literal) else id(a) for v, a in pairs]
    key = eqn.primitive, *sorted(eqn.params.items()), *given
    try:
        known = key in seen
    except TypeError:  # a parameter without a hash
        return _step(eqn, inputs, eps, seen)
    if not known:
        seen[key] = _step(eqn, inputs, eps, seen), inputs  # whose ids last as long as they do
    return seen[key][0]


def _step(eqn: Any, inputs: list, eps: Any, seen: dict) -> list:
    """One primitive of which at least one argument depends on x."""
    name = eqn.primitive.name
    if any(isinstance(a, Comparison) for a in inputs):
        return [Value(_trimmed(numbers(chosen(name, inputs, seen)), eps))]
    sources = [a for a in inputs if isinstance(a, Value)]
    if name not in RULES or (len(sources) > 1 and name not in {*ELEMENTWISE, *JOINS}):
        what = "several values that depend" if len(sources) > 1 else "a value that depends"
        rules = ", ".join(sorted({*RULES, *REWRITTEN}))
        raise ValueError(
            f"No bound for {name!r} of {what} on x: lipreg.lipschitz.declare the constant of a "
            f"function around it, or use what has a rule: {rules}."
        )
    _refuse_steps(eqn)
    if name in SAME:
        a, dtype = inputs[0], eqn.invars[0].aval.dtype
        return [_indicator(a) if _is_bool(dtype) and not _is_bool(eqn.outvars[0].aval.dtype) else a]
    dtype = sources[0].root.rows.dtype  # constants keep their own until they meet x
    eqn = eqn.replace(params=_wide(eqn.params, dtype))
    args = [a if isinstance(a, Value) else _wider(a, dtype) for a in inputs]
    shape = eqn.outvars[0].aval.shape
    if name in ELEMENTWISE:
        rule = ELEMENTWISE[name]
        rule = partial(rule, y=eqn.params["y"]) if name == "integer_pow" else rule
        # Numbers take the shape of what they meet; conditions stay where they can be located.
        args = [
            broadcast(a, shape, seen) if isinstance(a, Value) and not _is_bool(v.aval.dtype) else a
            for a, v in zip(args, eqn.invars, strict=True)
        ]
        args = [a if isinstance(a, Value) else a.astype(dtype) for a in args]
        sources = [a for a in args if isinstance(a, Value)]
        root = sources[0].root
        if name == "sqrt" and root.squares and sources[0].affine:
            return [Value(_trimmed(numbers(joint.root_of_squares(sources[0], rule)), eps))]
        if all(v.root is root for v in sources) and root.rows.shape == shape:
            if name == "mul" and (cases := _masked(args)):
                name, rule, args = "select_n", ELEMENTWISE["select_n"], cases
            return [Value(root, name, rule, tuple(args))]
        # Where a condition switches can be located along one root only.
        if name in ORDERED and len(sources) == 2:
            return [Comparison(*(sources if name in ("gt", "ge") else reversed(sources)))]
        if name in CONDITIONS or (name == "select_n" and isinstance(args[0], Value)):
            raise ValueError(f"No bound for {name!r} of several values that depend on x.")
        roots = [combined(name, rule, args, shape, seen)]
    elif name in JOINS:
        roots = [joint.concatenate(name, eqn.params[JOINS[name]], args)]
    else:
        roots = _mix(eqn, args, seen)
    return [Value(_trimmed(numbers(root), eps)) for root in roots]


def _declared(eqn: Any, inputs: list) -> Root:
    """`||dv|| <= constant ||dw||`; v itself may be anything."""
    *constants, value = inputs
    constant, _ = declared(eqn) or (jnp.inf, "")
    if not isinstance(value, Value) or any(isinstance(a, (Value, Comparison)) for a in constants):
        raise ValueError("No bound for a declared function whose parameters depend on x.")
    taken = eqn.invars[-1].aval.dtype
    if not jnp.issubdtype(taken, jnp.floating) or jnp.finfo(taken).bits < 32:
        raise ValueError(f"No bound for a declared function of {taken}: it takes steps.")
    root = settle(value)
    shape, dtype = eqn.outvars[0].aval.shape, root.rows.dtype
    lip = constant * times(root.lip, largest(most(root.slope)))
    ends = jnp.full(shape, -jnp.inf, dtype), jnp.full(shape, jnp.inf, dtype)
    return joint.plain(ends, root.centre and ends, lip, jnp.full(shape, lip))


def _indicator(condition: Value) -> Value:
    """1 where it is true, 0 elsewhere."""
    return Value(condition.root, "select_n", ELEMENTWISE["select_n"], (condition, *OFF_ON))


def _masked(args: list) -> list | None:
    """The arguments of `where(condition, v, 0)`, which is v times an indicator."""
    for a, v in (args, args[::-1]):
        cases = a.args[1:] if isinstance(a, Value) and a.name == "select_n" else (None,)
        if all(isinstance(case, float) for case in cases):
            return [a.args[0], OFF_ON[0], v]
    return None


def _wide(params: dict, dtype: Any) -> dict:
    """Parameters with products in the walk's own precision."""
    own = {"preferred_element_type": dtype, "precision": jax.lax.Precision.HIGHEST}
    return {**params, **{name: value for name, value in own.items() if name in params}}


def _wider(number: Any, dtype: Any) -> Array:
    number = jnp.asarray(number)
    return number.astype(dtype) if jnp.issubdtype(number.dtype, jnp.floating) else number


def _mix(eqn: Any, args: list, seen: dict) -> list[Root]:
    """An operation that mixes the entries of one value; its other arguments are constants."""
    name, params = eqn.primitive.name, eqn.params
    if name in WEIGHTED:
        left = isinstance(args[0], Value)
        value, w = args if left else reversed(args)
        apply = lambda v, w: _bind(eqn, *((v, w) if left else (w, v)))[0]
        rule = mixing.dense if name == "dot_general" else convolutions.convolution
        return [rule(params, apply, w, settle(value), left)]
    if not isinstance(args[0], Value):
        raise ValueError(f"No bound for {name!r} with indices or filling that depend on x.")
    root = settle(args[0])
    apply = lambda v: _bind(eqn, v)[0]
    if name in SUMS:
        return [mixing.total(params, apply, args[0])]
    if name in EXTREMES:
        overlap = mixing.overlap(params)
        return [joint.extreme(params, apply, args[0], EXTREMES[name], overlap, seen)]
    if name == "sort":
        if len(args) > 1:
            raise ValueError("No bound for a sort of several arrays at once.")
        return [joint.ordered(params, root)]
    # Indices, or the number that is filled in, which is 0 for slopes.
    empty = [jnp.zeros_like(a) for a in args[1:]] if name == "pad" else args[1:]
    filled = eqn.replace(params={**params, "fill_value": 0}) if name == "gather" else eqn
    slopes = lambda v: _bind(filled, v, *empty)

    def copies(out: Array) -> Any:
        if name in {"broadcast_in_dim", "tile"}:
            return out.size / max(root.rows.size, 1)
        if name == "gather":
            _, back = jax.vjp(lambda v: slopes(v)[0], root.rows)
            return largest(back(jnp.ones_like(out))[0])
        return 1.0

    moved = lambda v: _bind(eqn, v, *args[1:])
    return joint.move(name, params, moved, slopes, root, copies)


def _trimmed(root: Root, eps: Any) -> Root:
    """The box cut to `|v_i - centre_i| <= rows_i eps`."""
    if eps is None or root.centre is None:
        return root
    reach = most(root.slope) * root.rows
    reach = jnp.where(reach > 0, reach * eps, 0.0)
    reach = reach * (1 + 1e-9)  # covers the rounding of sums of squares
    low, high = outward((root.centre[0] - reach, root.centre[1] + reach))
    # The centre lies in the box, even if rounding puts it outside.
    low = jnp.minimum(jnp.maximum(root.box[0], low), root.centre[0])
    high = jnp.maximum(jnp.minimum(root.box[1], high), root.centre[1])
    return dataclasses.replace(root, box=(low, high))
