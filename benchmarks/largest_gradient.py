"""How far apart the forms of J2-Lip's last term are: `python benchmarks/largest_gradient.py`.

`max_i ||grad l(x_i)||_2` is taken of the clean or of the attacked images, and differentiated in the
parameters through the frozen view of one example or through the batch's statistics. A small CNN
with batch normalisation is trained on J0 and on J2; over batches of its training images, the
cosines between the parameter gradients of the forms, each form's term alone.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from timing import publish, table

from lipreg import batching, datasets, models, objectives, optimizers, training
from lipreg.training import cpu

_DATA = flags.DEFINE_enum("data", "digits", ["digits", "mnist", "cifar10"], "trained on")
_EPS = flags.DEFINE_float("eps", 0.4, "l2 radius of J2, and of the attacked images")
_EPOCHS = flags.DEFINE_integer("epochs", 20, "of training", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 20, "of 128 images each", lower_bound=4)
_SEEDS = flags.DEFINE_integer("seeds", 3, "trainings", lower_bound=1)
_OUT = flags.DEFINE_string("out", "results/speed", "folder of the report")

FORMS: dict[str, dict[str, Any]] = {
    "one": {},
    "attacked": {"points": "attacked"},
    "full": {"top_k": 0},
}
PAIRS = (("one", "attacked"), ("one", "full"))


def trained(
    objective: Callable, strengths: dict, images: datasets.Dataset, seed: int
) -> tuple[Callable, training.State]:
    """The network's apply and the state after training."""
    model = models.build("CNN", classes=images.classes, channels=(32, 64), batch_norm=True)
    key, x = jax.random.key(seed), datasets.to_unit(images.x[:1])
    variables = model.init(key, x, train=False)
    apply, steps = models.functional(model), _EPOCHS.value * (len(images.y) // 128)
    tx = optimizers.sgd(optimizers.schedule("cosine", 0.05, steps), weight_decay=1e-4)
    state = training.init(key, variables.pop("params"), variables, tx)
    step = training.make_step(apply, objective, tx)
    fit = partial(training.fit, batch_size=128, steps=steps, every=steps, key=key)
    *_, (state, _) = fit(step, state, strengths, images)
    return apply, state


def cosines(apply: Callable, state: training.State, images: datasets.Dataset) -> np.ndarray:
    """The cosine of each of PAIRS on each batch, `[batches, pairs]`."""

    def term(params: Any, form: str, x: jax.Array, y: jax.Array) -> jax.Array:
        views = (
            lambda x: apply(params, state.model_state, x, True),
            lambda x: apply(params, state.model_state, x, False)[0],
        )
        run = partial(objectives.j2_lip, eps=_EPS.value, lam=1.0, **FORMS[form])
        return run(views[0], x, y, frozen=views[1])[1]["lip"]

    @jax.jit
    def compare(x: jax.Array, y: jax.Array) -> jax.Array:
        slopes = {}
        for form in FORMS:
            grads = jax.grad(term)(state.params, form, x, y)
            slopes[form] = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(grads)])
        norm = jnp.linalg.norm
        return jnp.stack(
            [slopes[a] @ slopes[b] / (norm(slopes[a]) * norm(slopes[b])) for a, b in PAIRS]
        )

    rows = batching.epoch_batches(jax.random.key(99), len(images.y), 128)[: _BATCHES.value]
    return np.array(
        [compare(datasets.to_unit(images.x[r]), jnp.asarray(images.y[r])) for r in rows]
    )


def main(_: list[str]) -> None:
    cpu.tune()
    images = datasets.load(_DATA.value, "train")
    rows = []
    for name, objective, strengths in (
        ("J0", objectives.j0, {}),
        ("J2", objectives.j2, {"eps": _EPS.value}),
    ):
        per_seed = [
            cosines(*trained(objective, strengths, images, seed), images)
            for seed in range(_SEEDS.value)
        ]
        row = {"trained on": name}
        for place, pair in enumerate(PAIRS):
            low, median, high = np.quantile(np.concatenate(per_seed)[:, place], (0.25, 0.5, 0.75))
            row[" and ".join(pair)] = f"{median:.2f} ({low:.2f} to {high:.2f})"
        rows.append(row)
    report = (
        f"# J2-Lip's last term, {_DATA.value}\n\n{table(rows)}\n\nCosines of parameter gradients, "
        f"medians and quartiles over {_BATCHES.value} batches of 128 images and {_SEEDS.value} "
        "seeds. one: the example with the largest gradient, through the frozen view; attacked: the "
        "same at the attacked images; full: all examples, through the batch's statistics.\n"
    )
    publish(report, Path(_OUT.value) / f"largest_gradient_{_DATA.value}.md")


if __name__ == "__main__":
    app.run(main)
