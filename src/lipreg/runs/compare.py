"""Recipes that get the same seconds of training, the same number of trials and the same attacks.

    DIR/pace/RECIPE/pace.json    seconds of a step and of its compilation
    DIR/points/RECIPE/trial-K/   its K-th setting's run, with point.json (`runs.sweep`)
    DIR/points/RECIPE/seed-S/    the runs of the setting that was best by validation

A run has as many steps as its recipe takes in the seconds, by the measured step, so that every
schedule ends where it should. Settings are chosen by the error under PGD-20 on the validation
split. Whatever is in the folder is not done again. `reports.comparison` attacks the runs and makes
the table.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lipreg import files, parallel, runs
from lipreg.norms import NORMS
from lipreg.runs import build, logs, storage, sweep
from lipreg.runs.build import ROBUST
from lipreg.runs.config import Config, drop_settings, leaves, no_field, options, strengths
from lipreg.runs.experiment import check_steps
from lipreg.runs.pace import DISPATCH, fitting, pace

__all__ = [
    "Plan",
    "Recipe",
    "Trained",
    "error",
    "fitting",
    "own",
    "pace",
    "point",
    "rated",
    "train",
]

REPORTS = 20  # lines of metrics.jsonl a run, each with the gap between FGSM and PGD-10
RATE = "train.learning_rate"
APPROACHES = ("A", "B", "C", "-")  # of a `Recipe`
# What all recipes of a comparison share, beginnings of fields of a config.
SET = (
    *("seed", "train.steps", "train.epochs", "report.", "evaluation."),
    *("data.name", "data.dir", "data.seed", "data.validation", "data.bounds", "data.side"),
)
# What a comparison gives to every run, or does not read, whatever the config says.
ALIKE = (
    *("report.pgd.", "report.every_steps", "report.seconds", "report.keep_best"),
    *("report.validate_every_epochs", "report.checkpoint_every_epochs"),
    *("evaluation.examples", "evaluation.steps", "evaluation.restarts", "evaluation.radii"),
    *(f"evaluation.{norm}.largest" for norm in NORMS),
)
VALIDATIONS = 10  # a run, at ends of epochs: what the best epoch is chosen from


class Recipe(NamedTuple):
    """A way to train.

    Attributes:
      objective: one of the library's, or `package.module:name`.
      settings: fields of a config by their full names, a mapping for each trial, the likeliest
        first; they differ in numbers, and cost the same.
      fields: what all its trials share; "model.settings", where the network is another one.
      approach: of 1810.00953's authors: A, a smooth class of functions; B, an algorithm that
        regularises; C, a penalty; or none of these.
    """

    objective: str
    settings: Sequence[Mapping[str, Any]]
    fields: Mapping[str, Any] = {}
    approach: str = "-"


class Plan(NamedTuple):
    """What every recipe gets.

    Attributes:
      norm, eps: of the attacks that choose and rank.
      seconds: of training a run.
      trials: settings that are tried.
      trial_seconds: of training each of them.
      seeds: of the recipes that rank among the first `best` by validation; of the others, one.
    """

    norm: str
    eps: float
    seconds: float
    trials: int
    trial_seconds: float
    seeds: int
    best: int


class Trained(NamedTuple):
    """What `train` has made of a recipe.

    Attributes:
      recipe: itself.
      k: the number of its setting that was best by validation.
      runs: of this setting, a folder for each seed.
      pace: see `pace`.
    """

    recipe: Recipe
    k: int
    runs: list[Path]
    pace: Mapping[str, float]


def own(text: str) -> tuple[str, Recipe]:
    """A recipe from `OBJECTIVE FIELD=VALUE,VALUE ...` and, if wanted, `name=NAME approach=A`.

    Fields with several values are tried in all combinations, the first ones first.

    >>> name, recipe = own("my_parts:trades strengths.beta=6,1 strengths.eps=0.1")
    >>> name, recipe.objective, recipe.settings[1]
    ('trades', 'my_parts:trades', {'strengths.beta': 1, 'strengths.eps': 0.1})
    """
    objective, *words = text.split() or [""]
    if not objective:
        raise ValueError("--own=; write OBJECTIVE FIELD=VALUE,VALUE ...")
    axes = sweep.parse(words)
    names = axes.pop("name", (objective.rpartition(":")[2],))
    approach = axes.pop("approach", ("-",))
    if len(names) != 1 or not re.fullmatch(r"\w[\w.-]*", str(names[0])):
        raise ValueError(
            f"name={','.join(map(str, names))}; one name, of letters, digits, '_', '-' and '.'."
        )
    if len(approach) != 1 or approach[0] not in APPROACHES:
        raise ValueError(
            f"approach={','.join(map(str, approach))}; choose one of {', '.join(APPROACHES)}."
        )
    return str(names[0]), Recipe(objective, sweep.combinations(axes), approach=approach[0])


def rated(recipe: Recipe, rate: float, factors: Sequence[float]) -> Recipe:
    """The recipe with each of its settings at several learning rates, the first ones first.

    Its rate, or else `rate`, times each factor. A recipe whose settings differ in their rates stays
    as it is.

    >>> recipe = rated(Recipe("j1", [{"strengths.eps": 0.1}]), 0.2, [1.0, 0.5])
    >>> [setting[RATE] for setting in recipe.settings]
    [0.2, 0.1]
    """
    own = [setting.get(RATE, recipe.fields.get(RATE, rate)) for setting in recipe.settings]
    if len({*own}) > 1:
        return recipe
    rated = [
        {**setting, RATE: float(f"{factor * mine:.12g}")}
        for setting, mine in zip(recipe.settings, own, strict=True)
        for factor in factors
    ]
    return recipe._replace(settings=rated)


def point(base: Config, recipe: Recipe, k: int, plan: Plan, *, steps: int, seed: int = 0) -> Config:
    """The config of a recipe's k-th setting, for so many steps."""
    config = base.copy_and_resolve_references()
    row = recipe.objective
    with config.unlocked():
        config.objective = row if ":" in row else row.removesuffix("_tanh")
        config.model.head = "linear" if config.objective == row else "tanh"
        config.strengths = dict.fromkeys(strengths(config.objective), float("nan"))
        config.options = options(config.objective)
    report = {"pgd.norm": plan.norm, "pgd.eps": plan.eps, "pgd.steps": 20}
    every = max(1, steps // REPORTS)
    every -= every % DISPATCH if every > DISPATCH else 0
    report |= {"every_steps": every, "seconds": True, "keep_best": True}
    report["gap_examples"] = config.report.gap_examples or 64
    fields = {f"report.{name}": value for name, value in report.items()}
    fields |= {"train.steps": steps, "seed": base.seed + seed}
    fields |= {f"evaluation.{plan.norm}.table": plan.eps}
    given = {**recipe.fields, **recipe.settings[k]}
    if "model.settings" in given:  # of another network
        with config.unlocked():
            config.model.settings = dict(given["model.settings"])
    for name in given:
        if name.startswith(SET):
            raise ValueError(f"{row}: {name}: the comparison sets it, the same for all recipes.")
    fields |= {name: value for name, value in given.items() if name != "model.settings"}
    for name, value in fields.items():
        if name not in leaves(config):
            raise ValueError(f"{row}: {name}: {no_field(name, leaves(config))}")
        number = isinstance(value, int) and isinstance(leaves(config)[name], float)
        try:
            config.update_from_flattened_dict({name: float(value) if number else value})
        except TypeError as error:
            raise ValueError(f"{row}: {name} = {value}: {error}.") from None
    drop_settings(config, base.model.name, given)
    return config


def _paced(recipe: Recipe, base: Config, plan: Plan, workdir: Path) -> dict[str, Any]:
    """The pace of a recipe, measured once: from it follow the steps of its runs.

    That of its first setting which stays finite; they cost the same.
    """
    config, path = point(base, recipe, 0, plan, steps=_MANY), workdir / "pace.json"
    storage.check_workdir(workdir, config.to_dict())
    if path.is_file():
        storage.check_same(workdir, config.to_dict())
        return files.read(path)
    for k in range(plan.trials):
        with parallel.over():
            experiment = runs.prepare(point(base, recipe, k, plan, steps=_MANY))
            measured = pace(experiment, min(5.0, plan.seconds / 4))
        if measured:
            break
    else:
        raise ValueError(
            f"{workdir.name}: the first steps of its {plan.trials} settings are not finite; leave "
            "it out, or give it smaller learning rates or strengths."
        )
    measured["epoch_steps"] = experiment.epoch_steps
    storage.claim(workdir, config.to_dict())
    files.write_json(path, measured)
    return measured


_MANY = 10**9  # steps, so that a pace is that of the first


def train(
    recipes: Mapping[str, Recipe],
    base: Config,
    plan: Plan,
    workdir: str | Path,
    *,
    silent: bool = False,
) -> dict[str, Trained]:
    """Train what is not trained; of each recipe the best setting and its runs, one for each seed.

    Raises: ValueError, before anything is trained, for a recipe that has not enough settings and
    for one whose config is not valid; and for a folder of another comparison.
    """
    folder = Path(workdir)
    for name, recipe in recipes.items():
        if len(recipe.settings) < plan.trials:
            raise ValueError(
                f"{name} has {len(recipe.settings)} settings; give one for each of {plan.trials} "
                "trials."
            )
        for k in range(plan.trials):
            try:
                build.parts(point(base, recipe, k, plan, steps=1))
            except ValueError as wrong:
                raise ValueError(f"{name}: {wrong}") from None
    paces = {n: _paced(r, base, plan, folder / "pace" / n) for n, r in recipes.items()}
    for name, recipe in recipes.items():
        for k in range(plan.trials):
            steps = fitting(plan.trial_seconds, paces[name]["step_s"])
            try:
                check_steps(point(base, recipe, k, plan, steps=steps), steps)
            except ValueError as wrong:
                raise ValueError(
                    f"{name} in {plan.trial_seconds:g} s: {wrong} Give it more, or leave it out."
                ) from None

    def run(name: str, label: str, k: int, seconds: float, seed: int = 0) -> Path:
        steps = fitting(seconds, paces[name]["step_s"])
        config = point(base, recipes[name], k, plan, steps=steps, seed=seed)
        every = max(1, steps // paces[name]["epoch_steps"] // VALIDATIONS)
        config.report.validate_every_epochs = config.report.checkpoint_every_epochs = every
        sweep.run({f"{name}/{label}": config}, folder, engine="loop", silent=silent)
        return folder / "points" / name / label

    found: dict[str, Trained] = {}
    for name in recipes:
        trials = [run(name, f"trial-{k}", k, plan.trial_seconds) for k in range(plan.trials)]
        k = int(np.argmin([error(trial) for trial in trials]))
        same = plan.trial_seconds == plan.seconds  # then the trial is the run
        final = trials[k] if same else run(name, "seed-0", k, plan.seconds)
        found[name] = Trained(recipes[name], k, [final], paces[name])
    for name in sorted(found, key=lambda name: error(found[name].runs[0]))[: plan.best]:
        for seed in range(1, plan.seeds):
            again = run(name, f"seed-{seed}", found[name].k, plan.seconds, seed)
            found[name].runs.append(again)
    return found


def error(workdir: Path) -> float:
    """A run's last error under PGD-20 on the validation split; inf if it has diverged."""
    rows = logs.metrics(workdir)
    record = sweep.outcome(workdir) or (rows[-1] if rows else {})
    return record.get(ROBUST, math.inf)
