"""What can be proved of a run, written into its folder.

RUN/certificates.md, .npz, .json    radii by rule beside the distances that attacks find
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import curves, datasets, files
from lipreg.batching import map_batches
from lipreg.certificates import comparison, smoothing
from lipreg.keys import example_keys
from lipreg.models.layers import ACTIVATIONS
from lipreg.runs import storage
from lipreg.runs.config import label
from lipreg.runs.experiment import Loaded

__all__ = ["certify", "proved"]

SMOOTH = {*ACTIVATIONS} - {"relu"}  # those of Lipschitz networks, "own" first, have kinks


def proved(workdir: str | Path, split: str, examples: int, step: int) -> np.ndarray | None:
    """The largest l2 radius of each image by rules of kind "certified", `[N]`.

    None for a run whose certificates are of other images or another step, or that has none.
    """
    paths = [Path(workdir) / f"certificates.{kind}" for kind in ("json", "npz")]
    if not all(path.is_file() for path in paths):
        return None
    record, radii = map(files.read, paths)
    rules = [name for name, kind in record.get("kinds", {}).items() if kind == "certified"]
    if [record.get(name) for name in ("split", "n", "step")] != [split, examples, step]:
        return None
    if not rules or any(len(radii.get(name, ())) != examples for name in rules):
        return None
    return np.max([radii[name] for name in rules], 0)


def certify(
    loaded: Loaded,
    workdir: str | Path,
    *,
    split: str = "test",
    examples: int = 100,
    sigma: float = 0.0,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> str:
    """Every rule's radii of a run, written into `workdir`; returns the table as Markdown."""
    if examples > len(loaded.dataset.y):
        raise ValueError(f"examples = {examples}; the split has {len(loaded.dataset.y)}.")
    if not 0 <= sigma < np.inf:
        raise ValueError(f"sigma = {sigma}; it must be a finite number, and 0 or more.")
    files.check_writable(workdir)
    x, y = datasets.to_unit(loaded.dataset.x[:examples]), jnp.asarray(loaded.dataset.y[:examples])
    key, eps, config = jax.random.key(seed), loaded.config.evaluation.l2.table, loaded.config
    smooth = config.model.activation in SMOOTH
    progress = progress or (lambda text: None)
    options = {"bounds": tuple(config.data.bounds), "smooth": smooth, "progress": progress}
    options["batch_size"] = config.evaluation.batch_size
    compared = comparison.compare(key, loaded.logits_fn, x, y, **options)
    lines = [f"# {label(config)}, {config.data.name}, {examples} {split} images, l2", ""]
    lines.append(comparison.to_markdown(compared, eps))
    arrays: dict[str, Any] = {n: np.asarray(c.radius) for n, c in compared.certificates.items()}
    if sigma:
        progress("smoothing")
        size = config.evaluation.batch_size
        draws = max(1, size // examples)  # of every image at a time
        smoothed = partial(smoothing.certify, logits_fn=loaded.logits_fn, sigma=sigma, batch=draws)
        classes, radius = map_batches(
            lambda keys, x: smoothed(keys, x=x)[:2],
            min(size, examples),
            example_keys(key, examples),
            x,
        )
        radius = np.where(classes == y, radius, 0.0)
        arrays["smoothed"] = radius
        lines.append(
            f"\nSmoothed with sigma = {sigma:g}, another classifier, at confidence 0.999 an image: "
            f"median radius {float(curves.median_distance(radius)):.3g}; at least {eps:g} for "
            f"{100 * (radius >= eps).mean():.1f} % of the images."
        )
    lines.append(f"\n{json.dumps(storage.about())}")
    text = "\n".join(lines) + "\n"
    arrays["attacked"] = compared.distance
    # Should a kill come before the last of the three, the others are no certificates.
    for kind in ("json", "md"):
        (Path(workdir) / f"certificates.{kind}").unlink(missing_ok=True)
    files.write_arrays(Path(workdir) / "certificates.npz", **arrays)
    files.write(Path(workdir) / "certificates.md", text)
    kinds = {name: c.kind for name, c in compared.certificates.items()}
    record = {"split": split, "n": examples, "step": loaded.step, "kinds": kinds}
    files.write_json(Path(workdir) / "certificates.json", record)
    return text
