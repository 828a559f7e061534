"""The numbers of a run that `reports.comparison` ranks.

RUN/compared/           a killed evaluation of a step, images and radii goes on from here
RUN/compared.json       what `measure` has found, command, commit and hardware
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import attacks, batching, datasets, evaluation, files, lipschitz, losses, runs
from lipreg.lipschitz import bounds as proved
from lipreg.runs import logs, storage
from lipreg.runs.build import ROBUST
from lipreg.training import overfitting

__all__ = ["AUTO", "PGD", "clean", "error", "flags", "gaps", "measure", "seed"]

PGD, AUTO = "PGD-20", "AutoAttack"


def measure(
    workdir: str | Path,
    *,
    radii: Mapping[str, float],
    examples: int,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """A run's test images attacked by PGD-20 and AutoAttack, and the constants of its loss.

    At `radii`, one for each norm, with the masking report. `estimate` is the largest l2 norm of the
    cross entropy's gradient at these images, `certified` a proved bound of its Lipschitz constant
    in the whole box, None where there is none. `gap` is by how much error and loss are larger on
    test images than on training images. Kept in the run, and not done twice.
    """
    workdir = Path(workdir)
    loaded = runs.load(workdir)
    config, path = loaded.config, workdir / "compared.json"
    named = [f"{norm}-{eps:g}" for norm, eps in radii.items()]
    grids = {norm: [eps] for norm, eps in radii.items()}
    asked = {"radii": grids, "examples": examples, "step": loaded.step}
    kept = files.read(path) if path.is_file() else {}
    if kept.get("asked") == asked:
        return kept
    if examples > len(loaded.dataset.y):
        raise ValueError(f"examples = {examples}; the test split has {len(loaded.dataset.y)}.")
    training = runs.load(workdir, "train").dataset
    test, seen = (
        (datasets.to_unit(split.x[:examples]), split.y[:examples])
        for split in (loaded.dataset, training)
    )
    result = evaluation.evaluate(
        loaded.logits_fn,
        *test,
        protocol="autoattack",
        radii=grids,
        attacks={PGD: partial(attacks.pgd, steps=20)},
        bounds=config.data.bounds,
        batch_size=config.evaluation.batch_size,
        folder=workdir / "compared" / "_".join([str(loaded.step), str(examples), *named]),
        progress=progress,
    )
    at_images = partial(_losses, loaded.logits_fn)
    on_test, on_seen = (
        batching.map_batches(at_images, config.evaluation.batch_size, *images)
        for images in (test, seen)
    )
    found = {
        "asked": asked,
        "epochs": loaded.step / config.train.replay * config.train.batch_size / len(training.y),
        "gap": {
            name: float(on_test[name].mean() - on_seen[name].mean()) for name in ("error", "loss")
        },
        "estimate": float(on_test["slope"].max()),
        "certified": _proved(loaded.logits_fn, test[0], config.data.bounds),
        "evaluation": evaluation.to_json(result),
        "about": storage.about(),
    }
    files.write_json(path, found)
    return found


@jax.jit
def _losses(logits_fn: Callable, x: Any, y: Any) -> dict[str, Any]:
    """Each image's error and loss, and the norm of the loss's gradient in it."""
    y = jnp.asarray(y)
    loss = lambda x: losses.cross_entropy(logits_fn(x), y)
    error = (jnp.argmax(logits_fn(x), -1) != y).astype(jnp.float32)
    return {"error": error, "loss": loss(x), "slope": lipschitz.gradient_norms(loss, x)}


def _proved(logits_fn: Callable, x: Any, bounds: tuple[float, float]) -> float | None:
    """`|grad loss| <= max_k Lip(z_k - z_y)`: cross entropy's gradient is a mean of margins'."""
    try:
        found = proved.lipschitz(logits_fn, x[:1], bounds=bounds)
    except ValueError:  # a primitive without a rule
        return None
    bound = float(found.margins.max())
    return bound if np.isfinite(bound) and found.kind != "estimate" else None


def seed(workdir: Path, radii: Mapping[str, float], **options: Any) -> dict[str, Any]:
    """A seed's numbers at its last epoch and at its best, None where that was not kept."""
    rows = logs.metrics(workdir)
    validated = [row for row in rows if ROBUST in row]
    best = min(validated, key=lambda row: row[ROBUST])
    last = measure(workdir, radii=radii, **options)
    at_best = last
    if best["step"] < last["asked"]["step"]:
        kept = (workdir / "best/config.json").is_file()
        at_best = measure(workdir / "best", radii=radii, **options) if kept else None
    return {"workdir": str(workdir), "rows": rows, "last": last, "best": at_best}


def error(found: Mapping[str, Any], norm: str, attack: str) -> float:
    """The error under attack in %; attack is `PGD-20` or `AutoAttack`."""
    numbers = found["evaluation"]["norms"][norm]
    if attack == PGD:
        return 100 * next(iter(numbers["others"][PGD].values()))
    return 100 * list(next(iter(numbers["errors"].values())).values())[-1]


def clean(found: Mapping[str, Any]) -> float:
    """The clean error in %."""
    return 100 * found["evaluation"]["clean_error"]


def gaps(rows: Sequence[Mapping[str, float]]) -> np.ndarray:
    """The error under PGD-10 less that under FGSM, in %, in every report."""
    both = [row for row in rows if {overfitting.FGSM, overfitting.PGD} <= row.keys()]
    return np.array([100 * (row[overfitting.PGD] - row[overfitting.FGSM]) for row in both])


def flags(found: Mapping[str, Any]) -> float:
    """How many checks of the masking reports, over all norms, warn or fail."""
    norms = found["evaluation"]["norms"].values()
    return float(sum(check["status"] != "pass" for norm in norms for check in norm["checks"]))
