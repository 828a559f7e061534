"""An evaluation written down: one run's distances and pictures, several runs' table and curves.

RUN/distances.npz      each image's smallest distance found, arrays l2 and linf [N]
RUN/evaluation.json    the table's row, the attack's settings, command, commit and hardware
RUN/curve.jsonl        one line per norm and radius: norm, eps, error, attack, n
RUN/curve_{l2,linf}.*  the same as pictures, PNG and SVG
RUN/attacked_l2.*      images before and after

`robustness` writes down what `lipreg.evaluate` finds by one of its protocols:
RUN/robustness_PROTOCOL.md, .json   tables, errors, the masking report, settings
RUN/robustness_PROTOCOL.npz         per image: distances by norm and attack, broken at which eps
RUN/robustness_PROTOCOL/            what a killed evaluation goes on from
RUN/adversarial_NORM_EPS.npz        with `keep`: adv_complete [N, C, H, W] in [0, 1] and y, as
                                    RobustBench's users have them

`certify` writes down what can be proved:
RUN/certificates.md, .npz           radii by rule beside the distances that attacks find
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import attacks, curves, data, evaluation, norms, parallel, plots, runs
from lipreg.certificates import comparison, smoothing
from lipreg.config import Config, label
from lipreg.experiment import Loaded, measure

__all__ = ["certify", "evaluate", "robustness", "table"]


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

    Of several processes the first one writes.
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
        "settings": settings.to_dict(),
        "about": runs.about(),
    }
    np.savez_compressed(workdir / "distances.npz", l2=found["l2"], linf=found["linf"])
    (workdir / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")
    attack = f"pgd, {settings.steps} steps, {settings.restarts} restarts, bisected"
    with (workdir / "curve.jsonl").open("w") as file:
        for name, distances in found.items():
            grid = np.linspace(0, settings[name].largest, 101)
            for eps, error in zip(grid, np.asarray(curves.error_at(distances, grid)), strict=True):
                line = {"norm": name, "eps": float(eps), "error": float(error)}
                line |= {"attack": attack, "n": len(distances)}
                file.write(json.dumps(line) + "\n")
    for name, distances in found.items():
        figure = plots.error_curves(
            {label(loaded.config): distances}, norm_name=name, marks=(radii[name],)
        )
        plots.save(figure, workdir / f"curve_{name}")
    plots.save(attacked, workdir / "attacked_l2")
    return row


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
    x, y = np.asarray(data.to_unit(loaded.dataset.x[:n])), loaded.dataset.y[:n]
    if n > len(loaded.dataset.y):
        raise ValueError(f"examples = {n}; the split has {len(loaded.dataset.y)}.")
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
    about = {"data": loaded.config.data.name, "split": split, "seed": seed, "about": runs.about()}
    text = (
        f"# {label(loaded.config)}, {about['data']}, {split} split\n\n"
        f"{evaluation.to_markdown(found)}"
    )
    record = about | evaluation.to_json(found)
    (workdir / f"{name}.md").write_text(text)
    (workdir / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
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
                np.savez_compressed(
                    workdir / f"adversarial_{norm}_{eps:.4g}.npz", adv_complete=adversarial, y=y
                )
    arrays["clean"] = found.clean
    np.savez_compressed(workdir / f"{name}.npz", **arrays)
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
    x, y = data.to_unit(loaded.dataset.x[:examples]), jnp.asarray(loaded.dataset.y[:examples])
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
    lines.append(f"\n{json.dumps(runs.about())}")
    text = "\n".join(lines) + "\n"
    (Path(workdir) / "certificates.md").write_text(text)
    arrays["attacked"] = found.distance
    np.savez_compressed(Path(workdir) / "certificates.npz", **arrays)
    return text


def _attacked(loaded: Loaded, eps: float, seed: int, n: int = 8) -> Any:
    """The first images, and below each what PGD makes of it at the table's l_2 radius."""
    x, y = data.to_unit(loaded.dataset.x[:n]), loaded.dataset.y[:n]
    attack = jax.jit(partial(attacks.pgd, norm=norms.L2, steps=loaded.config.evaluation.steps))
    x_adv = attack(jax.random.key(seed), loaded.logits_fn, x, y, eps)
    before, after = np.argmax(loaded.logits_fn(x), -1), np.argmax(loaded.logits_fn(x_adv), -1)
    titles = [f"{a}" for a in before] + [f"{a}, ε = {eps:g}" for a in after]
    return plots.images(np.concatenate([x, x_adv]), titles=titles, columns=n)


