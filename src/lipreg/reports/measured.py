"""The measurements of one run, written into its folder.

RUN/distances.npz      each image's smallest distance found, arrays l2 and linf [N]
RUN/curve.jsonl        one line per norm and radius: norm, eps, error, attack, n
RUN/curve_{l2,linf}.*  the same as pictures, PNG and SVG
RUN/attacked_l2.*      images before and after
RUN/evaluation.json    the table's row, settings of the attack, step of the weights, command,
                       commit and hardware; written last

`robustness` writes down what `lipreg.evaluate` finds by one of its protocols:
RUN/robustness_PROTOCOL.md, .json   tables, errors, the masking report, settings
RUN/robustness_PROTOCOL.npz         per image: distances by norm and attack, broken at which eps
RUN/robustness_PROTOCOL/            what a killed evaluation resumes from
RUN/adversarial_NORM_EPS.npz        with `keep`: adv_complete [N, C, H, W] in [0, 1] and y, as
                                    RobustBench's users have them

`certify` writes down what can be proved:
RUN/certificates.md, .npz           radii by rule beside the distances that attacks find
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import attacks, curves, datasets, evaluation, files, norms, parallel
from lipreg.certificates import comparison, smoothing
from lipreg.reports import plots
from lipreg.runs import storage
from lipreg.runs.config import Config, complete, label
from lipreg.runs.experiment import Loaded, largest, measure

__all__ = ["certify", "evaluate", "evaluated", "read", "robustness"]


def _row(found: dict[str, np.ndarray], radii: dict[str, float]) -> dict[str, float]:
    return curves.summary(found["l2"], found["linf"], eps_l2=radii["l2"], eps_linf=radii["linf"])


def evaluate(
    loaded: Loaded,
    workdir: str | Path,
    *,
    split: str = "test",
    seed: int = 0,
    progress: Callable | None = None,
) -> dict[str, float]:
    """Measure a run, write the files above into `workdir`, and return the table's row.

    Where there are several processes, only the first one writes.
    """
    settings, workdir = loaded.config.evaluation, Path(workdir)
    found = measure(loaded.logits_fn, loaded.dataset, settings, seed=seed, progress=progress)
    radii = {name: settings[name].table for name in found}
    row = _row(found, radii)
    attacked = _attacked(loaded, radii["l2"], seed)
    if not parallel.is_main():
        return row
    record = {
        "row": row,
        "data": loaded.config.data.name,
        "split": split,
        "seed": seed,
        "step": loaded.step,
        "steps": loaded.steps,
        "settings": settings.to_dict(),
        "about": storage.about(),
    }
    files.write_arrays(workdir / "distances.npz", **found)
    attack = f"pgd, {settings.steps} steps, {settings.restarts} restarts, bisected"
    lines = []
    for name, distances in found.items():
        grid = np.linspace(0, largest(settings[name]), 101)
        for eps, error in zip(grid, np.asarray(curves.error_at(distances, grid)), strict=True):
            line = {"norm": name, "eps": float(eps), "error": float(error)}
            lines.append(json.dumps(line | {"attack": attack, "n": len(distances)}) + "\n")
    files.write(workdir / "curve.jsonl", "".join(lines))
    for name, distances in found.items():
        figure = plots.error_curves(
            {label(loaded.config): distances}, norm_name=name, marks=(radii[name],)
        )
        plots.save(figure, workdir / f"curve_{name}")
    plots.save(attacked, workdir / "attacked_l2")
    files.write_json(workdir / "evaluation.json", record)
    return row


def read(workdir: str | Path) -> tuple[Config, dict[str, Any], dict[str, np.ndarray]]:
    """A run's config, and its evaluation as `evaluate` wrote it: the record and the distances.

    Raises: ValueError, with the command to run, if there is none, if the two files belong to
    different evaluations, or if the evaluation was not of the last step.
    """
    workdir = Path(workdir)
    config = complete(storage.read_config(workdir))
    again = f"run python experiments/evaluate.py --run={workdir}"
    paths = workdir / "evaluation.json", workdir / "distances.npz"
    if not all(path.is_file() for path in paths):
        raise ValueError(f"{workdir} has not been evaluated: {again}.")
    record, found = map(files.read, paths)
    if not {"row", "data", "split", "seed", "settings"} <= set(record):
        raise ValueError(f"{paths[0]} is not a run's evaluation: {again}.")
    # Each is written atomically, but a kill may come between the two.
    row = _row(found, {name: record["settings"][name]["table"] for name in ("l2", "linf")})
    if list(row.values()) != list(record["row"].values()):
        raise ValueError(f"{' and '.join(map(str, paths))} are of two evaluations: {again}.")
    if "step" in record and record["step"] != record["steps"]:  # earlier versions did not record it
        raise ValueError(
            f"{workdir} was evaluated at step {record['step']} of {record['steps']}: let its "
            f"training end, and {again}."
        )
    return config, record, found


def evaluated(workdir: str | Path, *, split: str = "test", seed: int = 0) -> bool:
    """Whether a folder already holds the evaluation that `evaluate` would write."""
    try:
        config, record, _ = read(workdir)
    except ValueError:
        return False
    wanted = {"data": config.data.name, "split": split, "seed": seed}
    wanted["settings"] = config.evaluation.to_dict()
    return all(record[name] == value for name, value in wanted.items())


def robustness(
    loaded: Loaded,
    workdir: str | Path,
    protocol: str,
    *,
    split: str = "test",
    seed: int = 0,
    surrogate: Loaded | None = None,
    keep: bool = False,
    progress: Callable[[str], None] | None = None,
) -> str:
    """`lipreg.evaluate` on a run, written into `workdir`; returns the report as Markdown.

    Radii: the table's, and RobustBench's 0.5 in l_2 and 8/255 in l_inf.
    """
    settings, workdir = loaded.config.evaluation, Path(workdir)
    n = settings.examples
    if n > len(loaded.dataset.y):
        raise ValueError(f"examples = {n}; the split has {len(loaded.dataset.y)}.")
    x, y = np.asarray(datasets.to_unit(loaded.dataset.x[:n])), loaded.dataset.y[:n]
    radii = {"l2": {settings.l2.table, 0.5}, "linf": {settings.linf.table, 8 / 255}}
    name = f"robustness_{protocol}"
    found = evaluation.evaluate(
        loaded.logits_fn,
        x,
        y,
        protocol=protocol,
        radii={norm: sorted(values) for norm, values in radii.items()},
        seed=seed,
        batch_size=settings.batch_size,
        surrogate=surrogate.logits_fn if surrogate else None,
        folder=workdir / name,
        progress=progress,
    )
    about = {"data": loaded.config.data.name, "split": split, "seed": seed}
    about |= {"step": loaded.step, "about": storage.about()}
    text = (
        f"# {label(loaded.config)}, {about['data']}, {split} split\n\n"
        f"{evaluation.to_markdown(found)}"
    )
    arrays: dict[str, Any] = {
        f"distance_{norm}_{attack}": values
        for norm, by_attack in found.distances.items()
        for attack, values in by_attack.items()
    }
    for norm, outcomes in found.outcomes.items():
        for eps, outcome in outcomes.items():
            arrays[f"broken_{norm}_{eps:g}"] = outcome.broken_by >= 0
            if keep:
                adversarial = np.moveaxis(outcome.x_adv, -1, 1)
                files.write_arrays(
                    workdir / f"adversarial_{norm}_{eps:.4g}.npz", adv_complete=adversarial, y=y
                )
    arrays["clean"] = found.clean
    files.write_arrays(workdir / f"{name}.npz", **arrays)
    files.write(workdir / f"{name}.md", text)
    files.write_json(workdir / f"{name}.json", about | evaluation.to_json(found))
    return text


def certify(
    loaded: Loaded,
    workdir: str | Path,
    *,
    split: str = "test",
    examples: int = 100,
    sigma: float = 0.0,
    seed: int = 0,
    progress: Callable[[str], object] = lambda text: None,
) -> str:
    """Every rule's radii of a run, written into `workdir`; returns the table as Markdown."""
    if examples > len(loaded.dataset.y):
        raise ValueError(f"examples = {examples}; the split has {len(loaded.dataset.y)}.")
    x, y = datasets.to_unit(loaded.dataset.x[:examples]), jnp.asarray(loaded.dataset.y[:examples])
    key, eps, config = jax.random.key(seed), loaded.config.evaluation.l2.table, loaded.config
    smooth = config.model.activation != "relu"
    found = comparison.compare(key, loaded.logits_fn, x, y, smooth=smooth, progress=progress)
    lines = [f"# {label(config)}, {config.data.name}, {examples} {split} images, l2", ""]
    lines.append(comparison.to_markdown(found, eps))
    arrays: dict[str, Any] = {n: np.asarray(c.radius) for n, c in found.certificates.items()}
    if sigma:
        progress("smoothing")
        smoothed = smoothing.certify(key, loaded.logits_fn, x, sigma=sigma)
        radius = np.where(smoothed.classes == y, smoothed.radius, 0.0)
        arrays["smoothed"] = radius
        lines.append(
            f"\nSmoothed with sigma = {sigma:g}, another classifier, at confidence 0.999 an image: "
            f"median radius {np.median(radius):.3g}; at least {eps:g} for "
            f"{100 * (radius >= eps).mean():.1f} % of the images."
        )
    lines.append(f"\n{json.dumps(storage.about())}")
    text = "\n".join(lines) + "\n"
    arrays["attacked"] = found.distance
    files.write_arrays(Path(workdir) / "certificates.npz", **arrays)
    files.write(Path(workdir) / "certificates.md", text)
    return text


def _attacked(loaded: Loaded, eps: float, seed: int, n: int = 8) -> Any:
    """The first images, each above its PGD image at the table's l_2 radius."""
    x, y = datasets.to_unit(loaded.dataset.x[:n]), loaded.dataset.y[:n]
    attack = jax.jit(partial(attacks.pgd, norm=norms.L2, steps=loaded.config.evaluation.steps))
    x_adv = attack(jax.random.key(seed), loaded.logits_fn, x, y, eps)
    before, after = np.argmax(loaded.logits_fn(x), -1), np.argmax(loaded.logits_fn(x_adv), -1)
    titles = [f"{a}" for a in before] + [f"{a}, ε = {eps:g}" for a in after]
    return plots.images(np.concatenate([x, x_adv]), titles=titles, columns=n)
