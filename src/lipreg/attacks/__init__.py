"""Attacks: `(key, logits_fn, x, y, eps, *, norm, bounds=(0, 1), ...) -> x_adv`.

`logits_fn` maps images `[B, ...]` inside `bounds` to logits `[B, K]`; `y [B]` are the true
classes; `eps`, a number or `[B]`, may be traced. `key` is one key, folded with each example's row,
or a key per example `[B]`, so that an attack is the same whatever the batch size and the devices.
"""

from lipreg.attacks.gradient import fgsm, pgd

__all__ = ["fgsm", "pgd"]
