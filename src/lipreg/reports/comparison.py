"""The recipes that `runs.compare` has trained, attacked, and in one table.

RUN/compared.json       `reports.compared`
DIR/compare.md          the table, that of the three approaches, and what they are made of;
                        of a comparison that was cut, with the recipes attacked so far
DIR/compare.csv         the table
DIR/compare.json        the plan and all numbers, seed by seed
DIR/errors.*            clean error and error under AutoAttack; the approaches have colours
DIR/gaps.*              errors under FGSM and PGD-10 over training
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipreg import curves, files
from lipreg.reports import compared, comparison_plots, plots
from lipreg.reports.compared import AUTO, PGD
from lipreg.runs import build, compare, logs, storage
from lipreg.training import overfitting

__all__ = ["APPROACHES", "against_best", "report"]

APPROACHES = {
    "A": "a smooth class of functions",
    "B": "an algorithm that regularises",
    "C": "a penalty",
}
OFF = np.log(1.2)  # of a run's seconds, when the table says so


def against_best(errors: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """By how much each row's mean is above the least, and where that is within the spread.

    The spread of a difference is `sqrt(s^2 + s'^2)`, s and s' the standard deviations over the
    seeds. A row of one seed is given the largest that there is; without any, nothing is known.

    >>> against_best({"a": [9.0, 11.0], "b": [11.0], "c": [20.0, 20.0], "d": []})
    {'a': 'best', 'b': 'within the spread', 'c': '+10', 'd': 'diverged'}
    """
    means = {name: float(np.mean(values)) for name, values in errors.items() if len(values)}
    spreads = {n: float(np.std(v, ddof=1)) for n, v in errors.items() if len(v) > 1}
    widest = max(spreads.values(), default=None)
    best = min(means, key=lambda name: means[name], default="")

    def said(name: str) -> str:
        if name not in means:
            return "diverged"
        if name == best:
            return "best"
        above = means[name] - means[best]
        if widest is None:
            return f"+{above:.3g}, spread unknown"
        spread = np.hypot(spreads.get(name, widest), spreads.get(best, widest))
        return "within the spread" if above <= spread else f"+{above:.3g}"

    return {name: said(name) for name in errors}


def _rows(
    found: Mapping[str, compare.Trained], seeds: Mapping[str, Sequence[Any]], at: Mapping[str, str]
) -> dict[str, dict[str, float | str]]:
    """The lines of the table in the order of AutoAttack's error in the first norm of `at`."""
    norm, name = next(iter(at.items()))
    robust = {
        recipe: [compared.error(seed["last"], norm, AUTO) for seed in seeds[recipe]]
        for recipe in found
    }
    against, rows = against_best(robust), {}
    for recipe in sorted(found, key=lambda recipe: np.mean(robust[recipe] or [np.inf])):
        cells = list(_row(found[recipe], seeds[recipe], at).items())
        place = [column for column, _ in cells].index(f"% {AUTO} {name}") + 1
        rows[recipe] = dict([*cells[:place], ("against the best", against[recipe]), *cells[place:]])
    return rows


def _row(
    trained: compare.Trained, seeds: Sequence[Mapping[str, Any]], at: Mapping[str, str]
) -> dict[str, float | str]:
    """A recipe's line but for what compares it with others; `at` are the columns' names by norm."""
    each = lambda number: curves.spread([number(seed) for seed in seeds]) if seeds else "diverged"
    kept = all(seed["best"] for seed in seeds)
    best = lambda number: each(lambda seed: number(seed["best"])) if kept else "-"
    steps = [overfitting.overfitted(seed["rows"]) for seed in seeds]
    finite = len(seeds) == len(trained.runs)
    overfitted = [
        f"step {step} of {seed['last']['asked']['step']}"
        for step, seed in zip(steps, seeds, strict=True)
        if step
    ]
    row = {
        "approach": trained.recipe.approach,
        "setting": _setting(trained),
        "seeds": f"{len(seeds)}" if finite else f"{len(seeds)} of {len(trained.runs)}",
        "seconds": each(_seconds) if all(map(_seconds, seeds)) else "-",
        "compilation, s": trained.pace.get("compile_s", "-"),
        "epochs": each(lambda seed: seed["last"]["epochs"]),
        "best epoch": best(lambda found: found["epochs"]),
        "% clean error": each(lambda seed: compared.clean(seed["last"])),
    }
    for norm, name in at.items():
        for attack in (PGD, AUTO):
            row[f"% {attack} {name}"] = each(
                lambda s, n=norm, a=attack: compared.error(s["last"], n, a)
            )
    norm, name = next(iter(at.items()))
    row[f"% {AUTO} {name}, best epoch"] = best(lambda found: compared.error(found, norm, AUTO))
    gaps = [compared.gaps(seed["rows"]) for seed in seeds]
    seen = bool(gaps) and all(map(len, gaps))
    row["PGD-10 less FGSM, %: last"] = curves.spread([v[-1] for v in gaps]) if seen else "-"
    row["largest"] = curves.spread([v.max() for v in gaps]) if seen else "-"
    row["overfitted"] = ", ".join(overfitted) or "-"
    row["masking flags"] = each(lambda seed: compared.flags(seed["last"]))
    return row


def _seconds(seed: Mapping[str, Any]) -> float:
    """Those that a run's training took, 0 where it did not tell (a guest's)."""
    return seed["rows"][-1].get("seconds", 0.0)


def _validated(
    found: Mapping[str, compare.Trained], plan: compare.Plan
) -> dict[str, dict[str, float | str]]:
    """All recipes, attacked or not, in the order of what chose their settings.

    Guests that were validated by another attack are last, without its error.
    """
    attack = {"norm": plan.norm, "eps": plan.eps, "steps": 20}

    def alike(name: str) -> bool:
        configs = map(storage.read_complete, _whole(found[name]))
        return all(config.report.pgd.to_dict() == attack for config in configs)

    def row(name: str) -> dict[str, float | str]:
        trained = found[name]
        last = [logs.metrics(run)[-1] for run in _whole(trained)]
        each = lambda field: curves.spread([100 * r[field] for r in last]) if last else "diverged"
        return {
            "approach": trained.recipe.approach,
            "setting": _setting(trained),
            "seeds": len(last),
            "% clean error": each(build.CLEAN),
            f"% {PGD}": each(build.ROBUST) if alike(name) else "-",
        }

    order = sorted(found, key=lambda name: (not alike(name), compare.error(found[name].runs[0])))
    return {name: row(name) for name in order}


def _whole(trained: compare.Trained) -> list[Path]:
    """The runs that have not diverged."""
    return [run for run in trained.runs if np.isfinite(compare.error(run))]


def _setting(trained: compare.Trained) -> str:
    setting = trained.recipe.settings[trained.k] if trained.recipe.settings else {}
    return ", ".join(f"{n.rpartition('.')[2]} {_short(v)}" for n, v in setting.items()) or "-"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _approaches(
    found: Mapping[str, compare.Trained], seeds: Mapping[str, Sequence[Any]], at: Mapping[str, str]
) -> dict[str, dict[str, float | str]]:
    """Three approaches to regularity; the best epoch of plain training, j0, is approach B's too."""
    each = lambda several, number: curves.spread([number(one) for one in several])
    norm, name = next(iter(at.items()))

    def row(approach: str, several: Sequence[Mapping[str, Any]]) -> dict[str, float | str]:
        proofs = [one["certified"] for one in several]
        return {
            "approach": f"{approach}: {APPROACHES[approach]}",
            "% clean error": each(several, compared.clean),
            f"% {AUTO} {name}": each(several, lambda one: compared.error(one, norm, AUTO)),
            "Lipschitz, loss: estimate": each(several, lambda one: one["estimate"]),
            "proved": "-" if None in proofs else curves.spread(proofs),
            "gap, % error": each(several, lambda one: 100 * one["gap"]["error"]),
            "gap, loss": each(several, lambda one: one["gap"]["loss"]),
        }

    rows = {}
    for approach in APPROACHES:
        for recipe, trained in found.items():
            if trained.recipe.approach == approach and seeds[recipe]:
                rows[recipe] = row(approach, [seed["last"] for seed in seeds[recipe]])
                if recipe == "j0" and all(seed["best"] for seed in seeds[recipe]):
                    rows["j0, best epoch"] = row("B", [seed["best"] for seed in seeds[recipe]])
    return rows


def report(
    found: Mapping[str, compare.Trained],
    plan: compare.Plan,
    workdir: str | Path,
    *,
    radii: Mapping[str, float],
    examples: int,
    note: str = "",
    progress: Callable[[str], None] | None = None,
) -> tuple[str, list[Path]]:
    """Measure what is not measured; the tables as Markdown, and the files written into `workdir`.

    `radii` of attacks begin with the plan's norm; every run is attacked at them, whatever its
    config says. A run that has diverged is left out of its recipe's row, which counts it. `note` is
    printed beside the numbers.
    """
    workdir = Path(workdir)
    at = {norm: f"{norm} {eps:.3g}" for norm, eps in radii.items()}
    caption = _caption(plan, at, examples, note)
    seeds: dict[str, list[dict[str, Any]]] = {}
    rows, text, validated = {}, caption, _validated(found, plan)
    for name, trained in found.items():
        tell = (lambda line, name=name: progress(f"{name}: {line}")) if progress else None
        seeds[name] = [
            compared.seed(run, radii, examples=examples, progress=tell) for run in _whole(trained)
        ]
        waiting = ", ".join(other for other in found if other not in seeds)
        rows = _rows({done: found[done] for done in seeds}, seeds, at)
        text = f"{curves.to_markdown(rows)}\n\n{caption}\n"
        text += _off_pace(seeds, plan.seconds)
        text += f"Not attacked yet: {waiting}.\n" if waiting else ""
        if approaches := _approaches({done: found[done] for done in seeds}, seeds, at):
            text += f"\n{curves.to_markdown(approaches)}\n\n{_CONSTANTS}\n"
        text += f"\n{curves.to_markdown(validated)}\n\n{_VALIDATED}\n"
        files.write(workdir / "compare.md", text)
    files.write(workdir / "compare.csv", curves.to_csv(rows))
    record = {"plan": plan._asdict(), "radii": radii, "examples": examples, "note": note}
    record |= {"recipes": {n: t.recipe._asdict() for n, t in found.items()}, "seeds": seeds}
    files.write_json(workdir / "compare.json", record | {"about": storage.about()})
    written = [workdir / f"compare.{kind}" for kind in ("md", "csv", "json")]
    errors = {
        name: [
            (compared.clean(seed["last"]), compared.error(seed["last"], plan.norm, AUTO))
            for seed in several
        ]
        for name, several in seeds.items()
        if several
    }
    if errors:
        groups = {name: found[name].recipe.approach for name in errors}
        label = f"% error under {AUTO}, {at[plan.norm]}"
        figure = comparison_plots.errors(errors, groups, label=label)
        written += plots.save(figure, workdir / "errors")
        histories = {name: seeds[name][0]["rows"] for name in rows if seeds[name]}
        written += plots.save(comparison_plots.gaps(histories), workdir / "gaps")
    return text, written


def _off_pace(seeds: Mapping[str, Sequence[Mapping[str, Any]]], wanted: float) -> str:
    """A line that names the recipes whose runs took other seconds than they were given."""
    took = {
        name: np.mean([_seconds(seed) for seed in several]) / wanted
        for name, several in seeds.items()
        if several and all(map(_seconds, several))
    }
    names = ", ".join(f"{name} ({x:.2g})" for name, x in took.items() if abs(np.log(x)) > OFF)
    if not names:
        return ""
    return (
        f"More than a fifth off the {wanted:g} s, as multiples of them: {names}. Steps are fitted "
        "to a pace measured before the training: where another program ran beside that, a run is "
        "too short, and where one ran beside the training itself, it only took longer.\n"
    )


_CONSTANTS = (
    "Of the cross entropy in l2: the largest gradient at these test images, an estimate from "
    "below, and a proved bound in the whole box. Gaps: by how much error and loss are larger on "
    "test images than on as many training images."
)


_VALIDATED = (
    "The same runs on the validation split, at the last epoch: what chose settings and seeds."
)


def _caption(plan: compare.Plan, at: Mapping[str, str], examples: int, note: str) -> str:
    """What the numbers are, and what they were measured on."""
    about = storage.about()
    tried = f"{plan.trials} setting{'s' * (plan.trials > 1)}, {plan.trial_seconds:g} s each"
    sentences = [
        f"{note.rstrip('.')}." if note else "",
        f"{plan.seconds:g} s of training a run, without compilation, validation and checkpoints; "
        "the table has what it took.",
        f"{tried}, chosen by {PGD} at {plan.norm} {plan.eps:.3g} on the validation split.",
        f"Errors: {examples} test images at {' and '.join(at.values())}, at the last epoch, in the "
        "order of AutoAttack's; mean ± standard deviation over the seeds.",
        f"{plan.seeds} seeds for the best {plan.best} by validation, one for the others."
        if plan.seeds > 1
        else "One seed.",
        "Against the best: a difference within the spread is at most sqrt(s² + s'²); s of a row of "
        "one seed is the largest of the others.",
        "Overfitted: where catastrophic overfitting begins, the error under PGD-10 rising by "
        f"{100 * overfitting.RISE:g} points, and that under FGSM not.",
        f"`{about['command']}`, {about['commit']}, {about['machine']}, "
        f"{', '.join(sorted(set(about['devices'])))}, jax {about['versions']['jax']}.",
    ]
    return "\n".join(filter(None, sentences))
