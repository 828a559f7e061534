"""What an experiment on the theorems of 1808.09540 hands back: curves in n, rates, sentences.

The theorems bound from above: a slope that is steeper than the exponent agrees with them.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from lipreg.runs.config import Config
from lipreg.theory.convergence import Rate, fit_rate

__all__ = ["Curve", "Progress", "Study", "check", "compare", "measure"]

Progress = Callable[[Sequence[Any]], Iterable[Any]]  # wraps what is looped over, as `tqdm` does
Case = Callable[[Array, int], Mapping[str, Any]]


class Curve(NamedTuple):
    """One quantity at several n, and the exponent that a theorem has for it.

    Attributes:
      panel: what is measured; curves of one panel share a picture.
      n: `[S]`.
      values: `[S, repeats]`.
      exponent: the r of `C n^r`, or None where no theorem gives one.
      logarithm: the theorem has `C (n / log n)^r`, and the fit is in `n / log n`.
    """

    panel: str
    n: Sequence[int]
    values: np.ndarray
    exponent: float | None = None
    logarithm: bool = False

    @property
    def abscissa(self) -> np.ndarray:
        """What the rate is fitted in: n, or `n / log n`."""
        n = np.asarray(self.n, np.float64)
        return n / np.log(n) if self.logarithm else n

    @property
    def rate(self) -> Rate:
        """The slope over all repeats, with its 95 % interval."""
        return fit_rate(self.abscissa, self.values)

    @property
    def verdict(self) -> str:
        """The exponent is in the interval, or the slope is steeper or flatter; "–" without one.

        >>> Curve("", [10, 100, 1000], np.array([[1.0], [0.1], [0.01]]), exponent=-0.5).verdict
        'steeper'
        """
        if self.exponent is None:
            return "–"
        _, low, high = self.rate
        # Of an exact power the interval is one point, up to rounding.
        if low - 1e-6 <= self.exponent <= high + 1e-6:
            return "in the interval"
        return "steeper" if high < self.exponent else "flatter"


class Study(NamedTuple):
    """What an experiment found.

    Attributes:
      curves: by name.
      sentences: what they say, and what they do not.
      axis: what n is; where it is not a number of examples, nothing has a rate.
    """

    curves: dict[str, Curve]
    sentences: list[str]
    axis: str = "n"

    @property
    def rates(self) -> dict[str, dict[str, Any]]:
        """For each curve slope, ends of the interval, what it is fitted in, exponent, verdict."""
        if self.axis != "n":
            return {name: {} for name in self.curves}
        return {
            name: curve.rate._asdict()
            | {"in": "n / log n" if curve.logarithm else "n"}
            | {"exponent": curve.exponent, "verdict": curve.verdict}
            for name, curve in self.curves.items()
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For each curve and n the mean and the standard deviation over repeats, and the rate."""
        rates = self.rates
        return [
            {"panel": curve.panel, "curve": name, self.axis: n, "repeats": len(values)}
            | {"mean": values.mean(), "deviation": values.std(ddof=1) if len(values) > 1 else 0.0}
            | rates[name]
            for name, curve in self.curves.items()
            for n, values in zip(curve.n, curve.values, strict=True)
        ]


def _among(kind: Any, low: float, high: float) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, kind) and low <= v <= high and v < math.inf


_SIZES = (2, "whole numbers from 2", _among(int, 2, math.inf))
# Fields that hold several: how many they must be, and what each of them.
_SEVERAL = {
    "sizes": _SIZES,
    "network_sizes": _SIZES,
    "percents": (1, "whole numbers from 0 to 100", _among(int, 0, 100)),
    "widths": (1, "whole numbers from 1", _among(int, 1, math.inf)),
    "smoothings": (1, "numbers from 0 to 1", _among(int | float, 0, 1)),
    "weight_decays": (1, "finite numbers from 0", _among(int | float, 0, math.inf)),
    "lams": (1, "finite numbers from 0", _among(int | float, 0, math.inf)),
    "data": (1, "names of data sets", lambda v: isinstance(v, str)),
}


def check(config: Config, *, repeats: int = 2) -> None:
    """ValueError naming the field, its value and what is wanted; `repeats` is how many at least."""
    for name, value in config.items():
        field = f"config.{name} = {value}"
        if isinstance(value, tuple):
            least, what, fits = _SEVERAL[name]
            if len(value) < least or not all(map(fits, value)):
                raise ValueError(f"{field}; want {('one', 'two')[least - 1]} or more {what}.")
            if name != "widths" and len(set(value)) < len(value):
                raise ValueError(f"{field} has a value twice.")
        elif value is None:
            raise ValueError(f"{field}; give it a value.")
        elif isinstance(value, str):
            continue
        elif name == "repeats" and not value >= repeats:
            why = ": one repeat has no spread" if repeats == 2 else ""
            raise ValueError(f"{field}; it must be {repeats} or more{why}.")
        elif name == "seed" and not 0 <= value < 2**32:  # JAX takes its last 32 bits
            raise ValueError(f"{field}; it must be 0 or more and less than 2^32.")
        elif name != "seed" and not 0 < value < math.inf:
            raise ValueError(f"{field}; it must be greater than 0 and finite.")


def measure(
    config: Config, sizes: Sequence[int], cases: Mapping[str, Case], progress: Progress
) -> dict[tuple[str, str], np.ndarray]:
    """`cases[name](key, n) -> {quantity: value}` as `{(name, quantity): [S, repeats]}`.

    A repeat's key depends on the seed, n and its number only: cases see the same samples.
    """
    key = jax.random.key(config.seed)
    measured: dict[tuple[str, str], list[float]] = {}
    for name, n, repeat in progress(list(itertools.product(cases, sizes, range(config.repeats)))):
        own = jax.random.fold_in(jax.random.fold_in(key, n), repeat)
        for quantity, value in cases[name](own, n).items():
            measured.setdefault((name, quantity), []).append(float(value))
    return {pair: np.reshape(values, (len(sizes), -1)) for pair, values in measured.items()}


def compare(curves: Mapping[str, Curve]) -> list[str]:
    """What follows for the curves whose intervals leave out the theorem's exponent.

    >>> compare({"a": Curve("", [10, 100, 1000], np.array([[1.0], [0.9], [0.8]]), -0.5)})
    ['Flatter than the theorem: a. The rate is not seen at these n: lower-order terms still weigh.']
    """
    meanings = {
        "steeper": "A theorem bounds from above: they agree with it.",
        "flatter": "The rate is not seen at these n: lower-order terms still weigh.",
    }
    by_verdict = {
        verdict: "; ".join(name for name, curve in curves.items() if curve.verdict == verdict)
        for verdict in meanings
    }
    return [
        f"{verdict.capitalize()} than the theorem: {names}. {meanings[verdict]}"
        for verdict, names in by_verdict.items()
        if names
    ]
