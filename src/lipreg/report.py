"""An evaluation written down: one run's distances and pictures, several runs' table and curves.

RUN/distances.npz      each image's smallest distance found, arrays l2 and linf [N]
RUN/evaluation.json    the table's row, the attack's settings, command, commit and hardware
RUN/curve.jsonl        one line per norm and radius: norm, eps, error, attack, n
RUN/curve_{l2,linf}.*  the same as pictures, PNG and SVG
RUN/attacked_l2.*      images before and after
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lipreg import attacks, curves, data, norms, plots, runs
from lipreg.config import Config, label
from lipreg.experiment import Loaded, measure

__all__ = ["evaluate", "table"]


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
    """Measure a run, write the files above into `workdir`, and return the table's row."""
    settings, workdir = loaded.config.evaluation, Path(workdir)
    found = measure(loaded.logits_fn, loaded.dataset, settings, seed=seed, progress=progress)
    radii = {name: settings[name].table for name in found}
    row = _row(found, radii)
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
    plots.save(_attacked(loaded, radii["l2"], seed), workdir / "attacked_l2")
    return row


def _attacked(loaded: Loaded, eps: float, seed: int, n: int = 8) -> Any:
    """The first images, and below each what PGD makes of it at the table's l_2 radius."""
    x, y = data.to_unit(loaded.dataset.x[:n]), loaded.dataset.y[:n]
    attack = jax.jit(partial(attacks.pgd, norm=norms.L2, steps=loaded.config.evaluation.steps))
    x_adv = attack(jax.random.key(seed), loaded.logits_fn, x, y, eps)
    before = np.argmax(loaded.logits_fn(x), -1)
    after = np.argmax(loaded.logits_fn(x_adv), -1)
    titles = [f"{a}" for a in before] + [f"{a}, ε = {eps:g}" for a in after]
    return plots.images(np.concatenate([x, x_adv]), titles=titles, columns=n)


def _read(workdir: str | Path) -> tuple[Config, dict[str, Any], dict[str, np.ndarray]]:
    workdir = Path(workdir)
    config = runs.read_config(workdir)
    if not (workdir / "evaluation.json").is_file() or not (workdir / "distances.npz").is_file():
        raise ValueError(
            f"{workdir} is not evaluated: run python experiments/evaluate.py --run={workdir}."
        )
    record = json.loads((workdir / "evaluation.json").read_text())
    with np.load(workdir / "distances.npz") as file:
        return config, record, dict(file)


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
    alone make one row, mean ± standard deviation, and one curve.

    Raises: ValueError for a run without an evaluation, and for runs measured differently.
    """
    groups: dict[str, list[tuple[dict, dict[str, np.ndarray]]]] = {}
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
        groups.setdefault(names[identity], []).append((record["row"], found))
    rows, distances = {}, {}
    for name, members in groups.items():
        rows[name] = {c: _spread([row[c] for row, _ in members]) for c in members[0][0]}
        distances[name] = {
            norm: np.concatenate([found[norm] for _, found in members]) for norm in ("l2", "linf")
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
        )
        files += plots.save(figure, out / f"curves_{norm}")
    return text, files


def _spread(values: list[float]) -> float | str:
    if len(values) == 1:
        return values[0]
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    return f"{mean:.3g} ± {deviation:.2g}"
