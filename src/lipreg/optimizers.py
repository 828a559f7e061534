"""Optimisers and their learning rates: optax, by name."""

import jax.numpy as jnp
import optax

__all__ = ["schedule", "sgd"]


def schedule(name: str, learning_rate: float, steps: int) -> optax.Schedule:
    """The learning rate at each of `steps` steps.

    `papers`: x 0.2 after 30 %, 60 % and 80 % of training (60, 120, 160 of 200 epochs in the code of
    1905.11468); `cosine`: `lr/2 (1 + cos(pi s/steps))`; `constant`.

    >>> schedule("papers", 0.1, 200)(159), schedule("cosine", 0.1, 200)(200)
    (Array(0.004, dtype=float32), Array(0., dtype=float32))
    """
    schedules = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, steps),
        "papers": lambda: optax.piecewise_constant_schedule(
            learning_rate, {round(steps * f): 0.2 for f in (0.3, 0.6, 0.8)}
        ),
    }
    if name not in schedules:
        raise ValueError(f"No schedule {name!r}; choose one of {', '.join(schedules)}.")
    rate = schedules[name]()
    return lambda step: rate(jnp.asarray(step, jnp.float32))  # strict promotion takes no integer


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

    `weight_decay` is the derivative's coefficient, of `weight_decay/2 ||w||^2`; the papers add
    `5e-4 ||w||^2` over all weights, which is 1e-3 here. `clip` bounds the gradient's global norm
    before the decay; 0 leaves it alone. The weights move every `accumulate` steps, by the mean of
    those steps' gradients: what looks at the whole batch, a maximum of gradient norms or batch
    normalisation, then looks at each of the parts. `rate` counts the moves.
    """
    tx = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum, nesterov),
    )
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx
