"""Lipschitz constants of data and of functions.

Each comes with its kind: "exact"; "certified", proved from above; or "estimate", from below. Only
the first two certify anything.
"""

from lipreg.lipschitz.bounds.declared import declare
from lipreg.lipschitz.data import DataConstant, of_data, worst_pairs
from lipreg.lipschitz.functions import (
    Constant,
    Pairs,
    ascended_pairs,
    gradient_norms,
    of_function,
    of_linear,
    operator_norm,
)

__all__ = [
    "Constant",
    "DataConstant",
    "Pairs",
    "ascended_pairs",
    "declare",
    "gradient_norms",
    "of_data",
    "of_function",
    "of_linear",
    "operator_norm",
    "worst_pairs",
]
