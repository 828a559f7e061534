"""What a field's type does not check: ranges, fields that nothing reads, what fits together."""

import inspect
import math
import os
from typing import Any

from lipreg import optimizers
from lipreg.datasets import arrays
from lipreg.doors import called
from lipreg.runs.config import Config, base_config, leaves, objective, options, strengths
from lipreg.runs.logs import LOGS

__all__ = ["check", "check_fields"]

PRECISIONS = ("default", "highest")
STATISTICS = ("running", "averaged", "recomputed")
# Numbers that may be 0, meaning off or none, as all strengths may. All others must be greater.
_MAY_BE_ZERO = (
    *("seed", "options.top_k", "data.seed"),
    *("data.wrong_labels", "data.pad", "data.cutout", "report.pgd.eps", "report.gap_examples"),
    *("data.side", "data.threads", "data.workers"),
    *("train.momentum", "train.weight_decay", "train.clip", "train.ema", "train.ramp"),
    *("train.per_dispatch", "train.steps"),
)
_FRACTIONS = (
    "data.wrong_labels",
    "data.synthetic_share",
    "train.momentum",
    "train.ema",
    "train.ramp",
)


def check(config: Config) -> None:
    """ValueError with the field, its value and the choices, for an invalid config.

    A ConfigDict accepts None for any field, so it is refused here, as is a field that a config file
    has added and that nothing would read. The names of parts are looked up in `build.parts`.
    """
    check_fields(config)
    _check_objective(config)
    outside = ":" in config.objective
    for name, value in leaves(config).items():
        if not (outside and name.startswith("options.")):  # an outsider's own
            _check_value(name, value)
    _check_network(config.model)
    low, high = _pair(config.data.bounds)
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"config.data.bounds = {config.data.bounds}; it must be two numbers, (low, high)."
        )
    box = dict(config.options).get("bounds", config.data.bounds)
    if not outside and box != config.data.bounds:
        raise ValueError(
            f"config.options.bounds = {box}; {config.objective} must stay in those of the data, "
            f"config.data.bounds = {config.data.bounds}."
        )
    t = config.train
    _check_logs(config.report.logs)
    if t.precision not in PRECISIONS:
        raise ValueError(f"No precision {t.precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if t.ema_statistics not in STATISTICS:
        raise ValueError(
            f"config.train.ema_statistics = {t.ema_statistics}; choose one of "
            f"{', '.join(STATISTICS)}."
        )
    if t.ramp and t.ramped not in config.strengths:
        has = ", ".join(config.strengths) or "no strengths"
        raise ValueError(
            f"config.train.ramp = {t.ramp}; {config.objective} has no {t.ramped} to grow: it has "
            f"{has}, and config.train.ramped names the one that grows."
        )
    _check_replay(config)
    _check_read(config)


def _check_replay(config: Config) -> None:
    """Steps on one batch whose gradients would be the same, or of two batches after all."""
    t = config.train
    carried = "carried" in inspect.signature(objective(config.objective)).parameters
    if config.objective == "free_at" and t.replay == 1:
        raise ValueError(
            "config.train.replay = 1; free_at's perturbation is for the next step on the same "
            "batch: give it 2 or more, 8 in its paper, and as many times fewer epochs."
        )
    if t.replay > 1 and t.accumulate > 1 and not carried:
        raise ValueError(
            f"config.train.replay = {t.replay} and config.train.accumulate = {t.accumulate}; "
            f"{config.objective} has the same gradient in each step on a batch while the weights "
            "rest: accumulate alone."
        )
    name, options = optimizers.nested(t.optimizer)[0]
    warmup = options.get("warmup", 0)
    odd = t.replay % (2 * t.accumulate) or (isinstance(warmup, int) and warmup % 2)
    if name in ("sam", "awp") and t.replay > 1 and odd:
        raise ValueError(
            f"config.train.optimizer = {t.optimizer} and config.train.replay = {t.replay}; want "
            f"even numbers{' of accumulated steps' * (t.accumulate > 1)}, or its two gradients are "
            "those of two batches."
        )


def check_fields(config: Config) -> None:
    """ValueError for a config without a field that an experiment's has, or with another one."""
    odd = sorted(_names(config) ^ _names(base_config("j0", {"j0": {}})))
    if odd:
        known = odd[0] not in leaves(config)
        raise ValueError(f"config.{odd[0]} {'is missing' if known else 'is no field'}.")


def _check_network(model: Config) -> None:
    """Options in a name are a network's settings; what the config or the data has is not theirs."""
    name, options = called(model.name)
    for option, value in options.items():
        if option == "head":  # by which rows are named
            raise ValueError(
                f"config.model.name = {model.name}; write config.model.head = {value}."
            )
        if option == "activation" and model.activation != "relu":
            raise ValueError(
                f"config.model.activation = {model.activation}; the name has one, {model.name}."
            )
        if option == "classes":
            raise ValueError(f"config.model.name = {model.name}; the data has its classes.")
        if ":" not in name:  # an outsider's are its own
            _check_value(f"model.settings.{option}", value)


def _check_read(config: Config) -> None:
    """A field that nothing reads beside the others' values keeps its default."""
    d, t = config.data, config.train
    values, usual = leaves(config), leaves(base_config("j0", {"j0": {}}))
    sets = tuple(filter(None, (d.name, d.synthetic)))
    optimizer = optimizers.nested(t.optimizer)[-1][0]
    of_sgd = (
        optimizer == "sgd",
        "only sgd reads it: write the options of another optimizer into its name, "
        f"{t.optimizer}(...)",
    )
    in_memory = f"{d.name} is held in memory, whose images have their own size"
    streamed = (d.side, "only a streamed set is read by it, one with a config.data.side")
    read = {
        "data.dir": (any(map(_in_a_folder, sets)), f"no folder is read for {' and '.join(sets)}"),
        "data.side": (d.name != "digits" and not arrays.is_outside(d.name), in_memory),
        "data.bounds": (not d.side, "the pixels of a streamed set are in [0, 1]"),
        "data.threads": streamed,
        "data.workers": streamed,
        "data.synthetic_share": (d.synthetic, "there is no second set, config.data.synthetic"),
        "train.momentum": of_sgd,
        "train.nesterov": of_sgd if t.momentum else (False, "config.train.momentum is 0"),
        "train.ema_statistics": (t.ema, "no weights are averaged: config.train.ema is 0"),
        "train.ramped": (t.ramp, "nothing grows: config.train.ramp is 0"),
        "train.per_dispatch": (not d.side, "a streamed set is trained on a step at a time"),
    }
    for name, (is_read, why) in read.items():
        if values[name] != usual[name] and not is_read:
            raise ValueError(f"config.{name} = {values[name]}; {why}.")


def _in_a_folder(name: str) -> bool:
    """Whether `data.dir` says where a data set is; digits, functions and absolute paths are not."""
    if arrays.is_outside(name):
        return name.endswith(".npz") and not os.path.isabs(name)
    return name != "digits"


def _check_logs(logs: Any) -> None:
    if not (isinstance(logs, tuple) and "jsonl" in logs and set(logs) <= set(LOGS)):
        raise ValueError(
            f"config.report.logs = {logs}; choose from {', '.join(LOGS)}, jsonl among them."
        )


def _names(config: Config) -> set[str]:
    """The fields that every config has."""
    own = ("strengths.", "options.", "model.settings.")
    return {name for name in leaves(config) if not name.startswith(own)}


def _check_objective(config: Config) -> None:
    """Strengths and options are the objective's, and all strengths are given."""
    name = config.objective
    for field, takes in (("strengths", strengths(name)), ("options", options(name))):
        if set(config[field]) != set(takes):
            raise ValueError(
                f"config.{field} has {sorted(config[field])}; {name} takes {sorted(takes)}. Choose "
                f"the objective by the config's row: FILE.py:{name}."
            )
    for strength, value in config.strengths.items():
        if value != value:
            raise ValueError(
                f"config.strengths.{strength} = {value}: it is not given, and {name} needs it."
            )


def _check_value(name: str, value: Any) -> None:
    if value is None:
        raise ValueError(f"config.{name} = None; give it a value.")
    sizes = isinstance(value, tuple) and name.startswith("model.settings.")
    if sizes and not all(type(n) is int and n > 0 for n in value):
        raise ValueError(f"config.{name} = {value}; it must be whole numbers greater than 0.")
    if sizes and not value and name.endswith(".channels"):
        raise ValueError(f"config.{name} = (); a network has one convolution or more.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    may_be_zero = name in _MAY_BE_ZERO or name.startswith("strengths.")
    if may_be_zero and not value >= 0:
        raise ValueError(f"config.{name} = {value}; it must be 0 or more.")
    if not may_be_zero and not value > 0:
        raise ValueError(f"config.{name} = {value}; it must be greater than 0.")
    if name in _FRACTIONS and not value < 1:
        raise ValueError(f"config.{name} = {value}; it must be less than 1.")
    if name in ("seed", "data.seed") and not value < 2**32:  # JAX takes its last 32 bits
        raise ValueError(f"config.{name} = {value}; it must be less than 2^32.")
    if value == math.inf and name != "options.p":
        raise ValueError(f"config.{name} = inf; it must be finite.")


def _pair(value: Any) -> tuple[float, float]:
    """The value if it is two numbers, or else two NaN."""
    numbers = isinstance(value, tuple) and len(value) == 2
    numbers = numbers and all(isinstance(v, int | float) for v in value)
    return value if numbers else (math.nan, math.nan)
