"""The fields of an experiment, their defaults, and what its objective adds to them.

The files in `experiments/configs` start from `base_config` and set the values of a data set.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

from ml_collections import ConfigDict

from lipreg import norms, objectives
from lipreg.doors import called, named
from lipreg.objectives.contract import GIVEN

__all__ = [
    "Config",
    "base_config",
    "complete",
    "differing",
    "drop_settings",
    "label",
    "leaves",
    "no_field",
    "objective",
    "options",
    "strengths",
]

Config = Any  # a ConfigDict, whose fields have types that no checker can see

# Options of objectives in earlier versions that are now their method's own, and their defaults.
FOLDED = {
    "difference": {"h": 1e-2, "order": 1},
    "pairs": {"steps": 5, "bounds": (0.0, 1.0)},
}


def base_config(row: str, known: Mapping[str, Mapping[str, float]]) -> Config:
    """Every field of an experiment.

    `row` is an objective of the library, with `_tanh` for the tanh head, or an outsider's as
    `package.module:name`. `known` gives the data set's strengths for each objective that its config
    file offers. Those of an outsider's objective are read from its signature; they are NaN until
    they are given.

    >>> base_config("j2_lip_tanh", {"j2_lip": {"eps": 0.1, "lam": 0.01}}).model.head
    'tanh'
    """
    outside = ":" in row
    name = row if outside else row.removesuffix("_tanh")
    if not outside and name not in known:
        rows = ", ".join(sorted(known))
        raise ValueError(
            f"No row {row!r}; choose one of {rows}, each also with _tanh, or name your own as "
            "package.module:name."
        )
    given = dict.fromkeys(strengths(name), math.nan) | dict(known.get(name, {}))
    config: Config = ConfigDict()
    config.seed = 0
    config.objective = name
    # Traced: a change of strength does not compile again.
    config.strengths = {strength: float(value) for strength, value in given.items()}
    config.options = options(name)
    config.loss = "cross_entropy"
    config.model = {
        "name": "CNN",
        "head": "tanh" if name != row else "linear",
        "activation": "relu",
        # Further fields of a network of the library's, e.g. channels. An outsider's has its own in
        # its name: "my_parts:Net(width=64)"; `head` and `activation` are handed to it if it takes
        # them, and these settings are not.
        "settings": {"dtype": "float32"},
    }
    config.data = {
        "name": "digits",
        "bounds": (0.0, 1.0),  # of a pixel or feature; attacks stay inside
        "dir": "",  # a folder of prepared TFDS data sets; "" for $TFDS_DATA_DIR
        "side": 0,  # pixels; of a set that is streamed (datasets.streamed); 0: one held in memory
        "threads": 4,  # that decode what is streamed
        "workers": 0,  # processes with this many threads each; 0: threads of the training process
        "validation": 0.1,  # fraction of the training split
        "seed": 0,  # of that split; the same for every seed of the training
        "wrong_labels": 0.0,  # fraction of the training labels that are replaced by another class
        "synthetic": "",  # a second source of training data, named as the first; "": none
        "synthetic_share": 0.7,  # of each batch that is from it
        "flip": False,
        "pad": 0,  # pixels, before a random crop
        "cutout": 0,  # side of the square that is blanked, in pixels
    }
    config.train = {
        "epochs": 10,
        "steps": 0,  # so many instead of the epochs, where it is not 0
        "batch_size": 128,
        "learning_rate": 0.1,
        "schedule": "papers",
        # Or another of optax's with its options, "adamw(b2=0.95)", or sam, awp or local_entropy
        # around one: "sam(rho=0.1)", "awp(inner='adamw(b2=0.95)')".
        "optimizer": "sgd",
        "momentum": 0.9,  # of sgd
        "nesterov": False,  # of sgd
        "weight_decay": 1e-3,  # the papers' 5e-4 ||w||^2; adamw decays in its own way
        "clip": 0.0,  # of the gradient's global norm; 0 is off
        "ema": 0.0,  # decay of the averaged weights, which are then evaluated; 0 is off
        # Of batch normalisation, for averaged weights: those of training, which are moving averages
        # already; "averaged" once more with the weights' decay; or "recomputed" from 50 batches.
        "ema_statistics": "running",
        "ramp": 0.0,  # fraction of training over which a strength grows from 0
        "ramped": "lam",  # that strength
        # Steps in a row on each batch: free adversarial training's m, 8 in its paper; of 2, both of
        # sam's and awp's gradients are those of one batch.
        "replay": 1,
        "accumulate": 1,  # steps whose gradients make one move of the weights
        "per_dispatch": 0,  # steps of one compiled program; 0: 1 on CPU, 16 elsewhere
        "precision": "default",  # of float32 products: TF32 where a card has it; or highest
    }
    config.report = {
        "every_steps": 50,  # a line of metrics.jsonl
        "logs": ("jsonl", "tensorboard"),  # also wandb; WANDB_MODE=offline needs no network
        "validate_every_epochs": 1,  # clean and PGD error on the validation split
        "examples": 500,  # of the split, at most
        "pgd": {"norm": "l2", "eps": 0.1, "steps": 10},
        # Validation images whose error under FGSM and PGD-10, at this radius, is in every line: how
        # catastrophic overfitting is seen. 0: none.
        "gap_examples": 0,
        "seconds": False,  # of training so far, without compilation and reports, in every line
        "checkpoint_every_epochs": 1,
        "keep": 2,
        "keep_best": False,  # in RUN/best, by PGD error on the validation split
    }
    # What evaluate.py does with the test split unless its flags say otherwise.
    config.evaluation = {
        "examples": 1000,
        "batch_size": 250,
        "steps": 20,
        "restarts": 1,
        "radii": 31,  # of the grid that is bisected: 5 attacks
        # The largest radius of the grid, and that of the table's column; the grid covers both.
        "l1": {"largest": 40.0, "table": 12.0},  # 12: Croce & Hein 2103.01208, on CIFAR-10
        "l2": {"largest": 2.0, "table": 0.1},
        "linf": {"largest": 0.2, "table": 1 / 16},
    }
    return config


def objective(name: str) -> Callable[..., Any]:
    """The objective called `name`, one of `lipreg.objectives` or an outsider's.

    Raises: ValueError where there is none, and for what is no function.
    """
    own = {known: getattr(objectives, known) for known in objectives.__all__}
    function = named("objective", name, own)
    if not callable(function):
        raise ValueError(
            f"{name} is a {type(function).__name__}; an objective is a function of (logits_fn, x, "
            "y) and keyword-only strengths and options."
        )
    return function


def strengths(name: str) -> tuple[str, ...]:
    """The strengths of an objective: keyword-only arguments without a default."""
    return objectives.strengths(objective(name))


def options(name: str) -> dict[str, Any]:
    """The static options of an objective that a config can hold, with the function's defaults.

    A norm goes by its name. An option whose default is a function, None or the like stays as it is.
    """
    parameters = inspect.signature(objective(name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    held = {k: _held(default) for k, default in defaults.items() if k not in GIVEN}
    return {k: value for k, value in held.items() if _plain(value)}


def drop_settings(config: Config, own: str, given: Collection[str] = ()) -> None:
    """Drop what a config file has set for its own network, `own`, where the config now has another.

    The dtype stays, which all networks have, and so do settings among the fields `given`.

    >>> config = base_config("j0", {"j0": {}})
    >>> config.model.update({"name": "MLP", "settings": {"dtype": "float32", "channels": (8,)}})
    >>> drop_settings(config, "CNN")
    >>> config.model.settings.to_dict()
    {'dtype': 'float32'}
    """
    name = called(config.model.name)[0]
    for field in given:
        if ":" in name and field.startswith("model.settings"):
            raise ValueError(f"config.{field}: settings of {name} go into its name, {name}(...).")
    if name == called(own)[0] or "model.settings" in given:
        return
    kept = {"model.settings.dtype", *given}
    settings = config.model.settings.to_dict()
    with config.unlocked():
        config.model.settings = {
            name: value for name, value in settings.items() if f"model.settings.{name}" in kept
        }


def _held(value: Any) -> Any:
    known = isinstance(value, norms.Norm) and value.name in norms.NORMS
    return value.name if known else value


def _plain(value: Any) -> bool:
    if type(value) is tuple:  # and no record, such as a norm
        return all(map(_plain, value))
    return isinstance(value, bool | int | float | str)


def complete(config: Config) -> Config:
    """A run's config in today's form: fields that its version did not have are off by default.

    Options that its objective no longer has are left out. An objective that cannot be imported any
    more keeps the options of its time: a run is read without it.
    """
    now = base_config("j0", {"j0": {}})
    for name in {"model", "data", "train", "report", "evaluation"} & {*config}:
        now[name].update(config[name])
        config[name] = now[name]
    if {"objective", "options"} <= {*config}:
        try:
            defaults = options(config.objective)
        except ValueError:
            return config
        config.options = _renewed(config.options.to_dict(), defaults)
    return config


def _renewed(old: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Options of an earlier version as those of today, of which `defaults` has all."""
    renewed = defaults | {name: value for name, value in old.items() if name in defaults}
    own = FOLDED.get(old.get("method", ""), {})
    moved = {n: old[n] for n in own if n in old and n not in defaults and old[n] != own[n]}
    if moved:
        renewed["method"] += f"({', '.join(f'{name}={value!r}' for name, value in moved.items())})"
    return renewed


