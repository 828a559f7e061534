"""Operations that are read in another form: the same function, in primitives that have rules."""

from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import jaxpr_as_fun

from lipreg import convolution
from lipreg.lipschitz.bounds.kinds import CALLS
from lipreg.tracing import inner

__all__ = ["LONGEST", "REWRITTEN", "other_form", "read_as"]

LONGEST = 1000  # loops that are unrolled
MOST = 2**24  # entries of the matrix of a sum
FORMS: dict[str, tuple[Callable, tuple]] = {}  # see `read_as`: the form, and of which arrays


def read_as(form: Callable) -> Callable[[Callable], Callable]:
    """Decorates f, in whose place proved bounds read `form`: the same function of the same arrays.

    For what is written in one way for its speed or its range, and in another for its proof.
    Arguments are arrays; f may depend on nothing else.

    >>> from lipreg.lipschitz.bounds import lipschitz
    >>> f = read_as(lambda x: 2 * x)(lambda x: jnp.cumsum(x, 0) + x)
    >>> lipschitz(f, jnp.zeros((1, 3))).output.round(3)
    Array([2.], dtype=float32)
    """

    def decorate(f: Callable) -> Callable:
        number = len(FORMS)

        @cache
        def named(*arrays: tuple) -> Callable:
            @wraps(f)
            def run(*args: Array) -> Array:
                return f(*args)

            run.__name__ = f"read_as_{number}_{len(FORMS)}_{f.__name__}"
            FORMS[run.__name__] = form, arrays
            return jax.jit(run)

        @wraps(f)
        def call(*args: Array) -> Array:
            return named(*map(_array, args))(*args)

        return call

    return decorate


def _array(a: Any) -> tuple:
    return jnp.shape(a), jnp.result_type(a)


def _form(eqn: Any) -> Callable | None:
    """Of a call of a function with another form, unless vmap or grad have made another of it."""
    form, arrays = FORMS.get(str(eqn.params.get("name")), (None, ()))
    same = arrays == tuple(_array(v.aval) for v in eqn.invars) and len(eqn.outvars) == 1
    return form if same else None


def other_form(eqn: Any) -> Callable | None:
    """A function of the equation's arguments, or None where it is read as it is."""
    name, params = eqn.primitive.name, eqn.params
    if eqn.primitive is convolution.partial_p:
        return partial(convolution.in_lax, **params)
    if name in CALLS:
        return _form(eqn)
    return REWRITTEN[name](eqn) if name in REWRITTEN else None


def _unrolled(eqn: Any) -> Callable:
    """A loop with a known number of turns, turn by turn."""
    (body,), params = inner(eqn), eqn.params
    turns = params["length"]

    def whole(outside: Sequence, inside: Sequence) -> int:
        """How many are handed on whole: rows and what is stacked have one axis less inside."""
        pairs = zip(outside, inside, strict=True)
        return sum(a.aval.ndim == b.aval.ndim for a, b in pairs)

    carried = whole(eqn.outvars, body.jaxpr.outvars)
    fixed = whole(eqn.invars, body.jaxpr.invars) - carried
    if turns > LONGEST:
        raise ValueError(
            f"No bound for a 'scan' of {turns} turns; lipreg.lipschitz.declare the constant of a "
            f"function around it, or write one of at most {LONGEST}."
        )
    turn_once = jaxpr_as_fun(body)
    order = range(turns)[:: -1 if params["reverse"] else 1]

    def run(*args: Array) -> list[Array]:
        constants, rows = args[:fixed], args[fixed + carried :]
        carry = args[fixed : fixed + carried]
        made: dict[int, Any] = {}
        for turn in order:
            # Not `row[turn]`, which is a gather.
            own = [jax.lax.index_in_dim(row, turn, keepdims=False) for row in rows]
            out = turn_once(*constants, *carry, *own)
            carry, made[turn] = out[:carried], out[carried:]
        columns = zip(*(made[turn] for turn in range(turns)), strict=True)
        stacked = [jnp.stack(column) for column in columns]
        empty = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[carried:]]
        return [*carry, *(stacked if turns else empty)]

    return run


def _triangle(eqn: Any) -> Callable:
    """A cumulative sum, as the product with a matrix of zeros and ones."""
    axis, down = eqn.params["axis"], not eqn.params["reverse"]

    def run(x: Array) -> Array:
        ones = jnp.ones((x.shape[axis],) * 2, x.dtype)
        matrix = jnp.triu(ones) if down else jnp.tril(ones)
        return jnp.moveaxis(jnp.tensordot(x, matrix, (axis, 0)), -1, axis)

    return run


def _inverse(eqn: Any) -> Callable:
    """`x.at[i].set(u)`: the entry of u that is put there, or else that of x."""
    update = eqn.params["update_jaxpr"]
    if update is not None and update.outvars != update.invars[1:]:
        raise ValueError("No bound for a 'scatter' that applies a function: use where.")
    if not eqn.params["unique_indices"]:
        raise ValueError(
            "No bound for a 'scatter' that may write twice; state unique_indices=True."
        )

    def run(x: Array, indices: Array, u: Array) -> Array:
        places = jnp.arange(u.size, dtype=jnp.int32).reshape(u.shape)
        nowhere = jnp.full(x.shape, u.size, jnp.int32)
        place = eqn.primitive.bind(nowhere, indices, places, **eqn.params)
        there = u.reshape(-1).at[place].get(mode="fill", fill_value=0)
        return jnp.where(place < u.size, there, x)

    return run


def _summed(eqn: Any) -> Callable:
    """`x.at[i].add(u)`, segment sums: x, and the product of u with a matrix of zeros and ones."""
    x, _, u = (v.aval for v in eqn.invars)
    if x.size * u.size > MOST:
        raise ValueError(
            f"No bound for a 'scatter-add' of {u.size} numbers into {x.size}: it is read as a "
            f"matrix of at most {MOST} entries."
        )

    def run(x: Array, indices: Array, u: Array) -> Array:
        put = lambda one: eqn.primitive.bind(
            jnp.zeros_like(x), indices, one.reshape(u.shape), **eqn.params
        )
        matrix = jax.vmap(put)(jnp.eye(u.size, dtype=u.dtype)).reshape(u.size, x.size)
        return x + (u.reshape(-1) @ matrix).reshape(x.shape)

    return run


REWRITTEN = {"scan": _unrolled, "cumsum": _triangle, "scatter": _inverse, "scatter-add": _summed}
