"""Certified <= true <= attacked: every rule on the same images, beside the distances of attacks."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg import attacks, curves
from lipreg.batching import map_batches
from lipreg.certificates.constants import (
    Certificate,
    first_order,
    loss_lipschitz,
    margin_lipschitz,
)
from lipreg.certificates.curvature import largest_curvature, second_order
from lipreg.certificates.local import interval_bound, margin_local
from lipreg.contracts import LogitsFn
from lipreg.folding import folded
from lipreg.keys import example_keys
from lipreg.lipschitz import Constant, gradient_norms
from lipreg.lipschitz.bounds import lipschitz
from lipreg.losses import margin
from lipreg.norms import L2
from lipreg.tracing import compiled, snapshot

__all__ = ["Comparison", "compare", "to_markdown"]

ATTACKS = ("ddn", "fmn", "deepfool")
SLACK = 1e-4  # relative: a distance is measured in float32


class Comparison(NamedTuple):
    """Radii by rule, and what attacks find, in l2.

    Attributes:
      certificates: by rule; radii `[N]`.
      distance: the least that the attacks find, `[N]`; 0 where misclassified, inf where none does.
      violations: by rule, the number of images with an adversarial image inside the radius.
    """

    certificates: dict[str, Certificate]
    distance: np.ndarray
    violations: dict[str, int]


def compare(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    smooth: bool = False,
    batch_size: int = 250,
    progress: Callable[[str], object] = lambda text: None,
) -> Comparison:
    """Each image's radius by every rule, and the least l2 distance by DDN, FMN and DeepFool.

    A certified radius never exceeds a distance. One of kind "estimate" may, and is counted where it
    does: its constant is only the largest over these images. Attacks, and the rules that look at
    regions, stay inside `bounds`. `smooth` adds the second-order rule, which has a meaning for
    twice differentiable networks only. `batch_size` images are bounded and attacked at once.

    Raises: ValueError where the network has a primitive that `lipschitz.bounds` has no rule for.

    >>> f, y = lambda x: jnp.concatenate([x, 1 - x], 1), jnp.array([0, 0])
    >>> comparison = compare(jax.random.key(0), f, jnp.array([[1.0], [0.75]]), y)
    >>> certificates = comparison.certificates
    >>> comparison.distance.round(3), certificates["margin, global"].radius.round(3)
    (array([0.5 , 0.25], dtype=float32), Array([0.5 , 0.25], dtype=float32))
    """
    logits_fn = snapshot(logits_fn)
    margin_for = lambda y: lambda x: margin(logits_fn(x), y)
    jit, size = partial(compiled, logits_fn), min(batch_size, len(x))
    keys = example_keys(key, len(x))
    radii, certificates = partial(_in_batches, size, logits_fn, x, y), {}
    progress("global bound")
    everywhere = lipschitz(logits_fn, x[:1], bounds=bounds)
    loss_constant = Constant(float(everywhere.margins.max()), everywhere.kind)
    certificates["log 2 rule, global"] = radii(loss_lipschitz, constant=loss_constant)
    everywhere = everywhere._replace(margins=everywhere.margins[0])
    certificates["margin, global"] = radii(margin_lipschitz, constant=everywhere)
    progress("local bounds")
    certificates["margin, local"] = margin_local(logits_fn, x, y, bounds=bounds, batch_size=size)
    progress("interval bounds")
    certificates["intervals"] = radii(interval_bound, bounds=bounds)
    progress("gradients")
    steepest = jit(lambda x, y: gradient_norms(margin_for(y), x))
    slope = Constant(float(map_batches(steepest, size, x, y).max()), "estimate")
    certificates["first order"] = radii(first_order, constant=slope)
    if smooth:
        progress("curvature")
        largest = jit(lambda k, x, y: largest_curvature(k, margin_for(y), x, steps=20))
        bent = max(float(map_batches(largest, size, keys, x, y).max()), 0.0)
        certificates["second order"] = radii(second_order, curvature=Constant(bent, "estimate"))
    distances, attacked = [], folded(logits_fn, x)
    for name in ATTACKS:
        progress(name)
        attack = partial(getattr(attacks, name), norm=L2, bounds=bounds)
        measure = jit(partial(_distances, attack, bounds, attacked))
        distances.append(map_batches(measure, size, keys, x, y))
    distance = np.min(distances, 0)
    violations = {
        name: int((np.asarray(c.radius) > distance * (1 + SLACK)).sum())
        for name, c in certificates.items()
    }
    return Comparison(certificates, distance, violations)


def _in_batches(
    size: int,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    rule: Callable[..., Certificate],
    **options: Any,
) -> Certificate:
    """A rule's radii, so many images at a time."""
    kinds = set()

    def radius(x: Array, y: Array) -> Array:
        found = rule(logits_fn, x, y, **options)
        kinds.add(found.kind)
        return found.radius

    found = jnp.asarray(map_batches(radius, size, x, y))
    (kind,) = kinds
    return Certificate(found, kind)


def _distances(
    attack: Callable,
    bounds: tuple[float, float],
    logits_fn: LogitsFn,
    keys: Array,
    x: Array,
    y: Array,
) -> Array:
    x_adv = attack(keys, logits_fn, x, y)
    return curves.distance(logits_fn, x, y, x_adv, norm=L2, bounds=bounds)


def to_markdown(comparison: Comparison, eps: float) -> str:
    """One line per rule, and the attacks' last; `eps` is the radius of the last column but one.

    A median is the lower of two, and the attacks' mean that of the distances found.
    """
    lines = [
        "| rule | kind | median radius | mean | % of images at least "
        f"{eps:g} | radii beyond an adversarial image |",
        "|---|---|---|---|---|---|",
    ]
    for name, (radius, kind) in comparison.certificates.items():
        r = np.asarray(radius)
        lines.append(
            f"| {name} | {kind} | {float(curves.median_distance(r)):.3g} | {r.mean():.3g} "
            f"| {100 * (r >= eps).mean():.1f} | {comparison.violations[name]} |"
        )
    d = np.asarray(comparison.distance)
    found = d[np.isfinite(d)].mean() if np.isfinite(d).any() else np.inf
    lines.append(
        f"| {', '.join(ATTACKS)} | attacked | {float(curves.median_distance(d)):.3g} | {found:.3g} "
        f"| {100 * (d >= eps).mean():.1f} | |"
    )
    return "\n".join(lines)
