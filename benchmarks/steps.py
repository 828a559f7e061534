"""The training steps whose speed is measured, made as `experiments/train.py` makes them."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lipreg import models, objectives, optimizers, training
from lipreg.training import cost

# The two networks of experiments/configs/cifar10.py and a third, and their further fields.
NETWORKS: dict[str, dict[str, Any]] = {
    "CNN": {"channels": (32, 64, 128), "batch_norm": True},
    "ResNeXt34_2x32": {},
    "ResNet18": {},
}
# Name and options of an objective, by what the tables call it.
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "j0": ("j0", {}),
    "j1 by attack": ("j1", {"method": "attack"}),
    "j2 by attack": ("j2", {"method": "attack"}),
    "j2 by penalty": ("j2", {"method": "penalty"}),
    "tikhonov by difference": ("tikhonov", {"method": objectives.difference()}),
    "j2_lip": ("j2_lip", {"method": "attack"}),
    "j2_lip of all": ("j2_lip", {"method": "attack", "top_k": 0}),
}
# Those that attack or draw, their steps unrolled: of a loop, XLA counts one.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("jacobian", "fgsm_rs", "n_fgsm")},
    "pgd_at": ("pgd_at", {"attack": "pgd(steps=10, unroll=True)"}),
    "trades": ("trades", {"unroll": 10}),
    "mart": ("mart", {"attack": "pgd(steps=10, unroll=True)"}),
    **{name: (name, {}) for name in ("grad_align", "elle", "cure")},
    "llr": ("llr", {"unroll": 2}),
}
STRENGTH = 0.1  # of all strengths alike: the time of a step does not depend on it
RATE, DECAY = 1e-3, 5e-4
SGD = optimizers.sgd(RATE, weight_decay=DECAY)


def start(
    network: str, batch: int, side: int = 32, **fields: Any
) -> tuple[training.Apply, training.State, Any]:
    """A network as a function, its first state, and a batch of noise `[batch, side, side, 3]`."""
    model = models.build(network, classes=10, **NETWORKS[network] | fields)
    rng = np.random.default_rng(0)
    x = rng.random((batch, side, side, 3), np.float32)
    y = rng.integers(0, 10, batch, np.int32)
    in_float32 = model.clone(dtype=jnp.float32)  # weights are in float32 whatever it computes in
    params, running = jax.device_put(_variables(in_float32, side), jax.devices()[0])
    state = training.init(jax.random.key(0), params, running, SGD)
    return models.functional(model), state, jax.device_put((x, y))


@cache
def _variables(model: Any, side: int) -> tuple[Any, Any]:
    """Parameters, and running statistics that are those of a batch, as at the end of training.

    They are initialised to 0 and 1, with which a deep network returns atypically large numbers; one
    pass leaves `0.9 first + 0.1 batch`. Computed on CPU, which compiles that fastest.
    """
    x = np.random.default_rng(0).random((32, side, side, 3), np.float32)
    with jax.default_device(jax.devices("cpu")[0]):
        first = dict(jax.jit(partial(model.init, train=False))(jax.random.key(0), x))
        params = first.pop("params")
        _, mixed = jax.jit(models.functional(model), static_argnums=3)(params, first, x, True)
    return params, jax.tree.map(lambda mixed, first: (mixed - 0.9 * first) / 0.1, mixed, first)


def step(
    apply: training.Apply, name: str, tx: optax.GradientTransformation = SGD
) -> tuple[Callable, dict[str, np.float32]]:
    """A training step on one of `OBJECTIVES` or `RECIPES`, and its strengths."""
    objective, options = (OBJECTIVES | RECIPES)[name]
    function = partial(getattr(objectives, objective), **options)
    strengths = dict.fromkeys(objectives.strengths(function), np.float32(STRENGTH))
    return training.make_step(apply, function, tx), strengths


def price(name: str, batch: int) -> float:
    """Forward units of a training step on one of `OBJECTIVES` or `RECIPES`."""
    objective, options = (OBJECTIVES | RECIPES)[name]
    return cost.price(objective, options.get("method", ""), batch, top_k=options.get("top_k", 1))


def repeated(compiled: Callable, state: training.State, *inputs: Any) -> Callable[[int], None]:
    """`run(n)`: n steps of a compiled program that is passed its state, waiting once at the end."""
    state = jax.tree.map(jnp.copy, state)

    def run(calls: int) -> None:
        nonlocal state
        for _ in range(calls):
            state, parts = compiled(state, *inputs)
        jax.block_until_ready(parts)

    return run
