"""Constants that a user states: for parts of a network whose primitives have no rule, or whose
proof looks at what no rule sees, as that of the sandwich layer (2301.11526)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from lipreg.lipschitz.bounds.forms import other_form
from lipreg.lipschitz.functions import ascended_pairs
from lipreg.norms import L2
from lipreg.tracing import inner, trace

__all__ = ["check", "declare", "declared"]

ROOM = 1e-3  # relative: a slope is measured in float32
DISTANCES = (0.01, 1.0)  # of pairs, relative to the size of what is given to the function
_NAME = re.compile(r"declared_lipschitz_(.+)_(certified|estimate)_(\w*)")


def declare(
    f: Callable[[Array], Array], constant: float, *, proof: str = ""
) -> Callable[[Array], Array]:
    """f, for which proved bounds take `||f(u) - f(v)||_2 <= constant ||u - v||_2` on your word.

    f `[B, ...] -> [B, ...]` is a part of a network, which may close over parameters. It computes
    and differentiates as before. `lipschitz` does not look inside; it ascends difference quotients
    of f around what the network gives it at x and at random points, and refuses a constant that
    one of them exceeds. That search proves nothing. So without `proof`, a sentence or a reference,
    everything bounded with it is of kind "estimate"; with one it is "certified", as sound as the
    proof. Values of f are not bounded.

    Raises: ValueError for a constant that is negative or not finite.

    >>> from lipreg.lipschitz.bounds import lipschitz
    >>> f = declare(lambda x: jnp.cumsum(x, 1) / 3, 1.0, proof="||A||_F^2 = 6 / 9 < 1")
    >>> lipschitz(lambda x: 2 * f(x), jnp.zeros((1, 3))).output.round(3)
    Array([2.], dtype=float32)
    """
    if not 0 <= constant < math.inf:
        raise ValueError(f"declare: the constant is {constant}; want a number >= 0.")
    named = f"declared_lipschitz_{float(constant)!r}_{'certified' if proof else 'estimate'}"

    def call(x: Array) -> Array:
        closed, shape = trace(f, x)
        if not isinstance(shape, jax.ShapeDtypeStruct) or shape.shape[:1] != x.shape[:1]:
            raise ValueError(f"declare: f must return one array [{len(x)}, ...]; got {shape}.")

        def run(constants: list, x: Array) -> Array:
            return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(x)[0]

        run.__name__ = f"{named}_{_shapes(closed.jaxpr.constvars)}"
        return jax.jit(run)(closed.consts, x)

    return call


def declared(eqn: Any) -> tuple[float, str] | None:
    """The constant and its kind, where an equation is the call of a declared function.

    Raises: ValueError where a transformation, such as vmap over parameters or grad, has made
    another function of it.
    """
    found = _NAME.fullmatch(str(eqn.params.get("name"))) if "jaxpr" in eqn.params else None
    if found and (_shapes(eqn.invars[:-1]) != found[3] or len(eqn.outvars) != 1):
        raise ValueError(
            f"A function that was declared to have the constant {found[1]} is transformed, by vmap "
            "over its parameters or by grad; declare the transformed function."
        )
    return (float(found[1]), found[2]) if found else None


def _shapes(variables: Sequence) -> str:
    """As a part of a name: `3x4_2`."""
    return "_".join("x".join(map(str, v.aval.shape)) or "0d" for v in variables)


def check(traced: ClosedJaxpr, x: Array, bounds: tuple[float, float]) -> str:
    """ "estimate" if a function is declared without a proof, else "certified".

    Raises: ValueError for a difference quotient above a declared constant.
    """
    calls: dict[int, tuple[Any, list]] = {}
    if not any(_inside(eqn) for eqn in traced.jaxpr.eqns):
        return "certified"
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.uniform(*bounds, size=(2, *x.shape[1:])), x.dtype)
    for point in jnp.concatenate([x[:2], noise]):
        _run(traced.jaxpr, traced.consts, [point[None]], calls)
    kinds = set()
    for eqn, inputs in calls.values():
        constant, kind = declared(eqn) or (math.inf, "")
        kinds.add(kind)
        steepest = _steepest(eqn, inputs)
        if steepest > constant * (1 + ROOM):
            raise ValueError(
                f"A function is declared to have the constant {constant:g}, but two of its inputs "
                f"have a difference quotient of {steepest:.4g}."
            )
    return "estimate" if "estimate" in kinds else "certified"


def _inside(eqn: Any) -> bool:
    if eqn.primitive.name == "while":  # for which there is no bound
        return False
    return bool(declared(eqn)) or any(_inside(e) for part in inner(eqn) for e in part.jaxpr.eqns)


def _run(jaxpr: Any, constants: Sequence, args: Sequence, calls: dict) -> list:
    """The outputs; `calls` gets what declared functions are given, by equation."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *args), strict=True))
    read = lambda v: jnp.asarray(v.val) if isinstance(v, Literal) else known[v]
    for eqn in jaxpr.eqns:
        inputs = list(map(read, eqn.invars))
        if declared(eqn):
            calls.setdefault(id(eqn), (eqn, []))[1].append(inputs)
        form = other_form(eqn) if eqn.primitive.name == "scan" and _inside(eqn) else None
        if form:
            unrolled = jax.make_jaxpr(form)(*inputs)
            outputs = _run(unrolled.jaxpr, unrolled.consts, inputs, calls)
        elif _inside(eqn) and not declared(eqn):
            parts, taken = inner(eqn), 0
            if "branches" in eqn.params:
                taken, *inputs = inputs
            # Of all platforms: the bound is that of any.
            results = [_run(part.jaxpr, part.consts, inputs, calls) for part in parts]
            outputs = results[int(taken)]
        else:
            free = [v for v in eqn.invars if not isinstance(v, Literal)]
            alone = jaxpr.replace(constvars=[], invars=free, outvars=eqn.outvars, eqns=[eqn])
            outputs = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*map(read, free))
        known.update(zip(eqn.outvars, outputs, strict=True))
    return list(map(read, jaxpr.outvars))


def _steepest(eqn: Any, inputs: list[list]) -> float:
    constants = inputs[0][:-1]
    points = jnp.concatenate([each[-1] for each in inputs]).astype(jnp.float32)
    run = jaxpr_as_fun(eqn.params["jaxpr"])

    def f(points: Array) -> Array:
        dtype = inputs[0][-1].dtype
        one = lambda v: run(*constants, v[None].astype(dtype))[0].reshape(-1)
        return jax.vmap(one)(points).astype(jnp.float32)

    size = float(jnp.sqrt(jnp.square(points).mean() * points[0].size)) or 1.0
    anywhere = (-math.inf, math.inf)
    options = {"norm": L2, "label_norm": L2, "bounds": anywhere, "steps": 30}
    search = jax.jit(
        lambda eps: ascended_pairs(jax.random.key(0), f, points, eps=eps, **options).quotients.max()
    )
    return max(float(search(share * size)) for share in DISTANCES)
