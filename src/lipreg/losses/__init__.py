"""Losses of logits, one value per example: `(logits [B, K], y) -> [B]`.

`y` is a class `[B]` (integers of any type); a logit of -inf masks a class. Cross entropy, KL and
squared l2 also take a distribution over classes `[B, K]`. Bind a model to get the loss of an image
that objectives and attacks work with: `loss = lambda x, y: cross_entropy(logits_fn(x), y)`. A loss
of logits in half precision is computed in float32.

`classification` has the losses of any network; `certified` those that ask a network of known
Lipschitz constant for a margin, with options, `--config.loss='emma(eps=0.5)'`. `targeted_dlr`,
which takes a target beside y, and `divergence`, which takes one in place of y, are not among them.
"""

from lipreg.losses.certified import (
    emma,
    gloro,
    hkr,
    logit_annealing,
    offset_cross_entropy,
)
from lipreg.losses.classification import (
    cross_entropy,
    dlr,
    kl,
    margin,
    smoothed_cross_entropy,
    squared_l2,
)
from lipreg.losses.classification import divergence as divergence
from lipreg.losses.classification import targeted_dlr as targeted_dlr

__all__ = [
    "cross_entropy",
    "dlr",
    "emma",
    "gloro",
    "hkr",
    "kl",
    "logit_annealing",
    "margin",
    "offset_cross_entropy",
    "smoothed_cross_entropy",
    "squared_l2",
]
