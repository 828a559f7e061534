"""An optimiser by its name, and its learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lipreg.contracts import at_least_one, not_negative
from lipreg.doors import named
from lipreg.optimizers.around import AROUND

__all__ = ["NAMES", "build", "schedule", "sgd"]

# Those of optax that need gradients alone and accept a schedule. Others, optax.contrib:muon for
# instance, are named by their import path, as an outsider's are.
NAMES = (
    *("sgd", "adam", "adamw", "lion", "adabelief", "adadelta", "adafactor", "adagrad", "adamax"),
    *("adamaxw", "adan", "amsgrad", "fromage", "lamb", "lars", "nadam", "nadamw", "noisy_sgd"),
    *("novograd", "optimistic_adam_v2", "optimistic_gradient_descent", "radam", "rmsprop"),
    *("sign_sgd", "signum", "yogi"),
)
_UNFIT = ("lbfgs", "optimistic_adam", "polyak_sgd", "rprop", "sm3")  # `build` says why


def schedule(name: str, learning_rate: float, steps: int) -> optax.Schedule:
    """The learning rate at each of `steps` steps.

    `papers`: x 0.2 after 30 %, 60 % and 80 % of training (60, 120, 160 of 200 epochs in the code of
    1905.11468); `cosine`: `lr/2 (1 + cos(pi s/steps))`; `cyclic`: from 0 to lr at 2/5 of training
    and back to 0, in two lines (the code of 2001.03994, for fast training); `constant`.

    >>> schedule("papers", 0.1, 200)(159), schedule("cosine", 0.1, 200)(200)
    (Array(0.004, dtype=float32), Array(0., dtype=float32))
    """
    peak = round(0.4 * steps)
    schedules = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, steps),
        "cyclic": lambda: optax.join_schedules(
            [
                optax.linear_schedule(0.0, learning_rate, peak),
                optax.linear_schedule(learning_rate, 0.0, steps - peak),
            ],
            [peak],
        ),
        "papers": lambda: optax.piecewise_constant_schedule(
            learning_rate, {max(1, round(steps * f)): 0.2 for f in (0.3, 0.6, 0.8)}
        ),
    }
    if name not in schedules:
        raise ValueError(f"No schedule {name!r}; choose one of {', '.join(schedules)}.")
    rate = schedules[name]()
    return lambda step: rate(jnp.asarray(step, jnp.float32))  # strict promotion takes no integer


def build(
    name: str,
    rate: optax.Schedule | float,
    /,
    *,
    weight_decay: float = 0.0,
    clip: float = 0.0,
    accumulate: int = 1,
    around: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None,
    **options: Any,
) -> optax.GradientTransformation:
    """The optimiser called `name`, one of `NAMES` or `package.module:name`, with its `options`.

    An outsider's is a function `(learning_rate, **options) -> optax.GradientTransformation`.
    `weight_decay` is handed to an optimiser that takes it, as adamw does. Otherwise it is added to
    the gradient: the derivative of `weight_decay/2 ||w||^2`. `clip` bounds the gradient's global
    norm before the decay; 0 leaves it alone. The weights move every `accumulate` steps, by the mean
    of those steps' gradients: whatever is computed over a batch, a maximum of gradient norms or
    batch normalisation, is then computed over each part by itself. `rate` counts the moves.

    `around` is one of `optimizers.wrapper`: perturbations are neither clipped nor decayed, but the
    pull of `local_entropy` is a part of its gradient. Each gradient is such a mean. An optimiser
    that takes a `key` gets one, into which `training.init` folds the run's.

    Raises: ValueError for an unknown name or option, for negative or infinite numbers, and for an
    optimiser that needs more than gradients (lbfgs) or takes no schedule.

    >>> build("adamw", 0.1, weight_decay=0.01, b2=0.95).init({"w": jnp.ones(2)})[2][0].mu["w"]
    Array([0., 0.], dtype=float32)
    """
    not_negative("build", weight_decay=weight_decay, clip=clip)
    at_least_one("build", accumulate=accumulate)
    own = {known: getattr(optax, known) for known in NAMES} | AROUND
    make: Any = named("optimizer", f"optax:{name}" if name in _UNFIT else name, own)
    if name in AROUND:
        raise ValueError(f"{name} goes around an optimizer: name that one, and {name} as `around`.")
    if not callable(make):
        raise ValueError(
            f"{name!r} is a {type(make).__name__}; an optimizer is (learning_rate, **options) -> "
            "optax.GradientTransformation."
        )
    parameters = inspect.signature(make).parameters
    takes = list(parameters)[1:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    decays = "weight_decay" in takes
    for option in options:
        if option not in takes and not takes_any:
            known = ", ".join(word for word in takes if word != "weight_decay")
            raise ValueError(f"No option {option!r} of the optimizer {name!r}; it takes {known}.")
    if "key" in takes and "key" not in options:
        options["key"] = jax.random.key(0)
    try:
        moves: Any = make(rate, **options, **({"weight_decay": weight_decay} if decays else {}))
        _try(moves)
    except Exception as error:  # whatever is raised by a transformation that needs more
        why = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"The optimizer {name!r} makes no step of gradients and a schedule of the learning "
            f"rate alone ({type(error).__name__}: {why})."
        ) from error
    tx = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.identity() if decays else optax.add_decayed_weights(weight_decay),
        moves,
    )
    tx = around(tx) if around else tx
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx


def _try(tx: optax.GradientTransformation) -> None:
    """Trace a step on a small tree."""
    w = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    with jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(lambda w: tx.update(w, tx.init(w), w), w)


def sgd(
    rate: optax.Schedule | float,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip: float = 0.0,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """SGD: `v <- momentum v + g + weight_decay w`, `w <- w - rate v`.

    The papers add `5e-4 ||w||^2` over all weights, which is a `weight_decay` of 1e-3. The other
    arguments are those of `build`.
    """
    return build(
        "sgd",
        rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
    )
