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

# What is worth doing once, with all that is computed of it; and what is done again even then, since
# it may be as long as a batch.
HEAVY = {"dot_general", "conv_general_dilated", "fft", "while", "scan", "cholesky", "lu", "svd"}
LIGHT = {"broadcast_in_dim", "convert_element_type", "iota", "reshape", "squeeze"}


def folded(f: Callable[[Array], Any], x: Array) -> Partial:
    """`x -> f(x)` for inputs of the shape of x, of any number, with the weights that f makes.

    Those that are made by products, solves, Fourier transforms or loops: without them it is the
    `snapshot` of f. A pytree, whose leaves are the weights made and those of f; for gradients by
    the parameters of f differentiate f itself. May be jitted.

    >>> from lipreg.models.lipschitz import cayley
    >>> v, x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    >>> f = Partial(lambda v, x: x @ cayley(v).T, v)
    >>> jnp.abs(folded(f, x)(x) - f(x)).max() < 1e-6
    Array(True, dtype=bool)
    """
    model = snapshot(f)
    known = program(_split(model, x).known)
    if known.text is None or not known.jaxpr.eqns:
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
    varied, heavy = {jaxpr.invars[-1]}, set()  # what depends on x; of the rest, on what is heavy
    known, once, again, rest = [], [], [], []
    for eqn in jaxpr.eqns:
        reads = _variables(eqn.invars)
        if eqn.effects or not varied.isdisjoint(reads):
            varied.update(eqn.outvars)
            rest.append(eqn)
            continue
        known.append(eqn)
        if HEAVY & primitives(eqn) or not heavy.isdisjoint(reads):
            heavy.update(eqn.outvars)
        made = not heavy.isdisjoint(eqn.outvars) and eqn.primitive.name not in LIGHT
        (once if made else again).append(eqn)
    rest = [*_needed(again, _read(rest, jaxpr.outvars)), *rest]
    wanted = _read(rest, jaxpr.outvars).difference(*(eqn.outvars for eqn in rest))
    made = [v for eqn in once for v in eqn.outvars if v in wanted]
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
