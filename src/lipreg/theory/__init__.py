"""The theorems of Oberman & Calder (1808.09540v2) as experiments, `(config) -> Study`.

`__all__` is the registry that `experiments/theory.py` looks in; `experiments/configs/theory.py` has
the settings of each, `study.Study` what it returns, and `pictures` writes that down.
"""

from lipreg.theory.labels import label_correction, random_labels
from lipreg.theory.rates import clean, covering, discrepancy, noisy, off_manifold

__all__ = [
    "clean",
    "covering",
    "discrepancy",
    "label_correction",
    "noisy",
    "off_manifold",
    "random_labels",
]
