"""The fields of an experiment, their defaults, and what makes a config a good one.

The files in `experiments/configs` start from `base_config` and set the values of a data set.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from lipreg import losses, norms, objectives

__all__ = [
    "Config",
    "base_config",
    "bound_objective",
    "check",
    "complete",
    "differing",
    "label",
    "leaves",
    "member",
]

Config = Any  # a ConfigDict, whose fields have types that no checker can see

PRECISIONS = ("default", "highest")


def base_config(row: str, strengths: dict[str, dict[str, float]]) -> Config:
    """Every field of an experiment. `row` is an objective, with `_tanh` for the tanh head.

    `strengths` gives the data set's strengths for each objective that its config file offers.

    >>> base_config("j2_lip_tanh", {"j2_lip": {"eps": 0.1, "lam": 0.01}}).model.head
    'tanh'
    """
    objective = row.removesuffix("_tanh")
    if objective not in strengths:
        rows = ", ".join(sorted(strengths))
        raise ValueError(f"No row {row!r}; choose one of {rows}, each also with _tanh.")
    config: Config = ConfigDict()
    config.seed = 0
    config.objective = objective
    # Traced: a change of strength does not compile again.
    config.strengths = {name: float(value) for name, value in strengths[objective].items()}
    config.options = _options(objective)
    config.loss = "cross_entropy"
    config.model = {
        "name": "CNN",
        "head": "tanh" if row.endswith("_tanh") else "linear",
        "activation": "relu",
        "settings": {"dtype": "float32"},  # further fields of the model, e.g. channels
    }
    config.data = {
        "name": "digits",
        "dir": "",  # a folder of prepared TFDS data sets; "" for $TFDS_DATA_DIR
        "side": 0,  # pixels; of a set that is streamed, see lipreg.datasets.streamed; 0: one held in memory
        "threads": 4,  # that decode what is streamed
        "workers": 0,  # processes with so many threads each; 0: threads of the training process
        "validation": 0.1,  # fraction of the training split
        "seed": 0,  # of that split; the same for every seed of the training
        "wrong_labels": 0.0,  # fraction of the training labels that are replaced by another class
        "flip": False,
        "pad": 0,  # pixels, before a random crop
        "cutout": 0,  # side of the square that is blanked, in pixels
    }
    config.train = {
        "epochs": 10,
        "batch_size": 128,
        "learning_rate": 0.1,
        "schedule": "papers",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-3,  # the papers' 5e-4 ||w||^2
        "clip": 0.0,  # of the gradient's global norm; 0 is off
        "ema": 0.0,  # decay of the averaged weights; 0 is off
        "ramp": 0.0,  # fraction of training over which strengths.lam grows from 0
        "accumulate": 1,  # steps whose gradients make one move of the weights
        "per_dispatch": 0,  # steps of one compiled program; 0: 1 on CPU, 16 elsewhere
        "precision": "default",  # of float32 products: TF32 where a card has it; or highest
    }
    config.report = {
        "every_steps": 50,  # a line of metrics.jsonl
        "validate_every_epochs": 1,  # clean and PGD error on the validation split
        "examples": 500,  # of the split, at most
        "pgd": {"norm": "l2", "eps": 0.1, "steps": 10},
        "checkpoint_every_epochs": 1,
        "keep": 2,
    }
    # What evaluate.py does with the test split unless its flags say otherwise.
    config.evaluation = {
        "examples": 1000,
        "batch_size": 250,
        "steps": 20,
        "restarts": 1,
        "radii": 31,  # of the grid that is bisected: 5 attacks
        # The largest radius of the grid, and that of the table's column; the grid covers both.
        "l2": {"largest": 2.0, "table": 0.1},
        "linf": {"largest": 0.2, "table": 1 / 16},
    }
    return config


def complete(config: Config) -> Config:
    """A run's config with the fields that its version did not have yet: they are off by default."""
    whole = base_config("j0", {"j0": {}})
    for name in {"model", "data", "train", "report", "evaluation"} & {*config}:
        whole[name].update(config[name])
        config[name] = whole[name]
    return config


def _options(objective: str) -> dict[str, Any]:
    """The static options of an objective that a config can set, with the function's defaults."""
    parameters = inspect.signature(member(objectives, "objective", objective)).parameters
    defaults = {
        name: p.default
        for name, p in parameters.items()
        if p.kind is p.KEYWORD_ONLY
        and p.default is not p.empty
        and name not in ("loss", "frozen", "output")
    }
    return {k: v.name if isinstance(v, norms.Norm) else v for k, v in defaults.items()}


