"""What a network computes of its weights alone, computed once and not at each call.

A network whose weights are orthogonal makes them of its parameters whenever it is called, and an
attack calls it thousands of times. `folded` traces it, and splits the trace.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun
from jax.tree_util import Partial

from lipreg.tracing import compiled, inlined, primitives, program, snapshot, trace

__all__ = ["folded"]

# What is worth doing once, with all that is computed of it; and what is done again even then, since
# it may be as long as a batch.
HEAVY = {"dot_general", "conv_general_dilated", "fft", "while", "scan"}
HEAVY |= {"cholesky", "eig", "eigh", "householder_product", "lu", "qr", "geqrf", "schur", "svd"}
HEAVY |= {"triangular_solve", "tridiagonal_solve"}
LIGHT = {"broadcast_in_dim", "convert_element_type", "iota", "reshape", "squeeze"}


def folded(f: Callable[[Array], Any], x: Array) -> Partial:
    """`x -> f(x)`, the weights that f makes being made already: a pytree, and a function of x.

    These are what f computes without x by products, solves, decompositions, Fourier transforms or
    loops, outside of `jax.checkpoint`, scans and custom derivatives. If there are none, it is the
    `snapshot` of f. `x` has the shape of the inputs to come. Their number may change; where other
    weights are made for another number, or other devices, f is computed as a whole. Derivatives by
    the leaves pass by custom rules: differentiate f for these.

    >>> from lipreg.models.lipschitz import cayley
    >>> v, x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    >>> f = Partial(lambda v, x: x @ cayley(v).T, v)
    >>> jnp.abs(folded(f, x)(x) - f(x)).max() < 1e-6
    Array(True, dtype=bool)
    """
    model = snapshot(f)
    split = _split(model, x)
    known = program(split.known)
    if known.text is None or not known.jaxpr.eqns:
        return model
    made = compiled(model, _made)(model, x)
    return snapshot(Partial(_Folded(known, split.consts), made, model))


class _Folded(NamedTuple):
    """Calls the rest of a network where the weights are those that were made.

    Attributes:
      known: the program that made them.
      consts: the arrays that it reads besides the leaves of the model.
    """

    known: Any
    consts: list[Any]

    def __call__(self, made: list[Array], model: Partial, x: Array) -> Any:
        split = _split(model, x)
        if program(split.known) != self.known or not all(map(_same, split.consts, self.consts)):
            return model(x)
        outputs = jaxpr_as_fun(ClosedJaxpr(split.rest, ()))(*made, *split.read, x)
        return jax.tree.unflatten(split.tree, outputs)


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays of one shape have the same entries, as far as that is known now."""
    known = lambda v: not (isinstance(v, Tracer) or jnp.issubdtype(v.dtype, jax.dtypes.extended))
    if a is b or not (known(a) and known(b)):
        return a is b
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _made(model: Partial, x: Array) -> list[Array]:
    split = _split(model, x)
    return jaxpr_as_fun(ClosedJaxpr(split.known, ()))(*split.read)


class _Split(NamedTuple):
    """A network as `known(*read) -> made` and `rest(*made, *read, x)`.

    Attributes:
      read: the arrays that the network holds, and its leaves.
      consts: those of the former that `known` reads.
      tree: of the network's results.
    """

    known: Jaxpr
    rest: Jaxpr
    read: list[Any]
    consts: list[Any]
    tree: Any


def _split(model: Partial, x: Array) -> _Split:
    whole, result = trace(lambda model, x: model(x), model, x)
    closed, _ = trace(lambda *leaves: inlined(whole, [*leaves]), *jax.tree.leaves((model, x)))
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
    known = _needed(known, set(made))
    of_known = _read(known, made)
    part = lambda invars, outvars, eqns: jaxpr.replace(
        constvars=[], invars=invars, outvars=outvars, eqns=eqns
    )
    return _Split(
        part(read, made, known),
        part([*made, *read, jaxpr.invars[-1]], jaxpr.outvars, rest),
        [*closed.consts, *jax.tree.leaves(model)],
        [a for v, a in zip(jaxpr.constvars, closed.consts, strict=True) if v in of_known],
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
