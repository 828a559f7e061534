"""Training: the pure step, the loop around it, and what a step costs."""

from lipreg.training.loop import Diverged, fit, refitted, train
from lipreg.training.step import Apply, State, averaged, init, logits_fn, make_step, views

__all__ = [
    "Apply",
    "Diverged",
    "State",
    "averaged",
    "fit",
    "init",
    "logits_fn",
    "make_step",
    "refitted",
    "train",
    "views",
]
