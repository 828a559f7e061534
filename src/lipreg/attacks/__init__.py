"""Attacks on any `logits_fn`, which maps images `[B, ...]` inside `bounds` to logits `[B, K]`.

With a radius: `(key, logits_fn, x, y, eps, *, norm, bounds=(0, 1), ...) -> x_adv`, a point of the
ball; `eps`, a number or `[B]`, may be traced. Without: `(key, logits_fn, x, y, *, norm, ...) ->
x_adv` looks for the smallest perturbation that is misclassified, and returns x where it finds none.
`y [B]` are the true classes. `key` is one key, folded with each example's row, or a key per example
`[B]`, so that the result for an image depends neither on the rest of the batch nor on the devices.

Entries of a gradient that are not finite, such as a square root's at 0, count as 0. Images in
bfloat16 or float16 are attacked in float32; the result has their type (`attacks.precision`).
"""

from lipreg.attacks.apgd import apgd
from lipreg.attacks.decisions import boundary, hopskipjump
from lipreg.attacks.gradient import fgsm, pgd
from lipreg.attacks.linearised import deepfool, fab
from lipreg.attacks.logbarrier import log_barrier
from lipreg.attacks.penalties import carlini_wagner, ead
from lipreg.attacks.radii import basic_iterative, ddn, fmn
from lipreg.attacks.scores import square

__all__ = [
    "apgd",
    "basic_iterative",
    "boundary",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "ead",
    "fab",
    "fgsm",
    "fmn",
    "hopskipjump",
    "log_barrier",
    "pgd",
    "square",
]
