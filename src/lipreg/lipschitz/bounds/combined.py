"""Elementwise operations on values of several roots."""

import dataclasses
from functools import reduce
from typing import Any

import jax.numpy as jnp

from lipreg.lipschitz.bounds import exponentials, joint, normalised, residuals
from lipreg.lipschitz.bounds.elementwise import ELEMENTWISE
from lipreg.lipschitz.bounds.intervals import upper
from lipreg.lipschitz.bounds.roots import Root, numbers
from lipreg.lipschitz.bounds.values import Comparison, Value, settle

__all__ = ["broadcast", "chosen", "combined"]


def combined(name: str, rule: Any, args: list, shape: tuple[int, ...], seen: dict) -> Root:
    """The operation on several roots, as one map where it is known as one."""
    root = joint.combine(name, rule, args, shape, seen)
    settled = [settle(a) if isinstance(a, Value) else None for a in args]
    lips = (
        residuals.symmetric(name, args),
        residuals.less_sums(name, settled),
        normalised.normalised(name, args, settled),
    )
    least = reduce(jnp.minimum, [upper(lip) for lip in (root.lip, *lips) if lip is not None])
    root = dataclasses.replace(
        root,
        lip=least,
        offset=exponentials.shifted(name, args, settled),
        centred=normalised.centred(name, args, settled),
        variance=normalised.variance(name, args, settled),
    )
    known = exponentials.one_map(name, args, settled)
    return exponentials.narrowed(root, known) if known else root


def broadcast(value: Value, shape: tuple[int, ...], seen: dict) -> Value:
    """The value in the shape of what it meets."""
    if value.root.rows.shape == shape:
        return value
    key = "broadcast", id(value), shape
    if key not in seen:
        root, axes = settle(value), tuple(range(len(shape)))
        params = {"shape": shape, "broadcast_dimensions": axes[len(shape) - root.rows.ndim :]}
        apply = lambda v: [jnp.broadcast_to(v, shape)]
        copies = lambda out: out.size / max(root.rows.size, 1)
        (moved,) = joint.move("broadcast_in_dim", params, apply, apply, root, copies)
        seen[key] = Value(numbers(moved)), value
    return seen[key][0]


def chosen(name: str, inputs: list, seen: dict) -> Root:
    """`where(a > b, a, b)` is the maximum, `where(a > b, b, a)` the minimum."""
    which, *cases = inputs
    pair = [which.smaller, which.larger] if isinstance(which, Comparison) else []
    if name != "select_n" or not pair or not ({*map(id, cases)} == {*map(id, pair)}):
        raise ValueError(f"No bound for {name!r} of several values that depend on x.")
    name = "max" if cases[0] is which.smaller else "min"
    return joint.combine(name, ELEMENTWISE[name], cases, cases[0].root.rows.shape, seen)
