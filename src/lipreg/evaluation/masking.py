"""Is a robust number real? Checks for masked gradients, each one a share of images.

A network that only hides its gradient looks robust to attacks that follow it. The checks come from
Athalye, Carlini & Wagner (1802.00420), Carlini et al. (1902.06705), Croce & Hein (2003.01690) and
Pintor et al. (2106.09947). A pass is no proof of robustness: it says that these attacks were not
misled in the ways that are known to be common.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from lipreg import curves
from lipreg.attacks.apgd import apgd
from lipreg.attacks.gradient import fgsm
from lipreg.attacks.scores import square
from lipreg.batching import map_batches
from lipreg.boundary import misclassified
from lipreg.box import Bounds, check_scale
from lipreg.contracts import LogitsFn, at_least_one, check_inputs, check_norm
from lipreg.evaluation.checks import QUESTIONS, Check, answered, to_markdown, verdict
from lipreg.folding import folded
from lipreg.keys import example_keys, fold_in
from lipreg.losses import cross_entropy, dlr, margin
from lipreg.norms import L1, L2, LINF, Norm, NormLike, by_name, expand, wide
from lipreg.tracing import compiled, output

__all__ = ["Check", "masking_report", "to_markdown", "verdict"]

LOSSES = (cross_entropy, margin, dlr)
RADII = (0.25, 0.5, 1.0, 2.0, 4.0)  # times eps
SCALES = (1e-2, 1e-1, 1e1, 1e2)  # times the logits
STARTS = 4
AHEAD = (1e-1, 1e-2)  # times eps: where the gradient's prediction is tested
GAP = 80.0  # between the logits: exp(-80) ends float32, and the softmax's gradient is rounding
NEAR = 1e-6  # of the box: rounding
CHANGE = 1e-2  # of the logits' range: half precision moves them by less


def masking_report(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: float,
    *,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    surrogate: LogitsFn | None = None,
    channels: int | None = None,
    steps: int = 40,
    queries: int = 500,
    batch_size: int = 256,
) -> tuple[Check, ...]:
    """Does the model hide its gradient? The checks of 1902.06705, one for each of `QUESTIONS`.

    The attacks are FGSM, APGD of `steps` steps (three losses, five radii, rescaled logits, four
    starts, the whole box), the square attack of `queries` queries, and APGD on `surrogate`, an
    undefended model of the same data. Without a surrogate there is no check of transfer; for L1,
    which the square attack does not serve, none of scores. `channels` is the channel axis of images
    for it, where it is not the last. 64 to 256 images are enough; two of them are chance. Norms:
    L1, L2, LINF. Not to be jitted itself: it compiles a program for each attack, whatever the
    radius, and none again for a model that differs only in its weights. The models are measured as
    they are at this call.

    >>> x = jax.random.uniform(jax.random.key(0), (8, 4))
    >>> saturated = lambda x: 1e6 * x
    >>> checks = masking_report(jax.random.key(1), saturated, x, x.argmax(1), 0.1, steps=5)
    >>> verdict(checks), checks[0].name, checks[0].value
    ('fail', 'gradients', 1.0)
    """
    check_inputs(logits_fn, x, y, bounds)
    norm = by_name(norm)
    check_norm("masking_report", norm, L1, L2, LINF)
    at_least_one("masking_report", steps=steps, queries=queries, batch_size=batch_size)
    if not 0 < eps < np.inf:
        raise ValueError(f"masking_report: eps = {eps}; it must be greater than 0, and finite.")
    number = lambda value: np.asarray(value, x.dtype)
    check_scale("masking_report", bounds)
    check_surrogate(surrogate, logits_fn, x)
    images = jnp.asarray(x), jnp.asarray(y)
    model, keys = folded(logits_fn, images[0]), example_keys(key, len(x))
    each = lambda program: map_batches(program, min(batch_size, len(x)), keys, *images)

    def broken(attack: str = "apgd", norm: Norm = norm, source: Partial = model, **change: Any):
        """Which images the attack breaks, [N]; those misclassified from the start among them."""
        given = {"eps": number(eps), "scale": number(1), "loss": 0, "start": 0} | change
        budget = queries if attack == "square" else steps
        run = compiled(model, _broken, attack, budget, norm, bounds, channels)
        return each(partial(run, model, source, **given))

    # The third loss, dlr, needs a third class.
    losses = range(min(len(LOSSES), output(model, x).shape[1]))
    by_loss = [broken(loss=loss) for loss in losses]
    by_scale = [broken(scale=number(scale)) for scale in SCALES]
    # On honest networks restarts help the margin most: without them a random search may win.
    by_start = [by_loss[1], *(broken(loss=1, start=start) for start in range(1, STARTS))]
    by_any = np.any([*by_loss, *by_scale, *by_start], 0)
    by_radius = [by_loss[0] if r == 1 else broken(eps=number(r * eps)) for r in RADII]
    plain, counts = by_loss[0].sum(), np.sum(by_radius, 1)
    # In every norm the largest ball is the box, which l_inf's steps cross fastest.
    box = {"norm": LINF, "eps": number(bounds[1] - bounds[0])}

    answers = each(partial(compiled(model, _probe, norm, bounds), model, eps=number(eps)))
    answers |= {
        "steps": broken("fgsm").sum() - plain,
        "radius": (np.maximum.accumulate(counts) - counts).max(),
        "whole box": ~np.any([broken(loss=loss, **box) for loss in losses], 0),
        "scale": np.sum(by_scale, 1).max() - plain,
        "losses": np.ptp(np.sum(by_loss, 1)),
        "restarts": np.any(by_start, 0).sum() - by_start[0].sum(),
    }
    if norm is not L1:
        answers["scores"] = broken("square") & ~by_any
    if surrogate is not None:
        answers["transfer"] = broken(source=folded(surrogate, images[0])) & ~by_any
    counted = {name: max(int(np.sum(answers[name])), 0) for name in QUESTIONS if name in answers}
    return tuple(answered(name, count, len(x)) for name, count in counted.items())


def check_surrogate(surrogate: LogitsFn | None, logits_fn: LogitsFn, x: Any) -> None:
    """ValueError for a surrogate whose logits differ in shape from the model's."""
    if surrogate is not None:
        own, other = output(logits_fn, x), output(surrogate, x)
        if getattr(other, "shape", None) != own.shape:
            got = getattr(other, "shape", type(other).__name__)
            raise ValueError(f"surrogate returned {got}; logits_fn {own.shape}: want one shape.")


