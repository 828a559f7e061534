"""Rows of numbers by name, as Markdown and as CSV; several seeds as mean ± standard deviation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jax.typing import ArrayLike

__all__ = ["spread", "to_csv", "to_markdown"]


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else _number(value, 4)


def _number(value: float, digits: int) -> str:
    return "∞" if value == math.inf else f"{value:.{digits}g}"


def spread(values: ArrayLike | Sequence[float]) -> float | str:
    """One value, or several as mean ± sample standard deviation; ∞ or nan if any is.

    The mean has three digits or, up to six, those of the deviation's two.

    >>> spread([0.25]), spread([1.0, 2.0, 3.0]), spread([0.1] * 3), spread([0.5, math.inf])
    (0.25, '2 ± 1', '0.1 ± 0', '∞')
    >>> spread([1234.0, 1236.0]), spread([0.5, math.nan])
    ('1235 ± 1.4', 'nan')
    """
    array = np.asarray(values, float)
    if array.size == 1:
        return float(array[0])
    if not np.isfinite(array).all():
        return _number(float(array.mean()), 3)
    deviation = array.std(ddof=1) if np.ptp(array) else 0  # of equal ones rounding would leave some
    mean, digits = float(array.mean()), 3
    if mean and deviation:
        shown = math.floor(math.log10(abs(mean))) - math.floor(math.log10(deviation)) + 2
        digits = min(max(digits, shown), 6)
    return f"{_number(mean, digits)} ± {_number(float(deviation), 2)}"


def to_markdown(rows: Mapping[str, Mapping[str, float | str]]) -> str:
    """`{name: row}` as a Markdown table, four significant digits.

    >>> print(to_markdown({"J0": {"l2 median": 0.09}}))
    |  | l2 median |
    |---|---|
    | J0 | 0.09 |
    """
    columns = list(next(iter(rows.values())))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(_cell(row[c]) for c in columns)] for name, row in rows.items()]
    head, rule, *body = lines
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|"] + [f"| {' | '.join(r)} |" for r in body]
    )


def to_csv(rows: Mapping[str, Mapping[str, float | str]]) -> str:
    """`{name: row}` as CSV with a header line: full precision, but for those of `spread`."""
    columns: Sequence[str] = list(next(iter(rows.values())))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", *columns])
    writer.writerows([name, *(row[c] for c in columns)] for name, row in rows.items())
    return out.getvalue()
