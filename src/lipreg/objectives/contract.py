"""What every objective is made of: the loss of a batch, its gradient in the input, directions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.typing import ArrayLike

from lipreg.losses import cross_entropy
from lipreg.norms import Norm, expand, finite, wide

__all__ = [
    "GIVEN",
    "BatchLoss",
    "LogitsFn",
    "Loss",
    "Parts",
    "ascent",
    "bind",
    "logits_only",
    "loss_values",
    "moved",
    "outputs",
    "report",
    "strengths",
    "value_and_grad",
    "value_and_input_grad",
    "with_aux",
]

LogitsFn = Callable[[Array], Any]  # logits [B, K], or (logits, aux)
Loss = Callable[[Array, Array], Array]  # of logits and classes, [B]
BatchLoss = Callable[[Array, Array], tuple[Array, Any]]  # of images and classes: [B], aux
Parts = dict[str, Any]


# What a training step hands to an objective by these names.
GIVEN = ("loss", "frozen", "key", "carried")


def strengths(objective: Callable[..., Any]) -> tuple[str, ...]:
    """The names of an objective's traced strengths: `strengths(j2_lip) == ("eps", "lam")`."""
    parameters = inspect.signature(objective).parameters.values()
    required = (p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    return tuple(p.name for p in required if p.name not in GIVEN)


def outputs(logits_fn: LogitsFn, x: Array) -> tuple[Array, Any]:
    """The logits of images, and the network's aux, None where there is none."""
    out = logits_fn(x)
    return out if isinstance(out, tuple) else (out, None)


def logits_only(logits_fn: LogitsFn) -> Callable[[Array], Array]:
    """The network as attacks take it, without its aux."""
    return lambda x: outputs(logits_fn, x)[0]


def loss_values(loss: Loss, logits: Array, x: Array, y: Array) -> Array:
    """The loss of each example, `[B]`; ValueError for one that reduces its batch."""
    values = loss(logits, y)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"A loss returns one value per example, [{x.shape[0]}]; this one has shape "
            f"{list(values.shape)}."
        )
    return wide(values)


def bind(logits_fn: LogitsFn, loss: Loss) -> BatchLoss:
    """`(x, y) -> (values [B], aux)`: the loss of images; aux is None where there is none."""

    def evaluate(x: Array, y: Array) -> tuple[Array, Any]:
        logits, aux = outputs(logits_fn, x)
        return loss_values(loss, logits, x, y), aux

    return evaluate


def value_and_grad(evaluate: BatchLoss, x: Array, y: Array) -> tuple[Array, Array, Any]:
    """`l(x)`, `grad_x l(x)` and the aux of a bound loss; see `value_and_input_grad`."""

    def total(x: Array) -> tuple[Array, tuple[Array, Any]]:
        values, aux = evaluate(x, y)
        return values.sum(), (values, aux)

    grad, (values, aux) = jax.grad(total, has_aux=True)(x)
    return values, grad, aux


def value_and_input_grad(
    logits_fn: LogitsFn, x: Array, y: Array, *, loss: Loss = cross_entropy
) -> tuple[Array, Array, Any]:
    """`l(x)`, `grad_x l(x)` and the network's aux: `[B]`, `[B, ...]`, anything or None.

    Exact where the logits of one example do not depend on the others; under batch statistics row i
    is the derivative of the batch's *sum* in `x_i`.
    """
    return value_and_grad(bind(logits_fn, loss), x, y)


def with_aux(parts: Parts, aux: Any) -> Parts:
    """The parts, and the network's aux where it returned one."""
    return parts if aux is None else parts | {"aux": aux}


def report(values: Array, sizes: Array, aux: Any) -> Parts:
    """The parts that the penalties share."""
    parts = {"loss": values.mean(), "grad_norm": sizes.mean(), "max_grad_norm": sizes.max()}
    return with_aux(parts, aux)


def ascent(evaluate: BatchLoss, x: Array, y: Array, norm: Norm) -> tuple[Array, Array, Array]:
    """Values, dual norms and steepest directions, none of them differentiated in the parameters."""
    values, grad, _ = value_and_grad(evaluate, x, y)
    return jax.lax.stop_gradient((values, norm.dual(grad), norm.direction(finite(grad))))


def moved(x: Array, length: ArrayLike, direction: Array) -> Array:
    """`x + length direction`, computed in float32 where x is in half precision."""
    return (wide(x) + expand(length, direction) * direction).astype(x.dtype)
