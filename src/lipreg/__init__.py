"""Train, attack and certify Lipschitz-regularised neural networks in JAX, as pure functions.

`norms`, `losses`, `objectives`, `attacks` and `curves` are the core: they import jax, optax and
numpy only, and take any pure function of images. `evaluate` (of `evaluation`) measures a model by
all of them. `models`, `data`, `train`, `runs` and `plots`
are what the experiments are made of; import them by name.
"""

from lipreg import attacks, curves, evaluation, losses, norms, objectives
from lipreg.evaluation import evaluate

__all__ = ["attacks", "curves", "evaluate", "evaluation", "losses", "norms", "objectives"]
__version__ = "0.1.0"
