"""Reports of evaluations: one run's distances and pictures, several runs' table and curves."""

from lipreg.reports.measured import certify, evaluate, evaluated, read, robustness
from lipreg.reports.tables import table

__all__ = ["certify", "evaluate", "evaluated", "read", "robustness", "table"]
