"""The evaluations of a run, each in a folder that says how it was measured.

RUN/evaluations/PROTOCOL_SPLIT_N/   N images; _NORMS is added where they are not l2 and linf
    distances.npz         per image: its smallest distance found, l2 and linf [N], that of each
                          attack, distance_NORM_ATTACK, and what a radius breaks, broken_NORM_EPS
    curve.jsonl           one line per norm and radius: norm, eps, error, attack, n
    curve_NORM.*          the same as pictures, PNG and SVG
    attacked_NORM.*       with pgd: images before and after it, the change, true and predicted class
    adversarial_*.npz     with `keep`: adv_complete [N, C, H, W] and y, as RobustBench's users have
                          them. _NORM: the nearest misclassified image that was found, and its
                          distance; _NORM_EPS: one within eps. The image itself where there is none.
    report.md             tables, errors, the masking report
    evaluation.json       the same numbers, the table's row, settings, step of the weights, command,
                          commit and hardware; written last
    step_STEP/            what a killed evaluation of these weights resumes from
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lipreg import curves, datasets, evaluation, files, parallel
from lipreg.attacks import pgd
from lipreg.box import Bounds
from lipreg.evaluation.protocols import Protocol, grid
from lipreg.norms import NORMS
from lipreg.reports import plots
from lipreg.reports.kept import USUAL, folder_of, read
from lipreg.runs import storage
from lipreg.runs.config import Config, label
from lipreg.runs.experiment import Loaded

__all__ = ["evaluate", "evaluated"]

ROBUSTBENCH = {"l1": 12.0, "l2": 0.5, "linf": 8 / 255}


def evaluate(
    loaded: Loaded,
    workdir: str | Path,
    *,
    protocol: str = "pgd",
    norms: Sequence[str] = USUAL,
    attacks: Mapping[str, Callable[..., Any]] | None = None,
    split: str = "test",
    seed: int = 0,
    surrogate: Loaded | None = None,
    keep: bool = False,
    progress: Callable[[str], None] | None = None,
) -> str:
    """`lipreg.evaluate` on a run, written into `workdir`; returns the report as Markdown.

    The settings are those of the config's `evaluation`. Radii: the table's, and but for `pgd` those
    of RobustBench too: 12 in l_1, 0.5 in l_2, 8/255 in l_inf. Where there are several processes,
    only the first one writes.
    """
    config, settings = loaded.config, loaded.config.evaluation
    n, radii = settings.examples, _radii(config, norms)
    if n > len(loaded.dataset.y):
        raise ValueError(f"examples = {n}; the split has {len(loaded.dataset.y)}.")
    x, y = np.asarray(datasets.to_unit(loaded.dataset.x[:n])), loaded.dataset.y[:n]
    plan = "+".join([protocol, *sorted(attacks or {})])
    folder = folder_of(workdir, plan, split, n, norms)
    files.check_writable(folder)
    result = evaluation.evaluate(
        loaded.logits_fn,
        x,
        y,
        protocol=_protocol(protocol, config, radii),
        radii={norm: _measured_at(protocol, norm, r["table"]) for norm, r in radii.items()},
        attacks=attacks,
        bounds=config.data.bounds,
        seed=seed,
        batch_size=settings.batch_size,
        surrogate=surrogate.logits_fn if surrogate else None,
        keep=keep,
        folder=folder / f"step_{loaded.step}",
        progress=progress,
    )
    heading = f"{label(config)}, {config.data.name}, {split} split, {plan}"
    text = f"# {heading}\n\n{evaluation.to_markdown(result)}"
    attacked = _attacked(loaded, radii, seed) if protocol == "pgd" else {}
    if not parallel.is_main():
        return text
    record = _described(config, plan, split, seed, norms)
    record |= {"step": loaded.step, "steps": loaded.steps, "row": _row(result, radii)}
    record["attacks"] = {name: _source(attack) for name, attack in (attacks or {}).items()}
    record |= {"about": storage.about()} | evaluation.to_json(result) | {"protocol": plan}
    files.write_arrays(folder / "distances.npz", **_arrays(result))
    _draw_curves(result, folder, label(config), radii, config.data.bounds)
    for name, figure in attacked.items():
        plots.save(figure, folder / name)
    if keep:
        _write_images(result, folder, x, y)
    files.write(folder / "report.md", text)
    files.write_json(folder / "evaluation.json", record)
    return text


def evaluated(
    workdir: str | Path,
    *,
    protocol: str = "pgd",
    norms: Sequence[str] = USUAL,
    split: str = "test",
    seed: int = 0,
) -> bool:
    """Whether a folder already holds the evaluation that `evaluate` would write."""
    try:
        n = storage.read_complete(workdir).evaluation.examples
        config, record, _ = read(folder_of(workdir, protocol, split, n, norms))
    except ValueError:
        return False
    wanted = _described(config, protocol, split, seed, norms)
    return all(record[name] == value for name, value in wanted.items())


def _source(attack: Any) -> str:
    """Where an attack comes from: another module's of the same name is another attack."""
    module, name = (getattr(attack, n, "") for n in ("__module__", "__qualname__"))
    return f"{module}:{name}"


def _radii(config: Config, norms: Sequence[str]) -> dict[str, dict[str, float]]:
    """The largest radius of the grid, and the table's, for each norm."""
    for norm in norms:
        if norm not in NORMS:
            raise ValueError(f"No norm {norm!r}; choose one of {', '.join(NORMS)}.")
    return {norm: config.evaluation[norm].to_dict() for norm in norms}


