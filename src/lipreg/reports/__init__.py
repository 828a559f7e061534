"""Reports of evaluations: one run's distances and pictures, several runs' table and curves."""

from lipreg.reports.certified import certify
from lipreg.reports.evaluations import evaluate, evaluated
from lipreg.reports.kept import read
from lipreg.reports.tables import table

__all__ = ["certify", "evaluate", "evaluated", "read", "table"]
