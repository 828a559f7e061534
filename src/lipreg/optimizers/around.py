"""An optimiser around another one, by name: `sam(rho=0.1, inner='adamw(b2=0.95)')`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optax

from lipreg.doors import called, told
from lipreg.optimizers.relaxation import local_entropy
from lipreg.optimizers.sharpness import awp, sam

__all__ = ["AROUND", "nested", "period", "updates", "wrapper"]

AROUND: dict[str, Callable[..., Any]] = {"sam": sam, "awp": awp, "local_entropy": local_entropy}


def nested(text: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """An optimiser's name and options, after those of one that is around it.

    >>> nested("sam(rho=0.1, inner='adamw(b2=0.95)')")
    (('sam', {'rho': 0.1}), ('adamw', {'b2': 0.95}))
    >>> nested("awp"), nested("adam")
    ((('awp', {}), ('sgd', {})), (('adam', {}),))
    """
    name, options = called(text)
    if name not in AROUND:
        return ((name, options),)
    inner = options.pop("inner", "sgd")
    if not isinstance(inner, str) or called(inner)[0] in AROUND:
        raise ValueError(f"inner = {inner!r} of {name}; want the name of an optimizer, 'adam'.")
    return (name, options), called(inner)


def wrapper(
    name: str, options: dict[str, Any], rate: optax.Schedule | float
) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
    """One of `AROUND` as a function of the inner optimiser, whose `rate` is handed to those that
    take it; ValueError for an option that it does not have."""
    make, takes = AROUND[name], _defaults(name)
    for option in options:
        if option not in takes:
            known = ", ".join(("inner", *takes))
            raise ValueError(f"No option {option!r} of the optimizer {name!r}; it takes {known}.")
    rated = {"rate": rate} if "rate" in inspect.signature(make).parameters else {}

    def around(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        with told(f"The optimizer {name!r} cannot be made of these options"):
            return make(inner, **rated, **options)

    return around


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(AROUND[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def period(name: str, options: dict[str, Any]) -> int:
    """The steps before the first move of the weights at rest.

    >>> period("sam", {}), period("local_entropy", {"period": 5}), period("adam", {})
    (2, 5, 1)
    """
    if name not in AROUND:
        return 1
    given = _defaults(name) | options
    return given["period"] if "period" in given else 1 if given.get("warmup") else 2


def updates(name: str, options: dict[str, Any], steps: int) -> int:
    """How often one of `AROUND` updates its inner optimiser in so many steps, rounded up.

    >>> updates("sam", {}, 10), updates("awp", {"warmup": 4}, 10), updates("local_entropy", {}, 10)
    (5, 7, 10)
    """
    wrapper(name, options, 0.0)(optax.identity())  # refuses what it cannot be made of
    given = _defaults(name) | options
    if name == "local_entropy":  # one state of it for each replica
        each = given["period"] if given["variant"] == "heat" else 1
        return -(-steps // (each * given["replicas"]))
    alone = min(given.get("warmup", 0), steps)
    return alone - (alone - steps) // 2