def _measured_at(protocol: str, norm: str, table: float) -> list[float]:
    usual = ROBUSTBENCH[norm]
    return sorted({table} if protocol == "pgd" or f"{table:g}" == f"{usual:g}" else {table, usual})


def _protocol(
    name: str, config: Config, radii: Mapping[str, Mapping[str, float]]
) -> str | Protocol:
    if name != "pgd":
        return name
    settings = config.evaluation
    grids = {n: grid(r["largest"], settings.radii, r["table"]) for n, r in radii.items()}
    return evaluation.pgd(settings.steps, settings.restarts, grids)


def _described(
    config: Config, protocol: str, split: str, seed: int, norms: Sequence[str]
) -> dict[str, Any]:
    """What tells one evaluation of a run from another."""
    settings = config.evaluation
    used: dict[str, Any] = _radii(config, norms)
    if protocol.split("+")[0] == "pgd":
        used |= {name: settings[name] for name in ("steps", "restarts", "radii")}
    where = {"data": config.data.name, "split": split, "n": settings.examples}
    return {"protocol": protocol, **where, "seed": seed, "settings": used}


def _row(
    result: evaluation.Evaluation, radii: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The table's row: medians where there are distances, and the errors at each radius."""
    nearest = {norm: result.nearest(norm) for norm, by_name in result.distances.items() if by_name}
    table = {norm: r["table"] for norm, r in radii.items()}
    clean = {"% clean error": round(100 * float(result.clean.mean()), 4)}
    row = curves.row(nearest, table) if nearest else clean
    for norm, values in result.radii.items():
        for eps in values:
            if result.at(norm, eps):
                row[f"% error at {norm} {eps:g}"] = round(100 * result.error(norm, eps), 4)
    return row


def _arrays(result: evaluation.Evaluation) -> dict[str, np.ndarray]:
    arrays = {"clean": result.clean}
    for norm, by_name in result.distances.items():
        if by_name:
            arrays[norm] = result.nearest(norm)
        arrays |= {f"distance_{norm}_{name}": values for name, values in by_name.items()}
        for eps in result.radii[norm]:
            if outcomes := result.at(norm, eps):
                arrays[f"broken_{norm}_{eps:g}"] = np.any([o.broken for o in outcomes], 0)
    return arrays


def _draw_curves(
    result: evaluation.Evaluation,
    folder: Path,
    name: str,
    radii: Mapping[str, Mapping[str, float]],
    bounds: Bounds,
) -> None:
    """The error curves of the nearest images, as lines of JSON and as pictures."""
    lines = []
    for norm, by_name in result.distances.items():
        if not by_name:
            continue
        distances, table = result.nearest(norm), radii[norm]["table"]
        epsilons = np.linspace(0, max(radii[norm]["largest"], table), 101)
        errors = np.asarray(curves.error_at(distances, epsilons))
        for eps, error in zip(epsilons, errors, strict=True):
            line = {"norm": norm, "eps": float(eps), "error": float(error)}
            line |= {"attack": ", ".join(by_name), "n": len(distances)}
            lines.append(json.dumps(line) + "\n")
        options = {"norm_name": norm, "marks": (table,), "bounds": bounds}
        figure = plots.error_curves({name: distances}, **options)
        plots.save(figure, folder / f"curve_{norm}")
    if lines:
        files.write(folder / "curve.jsonl", "".join(lines))


def _write_images(
    result: evaluation.Evaluation, folder: Path, x: np.ndarray, y: np.ndarray
) -> None:
    def write(name: str, x_adv: np.ndarray, **more: np.ndarray) -> None:
        x_adv = np.moveaxis(x_adv, -1, 1) if x_adv.ndim == 4 else x_adv
        files.write_arrays(folder / f"adversarial_{name}.npz", adv_complete=x_adv, y=y, **more)

    for norm, values in result.radii.items():
        if result.distances[norm]:
            write(norm, result.nearest_points[norm], distance=result.nearest(norm))
        for eps in values:
            x_adv = x.copy()
            outcomes = result.at(norm, eps)
            for outcome in reversed(outcomes):  # the first that broke an image has the last word
                x_adv[outcome.broken] = outcome.x_adv[outcome.broken]
            if outcomes:
                write(f"{norm}_{eps:g}", x_adv)


def _attacked(
    loaded: Loaded, radii: Mapping[str, Mapping[str, float]], seed: int, n: int = 8
) -> dict[str, Any]:
    """The first images above their PGD images at the table's radius of the first norm."""
    (norm, radius), bounds = next(iter(radii.items())), loaded.config.data.bounds
    x, y, eps = datasets.to_unit(loaded.dataset.x[:n]), loaded.dataset.y[:n], radius["table"]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        return {}  # nothing to look at
    options = {"norm": NORMS[norm], "bounds": bounds, "steps": loaded.config.evaluation.steps}
    attack = jax.jit(partial(pgd, **options))
    x_adv = attack(jax.random.key(seed), loaded.logits_fn, x, y, eps)
    before, after = np.argmax(loaded.logits_fn(x), -1), np.argmax(loaded.logits_fn(x_adv), -1)
    said = {"before": before, "after": after, "names": loaded.dataset.names}
    x, x_adv = ((np.asarray(a) - bounds[0]) / (bounds[1] - bounds[0]) for a in (x, x_adv))
    return {f"attacked_{norm}": plots.attacked(x, x_adv, y, **said, norm_name=norm, eps=eps)}
