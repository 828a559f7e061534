"""A branch that does not depend on x, and one function in different forms for platforms."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal

from lipreg.lipschitz.bounds import mixing
from lipreg.lipschitz.bounds.intervals import Box, hull, most, negative, plus
from lipreg.lipschitz.bounds.kinds import CALLS, JOINS, MOVES, SAME, SUMS, WEIGHTED
from lipreg.lipschitz.bounds.roots import Root, numbers
from lipreg.lipschitz.bounds.values import Comparison, Value, bound

__all__ = ["branches"]


def branches(
    walk: Callable, forms: Sequence[ClosedJaxpr], index: Any, args: list, eps: Any, seen: dict
) -> list:
    """Bounds of whichever branch is taken. An output that does not depend on x is that of `index`.

    For platforms the index is None, such an output may be any of theirs, and only the last form
    counts where all are the same affine map. Different affine maps differ at a random point with
    probability one; they and their differences are compared at three pairs of points, entry by
    entry, to 1e-9.
    """
    outputs = [walk(form.jaxpr, form.consts, args, eps, seen) for form in forms]
    if len(forms) == 1 or not outputs[0]:
        return outputs[0]
    if any(isinstance(a, Comparison) for each in outputs for a in each):
        raise ValueError("No bound for a comparison of several values that depend on x.")
    made = zip(forms[0].jaxpr.outvars, *outputs, strict=True)
    if any(v.aval.dtype == bool and any(isinstance(a, Value) for a in each) for v, *each in made):
        raise ValueError("No bound for a condition on x that a branch returns: return numbers.")
    moving = [isinstance(a, Value) for a in args]
    alike = jnp.zeros((), bool)
    if index is None and all(_affine(form.jaxpr, moving) for form in forms):
        alike = jnp.stack([_agree(walk, forms, args, seed) for seed in range(3)]).all()
    return [_either(list(each), index, alike) for each in zip(*outputs, strict=True)]


def _either(each: list, index: Any, alike: Array) -> Any:
    if any(isinstance(a, Value) for a in each):
        return Value(numbers(mixing.either(each, alike)))
    if all(a is each[0] for a in each):
        return each[0]
    if index is not None:
        return jnp.stack(each)[jnp.clip(index, 0, len(each) - 1)]
    if jnp.issubdtype(each[0].dtype, jnp.floating):
        return Value(numbers(mixing.either([a.astype(float) for a in each], alike)))
    raise ValueError("No bound for integers or conditions that differ from platform to platform.")


def _affine(jaxpr: Any, moving: list[bool]) -> bool:
    """Whether the outputs are affine in the arguments that depend on x."""
    known = {v: m for v, m in zip(jaxpr.invars, moving, strict=True) if m}
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        moves = [not isinstance(v, Literal) and v in known for v in eqn.invars]
        if not any(moves):
            continue
        if name in CALLS:
            inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
            affine = _affine(getattr(inner, "jaxpr", inner), moves)
        elif name in WEIGHTED | {"mul"}:
            affine = sum(moves) == 1
        elif name == "div":
            affine = not moves[1]
        else:
            affine = name in {*MOVES, *JOINS, *SUMS, *SAME, "add", "sub", "neg"}
        if not affine:
            return False
        known.update(dict.fromkeys(eqn.outvars, True))
    return True


def _agree(walk: Callable, forms: Sequence[ClosedJaxpr], args: list, seed: int) -> Array:
    """Whether the branches agree at random values of the arguments that depend on x, and do so in
    how they change from there to others: beside a large constant a slope is small."""
    rng = np.random.default_rng(seed)

    def draw(a: Any) -> Any:
        if not isinstance(a, Value):
            return a
        like = a.root.rows
        point = jnp.asarray(rng.normal(size=like.shape), like.dtype)
        ones = jnp.ones_like(like)
        return Value(Root((point, point), None, (ones, ones), jnp.ones((), like.dtype), ones))

    def alike(boxes: list[Box]) -> Array:
        low, high = hull(*(end for box in boxes for end in box))
        return (high - low <= 1e-9 * most((low, high))).all()

    def run(form: ClosedJaxpr, drawn: list) -> list[Box]:
        outputs = walk(form.jaxpr, form.consts, drawn, None, {})
        return [bound(a)[0] if isinstance(a, Value) else (a, a) for a in outputs]

    here, there = ([draw(a) for a in args] for _ in range(2))
    starts, ends = ([run(form, drawn) for form in forms] for drawn in (here, there))
    agree = []
    for start, end in zip(zip(*starts, strict=True), zip(*ends, strict=True), strict=True):
        changes = [plus(b, negative(a)) for a, b in zip(start, end, strict=True)]
        agree += [alike(list(start)), alike(changes)]
    return jnp.stack(agree).all()
