"""What a network computes of its weights alone, computed once and not at each call.

A network whose weights are orthogonal makes them of its parameters whenever it is called, and an
attack calls it thousands of times. `folded` traces it, and splits the trace.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun
from jax.tree_util import Partial

from lipreg.tracing import compiled, primitives, program, snapshot, trace

__all__ = ["folded"]

# What is worth a program of its own; and what is done again, since it may be as long as a batch.
HEAVY = {"dot_general", "conv_general_dilated", "fft", "while", "scan", "cholesky", "lu", "svd"}
LIGHT = {"broadcast_in_dim", "convert_element_type", "iota", "reshape", "squeeze"}


def folded(f: Callable[[Array], Any], x: Array) -> Partial:
    """`x -> f(x)` for inputs of the shape of x, of any number, with the weights that f makes.

    They are made by the parameters of this call. The result is a pytree, and a function of x alone:
    its derivatives by the parameters are 0. A network that makes no weights by products, solves,
    transforms or loops is returned as its `snapshot`.

    >>> from lipreg.models.lipschitz import cayley
    >>> v, x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    >>> f = Partial(lambda v, x: x @ cayley(v).T, v)
    >>> jnp.abs(folded(f, x)(x) - f(x)).max() < 1e-6
    Array(True, dtype=bool)
    """
    model = snapshot(f)
    known = program(_split(model, x).known)
    if known.text is None or not any(HEAVY & primitives(eqn) for eqn in known.jaxpr.eqns):
        return model
    return snapshot(Partial(_Folded(known), compiled(model, _made)(model, x), model))


class _Folded(NamedTuple):
    known: Any

    def __call__(self, made: list[Array], model: Partial, x: Array) -> Any:
        split = _split(model, x)
        if program(split.known) != self.known:  # for another shape other weights may be made
            return model(x)
        outputs = jaxpr_as_fun(ClosedJaxpr(split.rest, ()))(*made, *split.read, x)
        return jax.tree.unflatten(split.tree, outputs)


def _made(model: Partial, x: Array) -> list[Array]:
    split = _split(model, x)
    return jaxpr_as_fun(ClosedJaxpr(split.known, ()))(*split.read)


class _Split(NamedTuple):
    """A network as `known(*read) -> made` and `rest(*made, *read, x)`."""

    known: Jaxpr
    rest: Jaxpr
    read: list[Any]
    tree: Any


def _split(model: Partial, x: Array) -> _Split:
    closed, result = trace(lambda model, x: model(x), model, x)
    jaxpr = closed.jaxpr
    varied, known, rest = {jaxpr.invars[-1]}, [], []
    for eqn in jaxpr.eqns:
        varies = bool(eqn.effects) or not varied.isdisjoint(_variables(eqn.invars))
        varied.update(eqn.outvars if varies else ())
        (rest if varies else known).append(eqn)
    light = [eqn for eqn in known if eqn.primitive.name in LIGHT]
    rest = [*_needed(light, _read(rest, jaxpr.outvars)), *rest]
    wanted = _read(rest, jaxpr.outvars).difference(*(eqn.outvars for eqn in rest))
    made = [v for eqn in known for v in eqn.outvars if v in wanted]
    read = [*jaxpr.constvars, *jaxpr.invars[:-1]]
    part = lambda invars, outvars, eqns: jaxpr.replace(
        constvars=[], invars=invars, outvars=outvars, eqns=eqns
    )
    return _Split(
        part(read, made, _needed(known, set(made))),
        part([*made, *read, jaxpr.invars[-1]], jaxpr.outvars, rest),
        [*closed.consts, *jax.tree.leaves(model)],
        jax.tree.structure(result),
    )


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [v for v in atoms if not isinstance(v, Literal)]


def _read(eqns: Iterable[Any], outvars: Iterable[Any]) -> set[Var]:
    """What the equations and the results refer to."""
    return {*_variables(outvars), *(v for eqn in eqns for v in _variables(eqn.invars))}


def _needed(eqns: list[Any], wanted: set[Var]) -> list[Any]:
    """Those of the equations that lead to what is wanted."""
    wanted, kept = set(wanted), []
    for eqn in reversed(eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(_variables(eqn.invars))
            kept.append(eqn)
    return kept[::-1]
