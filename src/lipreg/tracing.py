"""A user's function as it is at the call, in programs that are compiled once.

`jax.jit` treats a function as a constant: a closure, an nnx module or a dataclass that has changed
since is not traced again, and its old arrays stay in memory. So each public call traces a function
anew (`snapshot`). The arrays that it reads become arguments, and the program that remains is
compiled once for all functions that compute the same (`compiled`).
"""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.extend.core.primitives import closed_call_p
from jax.sharding import Mesh
from jax.tree_util import Partial

__all__ = [
    "captured",
    "compiled",
    "inlined",
    "inner",
    "output",
    "primitives",
    "program",
    "snapshot",
    "trace",
]


def trace(f: Callable, *args: Any) -> tuple[ClosedJaxpr, Any]:
    """What f computes now, as a jaxpr of the leaves of `args`, and the shapes of its results."""
    leaves, tree = jax.tree.flatten(args)
    # A new function, because jax caches traces by identity; of leaves, because it would also keep
    # the tree structure, which may hold functions.
    again = lambda leaves: f(*jax.tree.unflatten(tree, leaves))
    return jax.make_jaxpr(again, return_shape=True)(leaves)


def output(f: Callable, *args: Any) -> Any:
    """The shapes and types of f's results now: `jax.eval_shape` without its cache."""
    return jax.eval_shape(lambda *args: f(*args), *args)


def captured(f: Callable, *args: Any) -> list:
    """The arrays and numbers that f reads besides its arguments."""
    closed, _ = trace(snapshot(f), *args)

    def numbers(jaxpr: Jaxpr) -> list:
        values = []
        for eqn in jaxpr.eqns:
            values += [v.val for v in eqn.invars if isinstance(v, Literal)]
            for part in inner(eqn):
                values += [*part.consts, *numbers(part.jaxpr)]
        return values

    return [*closed.consts, *numbers(closed.jaxpr)]


# Tracing a function once per public call.


def snapshot(f: Callable[..., Any]) -> Partial:
    """f as it is now, for one public call: a pytree, which traces f once for each shape.

    The leaves of a `Partial` stay leaves. Functions that f jits itself are inlined if they hold
    arrays, so that these become arguments. A snapshot is returned as it is.
    """
    if isinstance(f, Partial) and isinstance(f.func, _Snapshot):
        return f
    given = f if isinstance(f, Partial) else Partial(f)
    return Partial(_Snapshot(given.func), *given.args, **given.keywords)


class _Snapshot:
    """A function and its traces, equal only to itself.

    Attributes:
      programs: see `compiled`.
    """

    def __init__(self, f: Callable[..., Any]):
        self._f, self._seen = f, {}
        self.programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, keywords))
        shapes = tree, *map(jax.typeof, leaves)
        if shapes not in self._seen:
            self._seen[shapes] = trace(lambda a, k: self._f(*a, **k), args, keywords)
        closed, result = self._seen[shapes]
        return jax.tree.unflatten(
            jax.tree.structure(result), inlined(closed, leaves, _holds_arrays)
        )


def inlined(
    closed: ClosedJaxpr, args: list, inline: Callable[[Any], bool] = lambda eqn: True
) -> list:
    """The jaxpr's results. Inner jits are inlined, or those that `inline` chooses."""
    jaxpr = closed.jaxpr
    chosen = lambda eqn: eqn.primitive.name in ("jit", "pjit") and inline(eqn)
    if not any(map(chosen, jaxpr.eqns)):
        return jaxpr_as_fun(closed)(*args)
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else known[v]
    for eqn in jaxpr.eqns:
        if chosen(eqn):
            outputs = inlined(eqn.params["jaxpr"], [read(v) for v in eqn.invars], inline)
        else:
            free = [v for v in eqn.invars if not isinstance(v, Literal)]
            alone = jaxpr.replace(constvars=[], invars=free, outvars=eqn.outvars, eqns=[eqn])
            outputs = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*map(read, free))
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _holds_arrays(eqn: Any) -> bool:
    if eqn.primitive.name not in ("jit", "pjit"):
        return False
    held = eqn.params["jaxpr"]
    return bool(held.consts) or any(map(_holds_arrays, held.eqns))


def primitives(eqn: Any) -> set[str]:
    """The names of an equation's primitive and of those inside of it, as of a loop's body."""
    inside = (primitives(e) for closed in inner(eqn) for e in closed.jaxpr.eqns)
    return {eqn.primitive.name}.union(*inside)


