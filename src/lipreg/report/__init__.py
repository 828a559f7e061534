"""Reports of evaluations: one run's distances and pictures, several runs' table and curves."""

from lipreg.report.measured import certify, evaluate, evaluated, read, robustness
from lipreg.report.tables import table

__all__ = ["certify", "evaluate", "evaluated", "read", "robustness", "table"]
