"""Auto-PGD: projected gradient ascent that adapts its own step size."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lipreg.attacks.copies import Targets, strongest_copy
from lipreg.attacks.precision import in_single
from lipreg.boundary import score
from lipreg.box import Bounds, within
from lipreg.contracts import LogitsFn, LogitsLoss, at_least_one, check_inputs, check_norm
from lipreg.losses import cross_entropy, dlr, targeted_dlr
from lipreg.norms import (
    L1,
    L2,
    LINF,
    Norm,
    NormLike,
    by_name,
    expand,
    finite,
    random_in_ball,
    select,
)


@in_single
def apgd(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    loss: LogitsLoss = cross_entropy,
    steps: int = 100,
    restarts: int = 1,
    targets: Targets = 0,
    from_larger: bool = False,
) -> Array:
    """`x <- P(x + 3/4 (P(x + a d) - x) + 1/4 (x - x'))`, x' the previous point (2003.01690).

    d is the norm's steepest direction, P the projection on ball and box. The step size a begins at
    2 eps. At checkpoints, which follow each other at shrinking intervals, it is halved and the
    ascent continues from the best point so far, if fewer than 3/4 of the steps have raised the loss
    or neither the best loss nor the step size has changed. For L1 (2103.01208) d has two thirds as
    many entries as the best perturbation, the step size is reset where that number falls, and there
    is no momentum. Unlike in the paper, they are the largest among the entries that can move in the
    box.

    `loss` is ascended; with `targets` (a number of likeliest wrong classes, or classes `[B, T]`),
    the loss of the target is descended, and `losses.dlr` is replaced by its targeted form. Returns
    the first misclassified point, or the one with the largest margin where none is; among restarts
    and targets, which run as one batch, again the one with the largest margin. The loop ends
    when every example is misclassified. Norms: L1, L2, LINF.

    `from_larger` (2103.01208) spends 30 % of the steps in the ball of 3 eps, 30 % in that of 2 eps
    and the rest in that of eps, each from the projection of the best point of the ball before.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> apgd(jax.random.key(0), lambda x: x, x, y, 0.25).argmax(-1)
    Array([1], dtype=int32)
    """
    norm = by_name(norm)
    check_inputs(logits_fn, x, y, bounds)
    check_norm("apgd", norm, L1, L2, LINF)
    at_least_one("apgd", steps=steps)
    phases = _phases(steps, from_larger, sparse=norm is L1)

    def one(
        keys: Array, x: Array, y: Array, eps: Array, target: Array | None
    ) -> tuple[Array, Array]:
        def total(x_adv: Array) -> tuple[Array, tuple[Array, Array]]:
            logits = logits_fn(x_adv).astype(x.dtype)
            if target is None:
                values = loss(logits, y)
            elif loss is dlr:
                values = targeted_dlr(logits, y, target)
            else:
                values = -loss(logits, target)
            return values.sum(), (values, score(logits, y))

        def ascend(point: Array) -> tuple[Array, Array, Array]:
            grad, (value, found) = jax.grad(total, has_aux=True)(point)
            return finite(grad), jnp.where(jnp.isnan(value), -jnp.inf, value), found

        def phase(k: Array, carry: tuple) -> tuple:
            """The ascent in the ball of one radius, from the best point of the phase before."""
            lengths, steps, multiple = (jnp.asarray(values)[k] for values in phases)
            best, kept = carry
            radius = multiple.astype(x.dtype) * eps
            into = partial(_into, x, eps=radius, norm=norm, bounds=bounds)
            rule = _SparseStep(x, radius, bounds) if norm is L1 else _Step(norm, radius)

            def keep(kept: tuple[Array, Array], point: Array, found: Array) -> tuple[Array, Array]:
                # A misclassified point stays: the loop goes on for the rest of the batch.
                farther = (found > kept[1]) & (kept[1] <= 0) & (multiple == 1)
                return select(farther, point, kept[0]), jnp.where(farther, found, kept[1])

            def body(carry: tuple[Array, dict]) -> tuple[Array, dict]:
                step, s = carry
                moved = into(s["x"] + rule.step(s["rule"], s["x"], s["grad"]).astype(x.dtype))
                # In l_1 momentum would bring back entries that the step has dropped.
                share = jnp.where((step > 0) & (norm is not L1), 0.75, 1.0).astype(x.dtype)
                point = s["x"] + share * (moved - s["x"]) + (1 - share) * (s["x"] - s["before"])
                point = into(point)
                grad, value, found = ascend(point)
                better = value > s["best"][2]
                best = (
                    select(better, point, s["best"][0]),
                    select(better, grad, s["best"][1]),
                    jnp.where(better, value, s["best"][2]),
                )
                improved = s["improved"] + (value > s["value"]).astype(jnp.int32)
                length = lengths[step]
                checked, back = rule.check(s["rule"], best, improved, length)
                is_check = length > 0
                back = back & is_check
                return step + 1, {
                    "x": select(back, best[0], point),
                    "before": s["x"],
                    "grad": select(back, best[1], grad),
                    # The value here, even where the ascent goes back to the best point: the next
                    # point need not be better than the best to count as an improvement.
                    "value": value,
                    "best": best,
                    "kept": keep(s["kept"], point, found),
                    "improved": jnp.where(is_check, 0, improved),
                    "rule": jax.tree.map(
                        lambda a, b: jnp.where(is_check, a, b), checked, s["rule"]
                    ),
                }

            def goes_on(carry: tuple[Array, dict]) -> Array:
                return (carry[0] < steps) & (carry[1]["kept"][1] <= 0).any()

            start = into(best)
            grad, value, found = ascend(start)
            state = {
                "x": start,
                "before": start,
                "grad": grad,
                "value": value,
                # The point to continue from after a checkpoint: the largest loss.
                "best": (start, grad, value),
                # The point to return: the first that is misclassified, or the largest margin.
                "kept": keep(kept, start, found),
                "improved": jnp.zeros(y.shape, jnp.int32),
                "rule": rule.init(start, value, k == 0),
            }
            _, state = jax.lax.while_loop(goes_on, body, (jnp.int32(0), state))
            return state["best"][0], state["kept"]

        largest = phases[2][0].astype(x.dtype) * eps
        start = x + expand(largest, x) * random_in_ball(keys, x, norm)
        kept = x, score(logits_fn(x).astype(x.dtype), y)
        return jax.lax.fori_loop(0, len(phases[0]), phase, (start, kept))[1]

    return strongest_copy(one, key, logits_fn, x, y, eps, restarts=restarts, targets=targets)


def _phases(
    steps: int, from_larger: bool, sparse: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each phase's checkpoints, `[P, steps]`, its steps and its multiple of eps, `[P]`."""
    early = 3 * steps // 10
    counts = [early, early, steps - 2 * early] if from_larger else [steps]
    lengths = np.zeros((len(counts), steps), np.int32)
    for row, count in zip(lengths, counts, strict=True):
        row[:count] = _checkpoints(count, sparse)
    return lengths, np.array(counts, np.int32), np.arange(len(counts), 0, -1, dtype=np.int32)


