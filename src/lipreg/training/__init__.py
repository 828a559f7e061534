"""Training: the pure step, the loop around it, and what a step costs."""

from lipreg.training.loop import Diverged, fit, train
from lipreg.training.step import Apply, State, init, logits_fn, make_step, views

__all__ = ["Apply", "Diverged", "State", "fit", "init", "logits_fn", "make_step", "train", "views"]
