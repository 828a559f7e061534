"""Objectives: the loss with a penalty on its gradient in x, or at attacked x, or made linear in x.

- penalties: `j1`, `j2`, `tikhonov`, `grad_lp`; on the batch's maximum `j2_lip`, `lip_excess`; on
  the Jacobian of the logits `jacobian`;
- adversarial training: `pgd_at`, `fgsm_rs`, `n_fgsm`, `free_at`; with clean images beside `trades`,
  `mart`;
- linearity: `grad_align`, `elle`, `cure`, `llr`.

The contract is `(logits_fn, x, y, *, <strengths>, loss=cross_entropy, frozen=None, ...) ->
(scalar, parts)`. `logits_fn: x [B, ...] -> logits [B, K]` is the network that attacks and
certificates take, its parameters bound; in training it may return `(logits, aux)`, running
statistics for instance, and `aux` comes back as `parts["aux"]`. `loss: (logits, y) -> [B]` is one
of `losses`, or any such function. `frozen` is a second view of the same network, with its running
statistics and without dropout, where the gradient of one example does not depend on the others:
attacks and their directions come from it. It defaults to `logits_fn`. An objective that draws
random numbers declares `key` and is handed one per step; what it draws for an example comes from
keys folded with its row, so that it does not depend on the rest of the batch. One that
declares `carried` is handed the `parts["carried"]` of the step before.

Every name in `__all__` is an objective. Its keyword-only arguments without a default, other than
`key` and `carried`, are its strengths: they may be traced, so one compilation serves a sweep. The
others (`norm`, `method`, `top_k`, ...) are static. `norm` is the norm of the *attack*; what is
penalised is its dual norm of the gradient. `eps` is a radius in that norm, in pixel units. `parts`
name the pieces, scalars but for `carried` and `aux`: `loss` (mean at the clean x) or, where an
objective does not look there, `loss_adv` (mean at the attacked x); `grad_norm` and `max_grad_norm`
(over the batch, in the dual norm). Entries of a gradient that are not finite count as 0 in
directions. Parts and penalties computed from such a gradient are not finite, so that it is noticed.

To first order in eps the three methods of `j1`, `j2` and `j2_lip` agree:
- `"attack"`: the loss at `x + eps d`, `d` the direction of steepest ascent. One more backward pass
  and no second derivative; what Finlay, Oberman & Abbasi ran.
- `"penalty"`: the gradient norm itself, differentiated exactly (reverse over reverse).
- `difference(h, order)`: a finite step along d. On a relu network it sees kinks that the exact
  derivative does not: there it is a different regulariser.
"""

from lipreg.objectives.adversarial import fgsm_rs, mart, n_fgsm, pgd_at, trades
from lipreg.objectives.constants import j2_lip, lip_excess
from lipreg.objectives.contract import strengths as strengths
from lipreg.objectives.contract import value_and_input_grad as value_and_input_grad
from lipreg.objectives.free import free_at
from lipreg.objectives.linearity import cure, elle, grad_align, llr
from lipreg.objectives.methods import difference as difference
from lipreg.objectives.methods import method as method
from lipreg.objectives.methods import pairs as pairs
from lipreg.objectives.penalties import grad_lp, j0, j1, j2, jacobian, tikhonov

__all__ = [
    "cure",
    "elle",
    "fgsm_rs",
    "free_at",
    "grad_align",
    "grad_lp",
    "j0",
    "j1",
    "j2",
    "j2_lip",
    "jacobian",
    "lip_excess",
    "llr",
    "mart",
    "n_fgsm",
    "pgd_at",
    "tikhonov",
    "trades",
]
