"""The robustness of any model, measured so that it can be believed.

`evaluate` does everything in one call: distances, robust errors by AutoAttack, and the masking
report that says what they are worth. `autoattack` and `cascade` run each attack on the survivors;
`masking_report` looks for masked gradients. The loops over batches and attacks are in Python; what
they call is compiled once per batch shape.
"""

from lipreg.evaluation.autoattack import autoattack
from lipreg.evaluation.cascade import Outcome, Stage, cascade
from lipreg.evaluation.checks import Check
from lipreg.evaluation.masking import masking_report
from lipreg.evaluation.measure import evaluate
from lipreg.evaluation.protocols import PROTOCOLS, Protocol, pgd
from lipreg.evaluation.record import Evaluation, to_json, to_markdown
from lipreg.evaluation.store import Store

__all__ = [
    "PROTOCOLS",
    "Check",
    "Evaluation",
    "Outcome",
    "Protocol",
    "Stage",
    "Store",
    "autoattack",
    "cascade",
    "evaluate",
    "masking_report",
    "pgd",
    "to_json",
    "to_markdown",
]
