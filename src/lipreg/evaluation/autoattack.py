"""AutoAttack (2003.01690): its attacks with the authors' settings, as a cascade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.attacks import apgd, fab, square
from lipreg.attacks.copies import likeliest_wrong
from lipreg.box import Bounds
from lipreg.contracts import LogitsFn
from lipreg.evaluation.cascade import Outcome, Stage, cascade
from lipreg.losses import cross_entropy, dlr
from lipreg.norms import L1, LINF, NormLike, by_name
from lipreg.tracing import output

__all__ = ["VERSIONS", "autoattack", "stages"]

VERSIONS = ("standard", "plus", "rand")


def _round(attack: Callable, key: Array, *inputs: Any, **options: Any) -> Array:
    # A restart: the cascade has folded its number, the last input, into the key.
    return attack(key, *inputs[:-1], **options)


def _fab(key: Array, *inputs: Any, **options: Any) -> Array:
    # The first round starts at the image.
    return fab(key, *inputs[:-1], random_start=inputs[-1] > 0, **options)


def _target(
    attack: Callable,
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: Array,
    round_: Array,
    *,
    most: int,
    **options: Any,
) -> Array:
    target = likeliest_wrong(logits_fn(x), y, most)[:, round_]
    return attack(key, logits_fn, x, y, eps, targets=target[:, None], **options)


def stages(
    version: str,
    classes: int,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    channels: int | None = None,
) -> Sequence[Stage]:
    """The attacks of AutoAttack (2003.01690), in their order, with the authors' settings.

    `standard`: APGD on cross entropy, targeted APGD on DLR, targeted FAB (the 9 likeliest wrong
    classes, or as many as there are), Square with 5,000 queries. `plus`: APGD on cross entropy and
    on DLR and FAB, 5 starts each, Square, and the targeted two. `rand`, for random models given as
    `attacks.expectation.expectation`, which says how to judge them: APGD on both losses. `channels`
    is the channel axis, for Square.

    In l_1 (2103.01208) both forms of APGD of `standard` begin at three times the radius, the one on
    cross entropy with 5 starts and the targeted one on 5 classes. Square is left out in l_1.

    Raises: ValueError, with the choices, for another version.

    >>> [stage.name for stage in stages("standard", 10)]
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """
    if version not in VERSIONS:
        raise ValueError(f"No version {version!r}; choose one of {', '.join(VERSIONS)}.")
    norm = by_name(norm)
    common: dict[str, Any] = {"norm": norm, "bounds": bounds}
    larger = norm is L1 and version == "standard"
    ce, by_dlr = ({"loss": loss, "from_larger": larger, **common} for loss in (cross_entropy, dlr))

    def targeted(name: str, attack: Callable, targets: int, options: dict[str, Any]) -> Stage:
        most = min(targets, classes - 1)
        return Stage(name, partial(_target, attack, most=most, **options), most)

    by_target = [
        targeted("apgd-t", apgd, 5 if larger else 9, by_dlr),
        targeted("fab-t", fab, 9, common),
    ]
    if version == "rand":
        return (
            Stage("apgd-ce", partial(_round, apgd, **ce)),
            Stage("apgd-dlr", partial(_round, apgd, **by_dlr)),
        )
    scores = [Stage("square", partial(_round, square, channels=channels, rescale=False, **common))]
    scores = [] if norm is L1 else scores
    if version == "standard":
        return (
            Stage("apgd-ce", partial(_round, apgd, **ce), 5 if larger else 1),
            *by_target,
            *scores,
        )
    return (
        Stage("apgd-ce", partial(_round, apgd, **ce), 5),
        Stage("apgd-dlr", partial(_round, apgd, **by_dlr), 5),
        Stage("fab", partial(_fab, **common), 5),
        *scores,
        *by_target,
    )


def autoattack(
    key: Array,
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    eps: float,
    *,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    version: str = "standard",
    channels: int | None = None,
    **options: Any,
) -> Outcome:
    """The `stages` of AutoAttack as a `cascade`, whose options it accepts (2003.01690).

    `channels` is the channel axis where it is not the last: 1 for `[B, C, H, W]`.

    >>> x, y = np.array([[0.6, 0.3, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0]], np.float32), np.array([0, 0])
    >>> autoattack(jax.random.key(0), lambda x: x, x, y, 0.2).error
    0.5
    """
    classes = output(logits_fn, jnp.asarray(x[:1])).shape[1]
    attacks = stages(version, classes, norm, bounds, channels)
    return cascade(key, logits_fn, x, y, eps, attacks, norm=norm, bounds=bounds, **options)