def _broken(
    attack: str,
    budget: int,
    norm: Norm,
    bounds: Bounds,
    channels: int | None,
    model: Partial,
    source: Partial,
    keys: Array,
    x: Array,
    y: Array,
    *,
    eps: Array,
    scale: Array,
    loss: int,
    start: int,
) -> Array:
    """Where an attack on `scale * source` finds an image in the ball that `model` gets wrong."""

    def logits_fn(x: Array) -> Array:
        logits = source(x)
        return expand(scale, logits) * logits

    losses = LOSSES[: output(source, x).shape[1]]
    chosen = lambda logits, y: jax.lax.switch(loss, losses, logits, y)
    run = {
        "apgd": partial(apgd, loss=chosen, steps=budget),
        "fgsm": fgsm,
        "square": partial(square, queries=budget, channels=channels),
    }[attack]
    x_adv = run(fold_in(keys, start), logits_fn, x, y, eps, norm=norm, bounds=bounds)
    distances = curves.distance(model, x, y, x_adv, norm=norm, bounds=bounds)
    return distances <= expand(eps, distances) * (1 + 1e-4)


def _probe(
    norm: Norm, bounds: Bounds, model: Partial, keys: Array, x: Array, y: Array, *, eps: Array
) -> dict[str, Array]:
    """What needs no attack, for each image, where it is classified correctly.

    Moved in float32: in half precision steps this small are rounded away.
    """
    x = wide(x)
    logits_fn = lambda x: model(x).astype(x.dtype)
    logits, right = logits_fn(x), ~misclassified(model, x, y)
    clean = margin(logits, y)
    gradient = lambda loss: jax.grad(lambda x: loss(logits_fn(x), y).sum())(x)
    grad, size = gradient(margin), norm.dual(gradient(cross_entropy))
    dead = ~((size >= jnp.finfo(size.dtype).tiny) & jnp.isfinite(size) & (clean >= -GAP))
    masked = jnp.isneginf(logits)  # classes that there are not
    most, least = logits.max(1), jnp.where(masked, jnp.inf, logits).min(1)
    largest = jnp.maximum(jnp.abs(most), jnp.abs(least))
    rounding = 8 * float(jnp.finfo(model(x).dtype).eps) * largest

    def mispredicted(ahead: float) -> Array:
        step = jnp.clip(x + ahead * eps * norm.direction(grad).astype(x.dtype), *bounds) - x
        expected = (grad * step).reshape(len(x), -1).sum(1)
        off = margin(logits_fn(x + step), y) - clean - expected
        return ~(jnp.abs(off) <= 0.5 * jnp.abs(expected) + rounding)

    wrong = jnp.array([mispredicted(ahead) for ahead in AHEAD]).all(0)

    noise = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)
    again = logits_fn(jnp.clip(x + NEAR * (bounds[1] - bounds[0]) * noise, *bounds))
    change = jnp.where(masked & jnp.isneginf(again), 0.0, jnp.abs(again - logits)).max(1)
    moved = ~(change <= CHANGE * (most - least))
    # Logits of nan count as misclassified everywhere, though no attack was needed.
    dead = jnp.where(right, dead, ~jnp.isfinite(logits.max(-1)))
    return {"gradients": dead, "linearity": wrong & right, "randomness": moved & right}
