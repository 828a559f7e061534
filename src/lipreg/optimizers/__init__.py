"""Optimisers and their learning rates: optax, by name, or an outsider's, and what goes around one.

`sam`, `awp` and `local_entropy` take gradients beside the weights that they move. A call of
`update` is one gradient, as it is for all others. So an epoch is one pass over the data, steps are
gradients, and at equal epochs optimisers are compared at equal cost. `at_rest` are the weights to
evaluate, and `ema` is an average of them.
"""

from lipreg.optimizers.around import AROUND, nested, period, updates, wrapper
from lipreg.optimizers.averages import at_rest, ema, perturbs
from lipreg.optimizers.named import NAMES, build, schedule, sgd
from lipreg.optimizers.relaxation import VARIANTS, local_entropy
from lipreg.optimizers.sharpness import awp, sam

__all__ = [
    "AROUND",
    "NAMES",
    "VARIANTS",
    "at_rest",
    "awp",
    "build",
    "ema",
    "local_entropy",
    "nested",
    "period",
    "perturbs",
    "sam",
    "schedule",
    "sgd",
    "updates",
    "wrapper",
]
