"""How a penalty is computed: the values of an objective's `method`.

A method without options is its name, `"attack"`, `"penalty"`, `"gradient"`; one with options is a
value that carries them, `difference(h, order)`, `pairs(steps, bounds)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg.box import Bounds
from lipreg.contracts import check_radius
from lipreg.doors import called
from lipreg.lipschitz.functions import ascended_pairs
from lipreg.norms import Norm, largest, wide
from lipreg.objectives.contract import BatchLoss, Parts, ascent, moved, report, value_and_grad

__all__ = ["Method", "difference", "first_order", "gradient_sizes", "method", "pairs"]


class difference(NamedTuple):  # in lower case: as a method it stands beside "attack" and "penalty"
    """The gradient norm by a finite step h along the steepest direction d (1905.11468).

    `(l(x + h d) - l(x)) / h`, or with `order=2` the central `(l(x + h d) - l(x - h d)) / 2h`.
    """

    h: float = 1e-2
    order: int = 1

    def __call__(self, evaluate: BatchLoss, x: Array, y: Array, direction: Array) -> Any:
        """Values, the differences `[B]`, and the aux."""
        if self.order not in (1, 2):
            raise ValueError(f"No difference of order {self.order!r}; choose 1 or 2.")
        values, aux = evaluate(x, y)
        ahead, _ = evaluate(moved(x, self.h, direction), y)
        if self.order == 1:
            return values, (ahead - values) / self.h, aux
        behind, _ = evaluate(moved(x, -self.h, direction), y)
        return values, (ahead - behind) / (2 * self.h), aux


class pairs(NamedTuple):  # in lower case: as a method it stands beside "gradient"
    """The largest quotient `|f_k(u) - f_k(v)| / ||u - v||` of pairs found by ascent (2103.12531).

    u and v move in `steps` from each x, inside `bounds`, the data's box.
    """

    steps: int = 5
    bounds: Bounds = (0.0, 1.0)

    def __call__(self, f: Callable[[Array], Array], x: Array, norm: Norm) -> Array:
        # The first directions may be the same at every step: the batches are not.
        key, steps, bounds = jax.random.key(0), self.steps, self.bounds
        ascended = ascended_pairs(key, f, x, norm=norm, steps=steps, bounds=bounds)
        top = ascended.quotients.argmax()[None]
        u, v = ascended.x1[top], ascended.x2[top]
        gap = largest(jnp.abs(wide(f(u)) - wide(f(v))).reshape(-1))
        return gap / norm.size(wide(u) - wide(v))[0]


Method = str | difference | pairs


def method(text: str) -> Method:
    """The method that a text names, with its options.

    Raises: ValueError for an option that it does not have, and for a step that is no step.

    >>> method("penalty"), method("difference(order=2)")
    ('penalty', difference(h=0.01, order=2))
    """
    name, options = called(text)
    forms = {"difference": difference, "pairs": pairs}
    if name not in forms:
        return text
    for option in options:
        if option not in forms[name]._fields:
            fields = ", ".join(forms[name]._fields)
            raise ValueError(f"No option {option!r} of {name}; choose one of {fields}.")
    h = options.get("h", 1.0)
    if not isinstance(h, int | float) or not 0 < h < math.inf:
        raise ValueError(f"h = {h!r} of {name}; it must be a number greater than 0.")
    return forms[name](**options)


def gradient_sizes(
    trained: BatchLoss, frozen: BatchLoss, x: Array, y: Array, norm: Norm, method: Method
) -> tuple[Array, Array, Any]:
    """Values [B] and gradient norms [B], both differentiable in the parameters, and the aux."""
    if isinstance(method, difference):
        _, _, direction = ascent(frozen, x, y, norm)
        return method(trained, x, y, direction)
    if method != "penalty":
        raise ValueError(f"No method {method!r} here; choose penalty or difference(h, order).")
    values, grad, aux = value_and_grad(trained, x, y)
    return values, norm.dual(grad), aux


def first_order(
    trained: BatchLoss,
    frozen: BatchLoss,
    x: Array,
    y: Array,
    eps: ArrayLike,
    norm: Norm,
    method: Method,
) -> tuple[Array, Array, Parts]:
    """`E[l + eps ||grad l||_*]` by `method`, the gradient norms [B], and the parts."""
    check_radius(eps)
    if method == "attack":
        values, sizes, direction = ascent(frozen, x, y, norm)
        penalised, aux = trained(moved(x, eps, direction), y)
    elif method == "penalty" or isinstance(method, difference):
        values, sizes, aux = gradient_sizes(trained, frozen, x, y, norm, method)
        penalised = values + eps * sizes
    else:
        raise ValueError(
            f"No method {method!r}; choose one of attack, penalty, difference(h, order)."
        )
    return penalised.mean(), sizes, report(values, sizes, aux)
