"""What is compiled for a config, made once for all configs that can share it."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import FrozenConfigDict

from lipreg import attacks, curves, datasets, losses, models, norms, optimizers, training
from lipreg.runs.config import Config, bound_objective

__all__ = ["Program", "of"]


class Program(NamedTuple):
    """What configs share that differ in their seeds and strengths alone: all that is compiled.

    Attributes:
      apply: the model as a function.
      init: the first state of a run, `(key of the weights, key of the steps) -> State`.
      step: see `training.make_step`.
      wrong: `(logits_fn, keys, x, y) -> [B] each`, misclassified at x and under a short PGD.
    """

    apply: training.Apply
    init: Callable[[Array, Array], training.State]
    step: Callable
    wrong: Callable[..., dict[str, Array]]


def of(config: Config, dataset: datasets.Dataset, steps: int) -> Program:
    """The program of a config for images like the data set's; the same for all that share it."""
    shared = config.copy_and_resolve_references()
    shared.seed = 0
    for name in shared.strengths:
        shared.strengths[name] = 0.0
    return _compiled(FrozenConfigDict(shared), dataset.classes, dataset.x.shape[1:], steps)


@lru_cache(maxsize=8)
def _compiled(config: Config, classes: int, shape: tuple[int, ...], steps: int) -> Program:
    m, t, d, pgd = config.model, config.train, config.data, config.report.pgd
    model = models.build(
        m.name, classes=classes, head=m.head, activation=m.activation, **m.settings
    )
    apply = models.functional(model, precision=t.precision)
    tx = optimizers.sgd(
        optimizers.schedule(t.schedule, t.learning_rate, -(-steps // t.accumulate)),
        momentum=t.momentum,
        nesterov=t.nesterov,
        weight_decay=t.weight_decay,
        clip=t.clip,
        accumulate=t.accumulate,
    )

    def init(weights: Array, key: Array) -> training.State:
        variables = model.init(weights, jnp.zeros((1, *shape), jnp.float32), train=False)
        model_state = {name: value for name, value in variables.items() if name != "params"}
        return training.init(key, variables["params"], model_state, tx, ema=t.ema > 0)

    step = training.make_step(
        apply,
        bound_objective(config),
        tx,
        loss=getattr(losses, config.loss),
        augment=partial(datasets.augment, flip=d.flip, pad=d.pad, cutout=d.cutout),
        ema_decay=t.ema,
        ramp=("lam", ramp) if (ramp := round(t.ramp * steps)) else None,
    )

    def wrong(logits_fn: Callable, keys: Array, x: Array, y: Array) -> dict[str, Array]:
        norm = norms.by_name(pgd.norm)
        x_adv = attacks.pgd(keys, logits_fn, x, y, pgd.eps, norm=norm, steps=pgd.steps)
        found = curves.distance(logits_fn, x, y, x_adv, norm=norm)
        return {"validation_error": found == 0, "validation_error_pgd": found < jnp.inf}

    return Program(apply, jax.jit(init), step, jax.jit(wrong))