def label(config: Config) -> str:
    """The row's name in tables and legends: `J2-Lip & tanh`; an outsider's without its module."""
    _, outside, name = config.objective.rpartition(":")
    if not outside and name[0] == "j":
        name = "-".join(word.capitalize() for word in name.split("_"))
    return f"{name} & {config.model.head}" if config.model.head != "linear" else name


def leaves(config: Config, prefix: str = "") -> dict[str, Any]:
    """The fields of a config, or of nested dicts, by their full names, `train.epochs`."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, ConfigDict | Mapping)
        fields |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return fields


def no_field(name: str, fields: Collection[str]) -> str:
    """What to say of a name that is none of the fields: the nearest of them, or else all.

    >>> no_field("epoch", ["seed", "train.epochs"])
    'no such field. Did you mean train.epochs?'
    """
    section, dot, last = name.rpartition(".")
    within = [field for field in fields if dot and field.rpartition(".")[0] == section]
    known = {field.rpartition(".")[2]: field for field in (*fields, *within)}
    near = get_close_matches(last, known, 1, 0.75)
    if near:
        return f"no such field. Did you mean {known[near[0]]}?"
    if section == "model.settings":
        return f"no such field. Write it into the network's name, model.name='NAME({last}=...)'."
    return f"no such field; choose one of {', '.join(within or fields)}."


def differing(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between a and b, with both values, "absent" for a missing one.

    >>> differing({"seed": 0, "train": {"epochs": 3}}, {"train": {"epochs": 4}})
    {'seed': (0, 'absent'), 'train.epochs': (3, 4)}
    """
    a, b = leaves(a), leaves(b)
    pairs = {name: (a.get(name, "absent"), b.get(name, "absent")) for name in sorted({**a, **b})}
    same = lambda x, y: x == y or (x != x and y != y)  # NaN is equal to itself here
    return {name: pair for name, pair in pairs.items() if not same(*pair)}
