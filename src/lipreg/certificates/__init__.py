"""Certified radii: how far an image may be moved before its class can change.

`(logits_fn, x, y, *, ...) -> Certificate(radius [B], kind)`, with radius 0 where x is misclassified
or the logits are not numbers. `kind` says what a radius is worth; the kinds do not mix:
- "certified": no perturbation smaller than the radius changes the class;
- "probabilistic": the same for a smoothed classifier, at a stated confidence;
- "estimate": the formula of a certificate with a constant measured from below. It proves nothing.

Proofs hold in exact arithmetic: the rounding errors of the network itself are not bounded.
"""

from lipreg.certificates import smoothing
from lipreg.certificates.constants import (
    Certificate,
    first_order,
    loss_lipschitz,
    margin_last_layer,
    margin_lipschitz,
)
from lipreg.certificates.curvature import largest_curvature, second_order
from lipreg.certificates.local import interval_bound, margin_local

__all__ = [
    "Certificate",
    "first_order",
    "interval_bound",
    "largest_curvature",
    "loss_lipschitz",
    "margin_last_layer",
    "margin_lipschitz",
    "margin_local",
    "second_order",
    "smoothing",
]