def member(module: Any, kind: str, name: str) -> Any:
    """`getattr(module, name)` for a name in its `__all__`; the module is the registry."""
    if name not in module.__all__:
        raise ValueError(f"No {kind} {name!r}; choose one of {', '.join(module.__all__)}.")
    return getattr(module, name)


def bound_objective(config: Config) -> Callable[..., Any]:
    """The config's objective with its static options bound, ready for `train.make_step`."""
    objective = member(objectives, "objective", config.objective)
    for name, got, takes in (
        ("strengths", set(config.strengths), set(objectives.strengths(objective))),
        ("options", set(config.options), set(_options(config.objective))),
    ):
        if got != takes:
            raise ValueError(
                f"config.{name} has {sorted(got)}; {config.objective} takes {sorted(takes)}. "
                f"Choose the objective by the config's row: FILE.py:{config.objective}."
            )
    options = dict(config.options)
    if "norm" in options:
        options["norm"] = norms.by_name(options["norm"])
    if "method" in options:
        options["method"] = objectives.method(options["method"])
    return partial(objective, **options)


def label(config: Config) -> str:
    """The row's name in tables and legends: `J2-Lip & tanh`."""
    name = config.objective
    if name[0] == "j":
        name = "-".join(word.capitalize() for word in name.split("_"))
    return f"{name} & {config.model.head}" if config.model.head != "linear" else name


def leaves(config: Config, prefix: str = "") -> dict[str, Any]:
    """The fields of a config, or of nested dicts, by their full names, `train.epochs`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, ConfigDict | Mapping)
        found |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def differing(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between a and b, with both values, "absent" for a missing one.

    >>> differing({"seed": 0, "train": {"epochs": 3}}, {"train": {"epochs": 4}})
    {'seed': (0, 'absent'), 'train.epochs': (3, 4)}
    """
    a, b = leaves(a), leaves(b)
    pairs = {name: (a.get(name, "absent"), b.get(name, "absent")) for name in sorted({**a, **b})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# Numbers that may be 0, meaning off or none, as all strengths may. All others must be greater.
_MAY_BE_ZERO = (
    *("seed", "options.top_k", "data.seed"),
    *("data.wrong_labels", "data.pad", "data.cutout", "report.pgd.eps"),
    *("data.side", "data.threads", "data.workers"),
    *("train.momentum", "train.weight_decay", "train.clip", "train.ema", "train.ramp"),
    "train.per_dispatch",
)
_FRACTIONS = ("data.wrong_labels", "train.momentum", "train.ema", "train.ramp")


def _names(config: Config) -> set[str]:
    """The fields that every config has."""
    own = ("strengths.", "options.", "model.settings.")
    return {name for name in leaves(config) if not name.startswith(own)}


def check(config: Config) -> None:
    """What a field's type does not check; ValueError with the field, its value and the choices.

    A ConfigDict accepts None for any field, so it is refused here, as is a field that a config file
    has added and that nothing would read.
    """
    odd = sorted(_names(config) ^ _names(base_config("j0", {"j0": {}})))
    if odd:
        known = odd[0] not in leaves(config)
        raise ValueError(f"config.{odd[0]} {'is missing' if known else 'is no field'}.")
    for name, value in leaves(config).items():
        if value is None:
            raise ValueError(f"config.{name} = None; give it a value.")
        sizes = isinstance(value, tuple) and name.startswith("model.settings.")
        if sizes and not all(type(n) is int and n > 0 for n in value):
            raise ValueError(f"config.{name} = {value}; it must be whole numbers greater than 0.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        may_be_zero = name in _MAY_BE_ZERO or name.startswith("strengths.")
        if may_be_zero and not value >= 0:
            raise ValueError(f"config.{name} = {value}; it must be 0 or more.")
        if not may_be_zero and not value > 0:
            raise ValueError(f"config.{name} = {value}; it must be greater than 0.")
        if name in _FRACTIONS and not value < 1:
            raise ValueError(f"config.{name} = {value}; it must be less than 1.")
        if name in ("seed", "data.seed") and not value < 2**32:  # JAX takes its last 32 bits
            raise ValueError(f"config.{name} = {value}; it must be less than 2^32.")
        if value == float("inf") and name != "options.p":
            raise ValueError(f"config.{name} = inf; it must be finite.")
    bound_objective(config)
    member(losses, "loss", config.loss)
    norms.by_name(config.report.pgd.norm)
    if config.train.precision not in PRECISIONS:
        raise ValueError(
            f"No precision {config.train.precision!r}; choose one of {', '.join(PRECISIONS)}."
        )
    if config.train.ramp and "lam" not in config.strengths:
        raise ValueError(
            f"config.train.ramp = {config.train.ramp}; {config.objective} has no lam to grow."
        )