def _checkpoints(steps: int, sparse: bool) -> np.ndarray:
    """For each step, 0, or at a checkpoint the number of steps since the one before."""
    lengths = np.zeros(steps, np.int32)
    if sparse:
        every = max(int(0.04 * steps), 1)
        lengths[every - 1 :: every] = every
        return lengths
    length, at = max(int(0.22 * steps), 1), 0
    while at + length <= steps:
        at += length
        lengths[at - 1] = length
        length = max(length - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return lengths


def _into(x: Array, point: Array, *, eps: Array, norm: Norm, bounds: Bounds) -> Array:
    """The projection on ball and box; for L2 on the ball, then on the box."""
    low, high = bounds
    if norm is not L1:
        return jnp.clip(x + norm.project(point - x, eps).astype(x.dtype), low, high)
    # min ||z - point||_2: every entry of the perturbation shrinks by one amount and is clipped to
    # the box. The l_1 size of the result falls as the amount grows, which is found by bisection.
    v = point - x
    room = jnp.where(v > 0, high - x, x - low)
    left = lambda amount: jnp.clip(jnp.abs(v) - expand(amount, v), 0.0, room)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        too_little, enough = ends
        middle = (too_little + enough) / 2
        inside = L1.size(left(middle)) <= eps
        return jnp.where(inside, too_little, middle), jnp.where(inside, middle, enough)

    nothing = jnp.zeros_like(eps)
    _, amount = jax.lax.fori_loop(0, 25, halve, (nothing, LINF.size(v).astype(eps.dtype)))
    amount = jnp.where(L1.size(left(nothing)) <= eps, 0.0, amount)
    return jnp.clip(x + jnp.sign(v) * left(amount), low, high)


class _Step:
    """The step of L2 and LINF, `a d`: its size is halved where the ascent makes no progress."""

    def __init__(self, norm: Norm, eps: Array):
        self.norm, self.eps = norm, eps

    def init(self, start: Array, value: Array, first: Array) -> dict[str, Array]:
        return {"size": 2 * self.eps, "halved": jnp.ones(value.shape, bool), "best": value}

    def step(self, rule: dict[str, Array], x: Array, grad: Array) -> Array:
        direction = self.norm.direction(grad)
        return expand(rule["size"], direction) * direction

    def check(
        self, rule: dict[str, Array], best: tuple, improved: Array, length: Array
    ) -> tuple[dict[str, Array], Array]:
        oscillates = 4 * improved <= 3 * length
        stands = ~rule["halved"] & (rule["best"] >= best[2])
        halve = oscillates | stands
        size = jnp.where(halve, rule["size"] / 2, rule["size"])
        return {"size": size, "halved": halve, "best": best[2]}, halve


class _SparseStep:
    """The step of L1: on the largest entries of the gradient, as many as the best point needs."""

    def __init__(self, x: Array, eps: Array, bounds: Bounds):
        self.x, self.eps, self.bounds = x, eps, bounds
        self.pixels = math.prod(x.shape[1:])

    def init(self, start: Array, value: Array, first: Array) -> dict[str, Array]:
        used = jnp.where(first, float(self.pixels), self.used(start))
        entries = jnp.maximum(jnp.where(first, 0.2 * self.pixels, used / 1.5), 1.0)
        return {"size": self.eps, "entries": entries, "used": used, "best": value}

    def used(self, point: Array) -> Array:
        """The number of entries of the perturbation that are not 0, [B]."""
        moved = (point - self.x).reshape(len(self.x), self.pixels)
        return (jnp.abs(moved) > 1e-10).sum(1).astype(self.x.dtype)

    def step(self, rule: dict[str, Array], x: Array, grad: Array) -> Array:
        flat = within(grad, x, self.bounds).reshape(len(x), self.pixels)
        ranked = jnp.sort(jnp.abs(flat), axis=1, descending=True)
        last = jnp.clip(rule["entries"].astype(jnp.int32), 1, self.pixels) - 1
        enough = jnp.abs(flat) >= jnp.take_along_axis(ranked, last[:, None], 1)
        signs = jnp.where(enough, jnp.sign(flat), 0.0)
        length = jnp.maximum(jnp.abs(signs).sum(1), 1.0)
        return (signs * expand(rule["size"] / length, signs)).reshape(grad.shape)

    def check(
        self, rule: dict[str, Array], best: tuple, improved: Array, length: Array
    ) -> tuple[dict[str, Array], Array]:
        used = self.used(best[0])
        sparser = used < 0.95 * rule["used"]
        size = jnp.where(sparser, self.eps, jnp.maximum(rule["size"] / 1.5, self.eps / 10))
        # Two entries of three, or half as many as last time where that did not help.
        stands = rule["best"] >= best[2]
        entries = jnp.maximum(jnp.where(stands, rule["entries"] / 2, used / 1.5), 1.0)
        return {"size": size, "entries": entries, "used": used, "best": best[2]}, sparser | stands
