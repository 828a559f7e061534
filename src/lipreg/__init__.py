"""Train, attack and certify Lipschitz-regularised neural networks in JAX, as pure functions.

`norms`, `losses`, `objectives`, `attacks`, `curves`, `lipschitz`, `certificates` and `evaluation`
are the core: they import jax, optax, numpy and scipy only, and take any pure function of images.
`evaluate` (of `evaluation`) measures a model by all attacks. `theory` makes the theorems runnable;
`models`, `datasets`, `optimizers`, `training`, `runs` and `reports` are what the experiments are
made of. Import those by name.
"""

from lipreg import attacks, certificates, curves, evaluation, lipschitz, losses, norms, objectives
from lipreg.evaluation import evaluate

__all__ = [
    "attacks",
    "certificates",
    "curves",
    "evaluate",
    "evaluation",
    "lipschitz",
    "losses",
    "norms",
    "objectives",
]
__version__ = "0.2.0"
