"""The robustness of any model, measured so that it can be believed.

`evaluate` does everything in one call: distances, robust errors by AutoAttack, and the masking
report that says what they are worth. `autoattack` and `cascade` run each attack on the survivors;
`masking_report` looks for masked gradients. The loops over batches and attacks are in Python; what
they call is compiled once per batch shape.
"""

from lipreg.evaluation.autoattack import Outcome, Stage, autoattack, cascade
from lipreg.evaluation.masking import Check, masking_report
from lipreg.evaluation.protocols import PROTOCOLS, Evaluation, evaluate, to_json, to_markdown
from lipreg.evaluation.store import Store

__all__ = [
    "PROTOCOLS",
    "Check",
    "Evaluation",
    "Outcome",
    "Stage",
    "Store",
    "autoattack",
    "cascade",
    "evaluate",
    "masking_report",
    "to_json",
    "to_markdown",
]