def inner(eqn: Any) -> list[ClosedJaxpr]:
    """The jaxprs in an equation's parameters, as the body of a loop or the branches of a `cond`."""
    jaxprs = []
    for value in eqn.params.values():
        for v in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(v, (Jaxpr, ClosedJaxpr)):
                jaxprs.append(v if isinstance(v, ClosedJaxpr) else ClosedJaxpr(v, ()))
    return jaxprs


# Compiling a program once.


def compiled(model: Partial, function: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """`jax.jit(partial(function, *settings))` for as long as the snapshot `model` lives.

    The result accepts pytrees of arrays, the model among them. `function` is traced once for each
    of their shapes, and compiled unless an earlier call compiled the same program.
    """
    name = tuple(map(id, (function, *settings)))
    if name not in model.func.programs:
        model.func.programs[name] = _Traced(partial(function, *settings))
    return model.func.programs[name]


class _Traced:
    """A function as it was at its first call with each shape of arguments."""

    def __init__(self, function: partial):
        self._function, self._seen = function, {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, keywords))
        shapes = tree, *map(jax.typeof, leaves)
        if shapes not in self._seen:
            closed, result = trace(lambda a, k: self._function(*a, **k), args, keywords)
            made = program(closed.jaxpr)
            # A program that can't be compared is compiled for this call only.
            run = (_run_of if made.text else _run_of.__wrapped__)(made)
            self._seen[shapes] = run, [jnp.asarray(a) for a in closed.consts], result
        run, arrays, result = self._seen[shapes]
        return jax.tree.unflatten(jax.tree.structure(result), run(arrays, leaves))


@lru_cache(maxsize=256)
def _run_of(program: "_Program") -> Callable[[list, list], list]:
    return jax.jit(lambda arrays, leaves: jaxpr_as_fun(ClosedJaxpr(program.jaxpr, arrays))(*leaves))


class _Program:
    """A jaxpr without its arrays, equal to those that compute the same."""

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr, self.text = jaxpr, None
        with suppress(_Unlike):
            self.text = _text(jaxpr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def program(jaxpr: Jaxpr) -> _Program:
    """What a jaxpr computes, equal to those that compute the same of other arrays."""
    return _Program(_plain(jaxpr))


def _plain(jaxpr: Jaxpr) -> Jaxpr:
    """The jaxpr without derivative rules, which have been applied and may hold any object."""

    def inside(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(map(inside, value))
        if isinstance(value, ClosedJaxpr):
            return ClosedJaxpr(_plain(value.jaxpr), value.consts)
        return _plain(value) if isinstance(value, Jaxpr) else value

    def line(eqn: Any) -> Any:
        if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
            call = {"call_jaxpr": inside(eqn.params["call_jaxpr"])}
            return eqn.replace(primitive=closed_call_p, params=call)
        return eqn.replace(params={name: inside(value) for name, value in eqn.params.items()})

    return jaxpr.replace(eqns=list(map(line, jaxpr.eqns)))


class _Unlike(Exception):
    """A program with a parameter that can't be compared, or must not be kept in memory."""


def _text(jaxpr: Jaxpr) -> tuple:
    """Everything that defines a jaxpr, with its variables numbered."""
    numbers: dict[Any, int] = {}

    def name(v: Any) -> Any:
        if isinstance(v, Literal):
            return v.aval, np.asarray(v.val).tobytes()
        return numbers.setdefault(v, len(numbers))

    def param(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr) and not value.consts:
            return _text(value.jaxpr)
        if isinstance(value, Jaxpr):
            return _text(value)
        if isinstance(value, (tuple, list)):
            return type(value), *map(param, value)
        if isinstance(value, (np.ndarray, Array)):
            return value.dtype, value.shape, np.asarray(value).tobytes()
        function = callable(value) and not isinstance(value, (type, Mesh))
        if function or value.__hash__ is None or isinstance(value, ClosedJaxpr):
            raise _Unlike
        return type(value), value

    def line(eqn: Any) -> tuple:
        params = ((k, param(eqn.params[k])) for k in sorted(eqn.params))
        outputs = ((name(v), v.aval) for v in eqn.outvars)
        return eqn.primitive, *params, *map(name, eqn.invars), *outputs

    inputs = [(name(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars)]
    lines, results = map(line, jaxpr.eqns), map(name, jaxpr.outvars)
    return len(jaxpr.constvars), *inputs, *lines, *results
