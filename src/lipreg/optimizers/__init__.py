"""Optimisers and their learning rates: optax, by name, or an outsider's."""

from lipreg.optimizers.named import NAMES, build, schedule, sgd

__all__ = ["NAMES", "build", "schedule", "sgd"]
