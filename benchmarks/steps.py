"""The training steps whose speed is measured, made as `experiments/train.py` makes them.

The flags here are those of all programs that measure them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

from lipreg import models, objectives, train

# The two networks of experiments/configs/cifar10.py, and their further fields.
NETWORKS: dict[str, dict[str, Any]] = {
    "CNN": {"channels": (32, 64, 128), "batch_norm": True},
    "ResNeXt34_2x32": {},
}
# Name and options of an objective, by what the tables call it.
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "j0": ("j0", {}),
    "j1 by attack": ("j1", {"method": "attack"}),
    "j2 by attack": ("j2", {"method": "attack"}),
    "j2 by penalty": ("j2", {"method": "penalty"}),
    "tikhonov by difference": ("tikhonov", {"method": "difference"}),
    "j2_lip": ("j2_lip", {"method": "attack"}),
    "j2_lip of all": ("j2_lip", {"method": "attack", "top_k": 0}),
}
STRENGTH = 0.1  # of eps and lam alike: the time of a step does not depend on it
RATE, DECAY = 1e-3, 5e-4
SGD = train.optimizer(RATE, weight_decay=DECAY)

CASES = flags.DEFINE_list(
    "cases",
    ["CNN/32", "CNN/128", "ResNeXt34_2x32/32"],
    f"NETWORK/BATCH, the network one of {', '.join(NETWORKS)}",
)
ONLY = flags.DEFINE_list("only", [], "rows, as the table names them; j0 always; default: all")
REPEATS = flags.DEFINE_integer("repeats", 9, "interleaved repetitions", lower_bound=3)
OUT = flags.DEFINE_string("out", "results/speed", "folder of the reports")


@flags.validator("cases", f"a case is NETWORK/BATCH, the network one of {', '.join(NETWORKS)}")
def _known(cases: list[str]) -> bool:
    parts = [case.split("/") for case in cases]
    return all(len(p) == 2 and p[0] in NETWORKS and p[1].isdecimal() for p in parts)


def cases() -> list[tuple[str, int]]:
    """The networks and batch sizes asked for."""
    parts = (case.split("/") for case in CASES.value)
    return [(network, int(batch)) for network, batch in parts]


def wanted(name: str) -> bool:
    """Whether the row is asked for."""
    return name == "j0" or not ONLY.value or name in ONLY.value


def start(network: str, batch: int, **fields: Any) -> tuple[train.Apply, train.State, Any]:
    """A network as a function, its first state, and a batch of noise `[batch, 32, 32, 3]`."""
    model = models.build(network, classes=10, **NETWORKS[network] | fields)
    rng = np.random.default_rng(0)
    x = rng.random((batch, 32, 32, 3), np.float32)
    y = rng.integers(0, 10, batch, np.int32)
    params, running = _variables(model, x)
    state = train.init(jax.random.key(0), params, running, SGD)
    return models.functional(model), state, jax.device_put((x, y))


def _variables(model: Any, x: np.ndarray) -> tuple[Any, Any]:
    """Parameters, and running statistics that are those of the batch, as at the end of training.

    At first they are 0 and 1, and a deep network then returns numbers too large to be like any
    other: one pass leaves `0.9 first + 0.1 batch`.
    """
    first = dict(jax.jit(partial(model.init, train=False))(jax.random.key(0), x))
    params = first.pop("params")
    _, mixed = jax.jit(models.functional(model), static_argnums=3)(params, first, x, True)
    return params, jax.tree.map(lambda mixed, first: (mixed - 0.9 * first) / 0.1, mixed, first)


def step(
    apply: train.Apply, name: str, tx: optax.GradientTransformation = SGD
) -> tuple[Callable, dict[str, np.float32]]:
    """A training step on one of `OBJECTIVES`, and its strengths."""
    objective, options = OBJECTIVES[name]
    function = partial(getattr(objectives, objective), **options)
    strengths = dict.fromkeys(objectives.strengths(function), np.float32(STRENGTH))
    return train.make_step(apply, function, tx), strengths