def _read(workdir: str | Path) -> tuple[Config, dict[str, Any], dict[str, np.ndarray]]:
    workdir = Path(workdir)
    config = runs.read_config(workdir)
    if not (workdir / "evaluation.json").is_file() or not (workdir / "distances.npz").is_file():
        raise ValueError(
            f"{workdir} is not evaluated: run python experiments/evaluate.py --run={workdir}."
        )
    return config, runs.read(workdir / "evaluation.json"), runs.read(workdir / "distances.npz")


def _robust(workdir: Path) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
    """Columns, and points (eps, error) by norm, of the strongest protocol that a run went through.

    Nothing where there is none. The masking report's column is the number of checks that warn or
    fail, over both norms.
    """
    for protocol in ("full", "autoattack"):
        path = workdir / f"robustness_{protocol}.json"
        if path.is_file():
            break
    else:
        return {}, {}
    record = runs.read(path)
    columns: dict[str, float] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    flags = 0
    for norm, found in record["norms"].items():
        points[norm] = []
        for eps, breakdown in found["errors"].items():
            error = list(breakdown.values())[-1]  # after the last attack
            points[norm].append((float(eps), error))
            columns[f"% AutoAttack error at {norm} {float(eps):.3g}"] = round(100 * error, 4)
        flags += sum(check["status"] != "pass" for check in found["checks"])
    return columns | {"masking flags": flags}, points


def _same(record: dict[str, Any], first: dict[str, Any], workdir: str | Path) -> None:
    """Only what was measured alike goes into one table."""
    for name in ("data", "split", "settings"):
        if record[name] != first[name]:
            raise ValueError(
                f"{workdir} was measured with another {name} than the first run: "
                f"{record[name]} and {first[name]}."
            )


def table(workdirs: Sequence[str | Path], out: str | Path) -> tuple[str, list[Path]]:
    """The deck's table of several runs as Markdown, and the files written into `out`.

    Those are table.md, table.csv and both error curves. Runs whose configs differ in their seeds
    alone make one row, mean ± standard deviation, and one curve. Where every run went through
    AutoAttack, its errors and the number of masking flags are further columns, and its errors
    points beside the curves.

    Raises: ValueError for a run without an evaluation, and for runs measured differently.
    """
    groups: dict[str, list[tuple[dict, dict[str, np.ndarray], dict]]] = {}
    robust = {str(workdir): _robust(Path(workdir)) for workdir in workdirs}
    by_all = all(columns for columns, _ in robust.values())
    names: dict[str, str] = {}
    first: dict[str, Any] = {}
    for workdir in workdirs:
        config, record, found = _read(workdir)
        first = first or record
        _same(record, first, workdir)
        identity = json.dumps(config.to_dict() | {"seed": None}, sort_keys=True)
        if identity not in names:
            name = label(config)
            # Two configs of one label, two strengths for instance, are told apart by folder.
            taken = name in names.values()
            names[identity] = f"{name} ({Path(workdir).name})" if taken else name
        columns, points = robust[str(workdir)] if by_all else ({}, {})
        groups.setdefault(names[identity], []).append((record["row"] | columns, found, points))
    rows, distances, marked = {}, {}, {}
    for name, members in groups.items():
        rows[name] = {c: curves.spread([row[c] for row, _, _ in members]) for c in members[0][0]}
        distances[name] = {
            norm: np.concatenate([found[norm] for _, found, _ in members])
            for norm in ("l2", "linf")
        }
        marked[name] = {
            norm: [point for _, _, points in members for point in points.get(norm, [])]
            for norm in ("l2", "linf")
        }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    markdown = curves.to_markdown(rows)
    settings = first["settings"]
    seeds = sorted({len(members) for members in groups.values()})
    caption = (
        f"{first['data']}, {settings['examples']} {first['split']} images; PGD with "
        f"{settings['steps']} steps and {settings['restarts']} restarts, radii bisected; "
        f"{' or '.join(map(str, seeds))} seed{'s' if seeds != [1] else ''} a row"
        f"{', mean ± standard deviation' if seeds != [1] else ''}."
    )
    text = f"{markdown}\n\n{caption}\n"
    (out / "table.md").write_text(text)
    (out / "table.csv").write_text(curves.to_csv(rows))
    files = [out / "table.md", out / "table.csv"]
    for norm in ("l2", "linf"):
        figure = plots.error_curves(
            {name: found[norm] for name, found in distances.items()},
            norm_name=norm,
            marks=(settings[norm]["table"],),
            points={name: by_norm[norm] for name, by_norm in marked.items()} if by_all else None,
        )
        files += plots.save(figure, out / f"curves_{norm}")
    return text, files
