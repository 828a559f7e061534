"""What a minute of training buys: every recipe, the same seconds, trials and attacks.

    python experiments/compare.py --config=experiments/configs/mnist.py --norm=linf --eps=0.1 \\
        --seconds=60 --trials=4 --workdir=runs/compare

Each recipe of experiments/configs/compare.py gets `--trials` settings, of which the least error
under PGD-20 on the validation split chooses one, and `--seconds` of training a run, compilation not
counted: its schedule is fitted to the time by the measured step. The best `--best` by validation
get `--seeds` runs, the others one. All are attacked by PGD-20 and AutoAttack on the test split.
DIR gets one table, another of three approaches to regularity (a smooth class, an algorithm, a
penalty), and pictures. A killed comparison goes on; nothing is done twice.

Your own recipe is an objective and fields of the config, those with several values being tried:
`--own='my_parts:trades strengths.eps=0.1 strengths.beta=6,3,1,10 name=mine approach=B'`. `--guests`
are runs that something else has trained (benchmarks/compare_torch.py).
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

import cli
from configs.compare import recipes
from lipreg import datasets, runs
from lipreg.norms import NORMS
from lipreg.reports import comparison
from lipreg.runs import compare, storage
from lipreg.runs.checks import check_fields

_CONFIG = cli.config_file()
_WORKDIR = flags.DEFINE_string("workdir", None, "the comparison's folder", required=True)
_NORM = flags.DEFINE_enum("norm", "linf", ["l2", "linf"], "of the attacks")
_EPS = flags.DEFINE_float("eps", None, "their radius; default: that of the config's table")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "of training a run", lower_bound=0.1)
_TRIALS = flags.DEFINE_integer("trials", 4, "settings that a recipe may try", lower_bound=1)
_RATES = flags.DEFINE_list(
    "rates",
    [],
    "of each setting, factors of its learning rate, the config's if it has none of its own",
)
_SHARE = flags.DEFINE_float("trial_share", 1.0, "of the seconds, for a trial", 0.01, 1.0)
cli.finite("seconds", "trial_share")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of the best recipes", lower_bound=1)
_BEST = flags.DEFINE_integer("best", 6, "recipes with all seeds", lower_bound=0)
_EXAMPLES = flags.DEFINE_integer(
    "examples", None, "test images attacked; default: 500, or all of fewer", lower_bound=1
)
_NORMS = flags.DEFINE_list("norms", ["l2", "linf"], "of the attacks in the table")
_ROWS = flags.DEFINE_list("rows", [], "some of the recipes; default: all")
_OWN = flags.DEFINE_multi_string("own", [], "'OBJECTIVE FIELD=VALUE,VALUE ...'; may be repeated")
_GUESTS = flags.DEFINE_list("guests", [], "runs, or folders of seed-*, trained elsewhere")
_NOTE = flags.DEFINE_string("note", "", "to stand beside the numbers, on the data for instance")
_SILENT = flags.DEFINE_bool("silent", False, "no progress bars")


def _recipes(config: Any, eps: float) -> dict[str, compare.Recipe]:
    d = config.data
    if d.side:
        raise ValueError(f"config.data.side = {d.side}; recipes are compared on a set in memory.")
    options = {name: d[name] for name in ("dir", "seed", "validation", "bounds")}
    pixels = datasets.load(d.name, "validation", **options).x[0].size
    with cli.in_config_file() as defined:
        known = defined.get("STRENGTHS", {})
    every = recipes(_NORM.value, eps, pixels, known, config.train)
    for name in _ROWS.value:
        if name not in every:
            raise ValueError(f"--rows={name}; choose some of {', '.join(every)}.")
    chosen = {name: every[name] for name in _ROWS.value or every}
    for text in _OWN.value:
        name, recipe = compare.own(text)
        if name in every or name in chosen:
            raise ValueError(f"--own={text}: there is another {name!r}; write name=NAME.")
        chosen[name] = recipe
    if not _RATES.value:
        return chosen
    rate, factors = config.train.learning_rate, _factors()
    return {name: compare.rated(recipe, rate, factors) for name, recipe in chosen.items()}


def _factors() -> list[float]:
    with suppress(ValueError):
        factors = [float(factor) for factor in _RATES.value]
        if all(0 < factor < math.inf for factor in factors) and len({*factors}) == len(factors):
            return factors
    raise ValueError(
        f"--rates={','.join(_RATES.value)}; write different numbers greater than 0, such as 1,0.5."
    )


def _ended(workdir: Path) -> bool:
    loaded = runs.load(workdir)
    return loaded.step == loaded.steps


def _guest(name: str, config: Any) -> compare.Trained:
    """A run that is in the table as it is, or ValueError before anything is trained."""
    folder = Path(name)
    seeds = sorted(folder.glob("seed-*")) or [folder]
    for seed in seeds:
        data = storage.read_complete(seed).data
        for field in ("name", "validation", "seed", "bounds"):
            if data[field] != config.data[field]:
                raise ValueError(
                    f"--guests={name}: {seed} has config.data.{field} = {data[field]}; "
                    f"the comparison has {config.data[field]}."
                )
        if not math.isfinite(compare.error(seed)) or not _ended(seed):
            raise ValueError(
                f"--guests={name}: {seed} was not trained to its end, or has diverged."
            )
    return compare.Trained(compare.Recipe("", [{}]), 0, seeds, {})


# What recipes set, and a flag of the config would not.
SET = ("objective", "strengths.", "options.", "model.head")


def _check_flags() -> None:
    for name in config_flags.get_override_values(flags.FLAGS["config"]):
        if name in ("train.steps", "train.epochs"):
            raise ValueError(f"--config.{name}: runs have the steps that fit into --seconds.")
        radius = f"evaluation.{_NORM.value}.table"
        if name.startswith(compare.ALIKE) or (name == radius and _EPS.value is not None):
            raise ValueError(
                f"--config.{name}: all runs are measured alike, by PGD-20 and AutoAttack; its "
                "flags are --norm, --eps, --norms and --examples."
            )
        if name.startswith(SET):
            raise ValueError(
                f"--config.{name}: every recipe sets it; add one with another value by "
                f"--own='OBJECTIVE {name}=VALUE name=NAME'."
            )


def main(_: list[str]) -> None:
    config, norm = _CONFIG.value, _NORM.value
    _check_flags()
    check_fields(config)
    eps = config.evaluation[norm].table if _EPS.value is None else _EPS.value
    if not 0 < eps < math.inf:
        raise ValueError(f"--eps={eps}; it must be greater than 0, and finite.")
    for other in _NORMS.value:
        if other not in NORMS:
            raise ValueError(f"--norms={other}; choose some of {', '.join(NORMS)}.")
    trial_seconds = _SHARE.value * _SECONDS.value
    plan = compare.Plan(
        norm, eps, _SECONDS.value, _TRIALS.value, trial_seconds, _SEEDS.value, _BEST.value
    )
    chosen = _recipes(config, eps)
    test = datasets.load(config.data.name, "test", dir=config.data.dir, bounds=config.data.bounds)
    examples = _EXAMPLES.value or min(500, len(test.y))
    if examples > len(test.y):
        raise ValueError(f"--examples={examples}; the test split has {len(test.y)}.")
    guests: dict[str, compare.Trained] = {}
    for path in _GUESTS.value:
        name = Path(path).name
        if name in chosen or name in guests:
            raise ValueError(f"--guests={path}: there is another {name!r}; rename the folder.")
        guests[name] = _guest(path, config)
    found = compare.train(chosen, config, plan, _WORKDIR.value, silent=_SILENT.value) | guests
    with cli.progress(_SILENT.value) as progress:
        text, files = comparison.report(
            found,
            plan,
            _WORKDIR.value,
            radii={norm: eps} | {n: config.evaluation[n].table for n in _NORMS.value if n != norm},
            examples=examples,
            note=_NOTE.value,
            progress=progress,
        )
    print(text)
    print("Written:", *files, sep="\n  ")


if __name__ == "__main__":
    cli.run(main)
