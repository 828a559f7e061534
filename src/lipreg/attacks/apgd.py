"""Auto-PGD: projected gradient ascent whose step size looks after itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lipreg.attacks.start import (
    Bounds,
    LogitsFn,
    LogitsLoss,
    Targets,
    at_least_one,
    check_inputs,
    check_norm,
    random_in_ball,
    select,
    strongest_copy,
)
from lipreg.losses import cross_entropy, dlr, margin, targeted_dlr
from lipreg.norms import L1, L2, LINF, Norm, expand


def apgd(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: Norm = LINF,
    bounds: Bounds = (0.0, 1.0),
    loss: LogitsLoss = cross_entropy,
    steps: int = 100,
    restarts: int = 1,
    targets: Targets = 0,
) -> Array:
    """`x <- P(x + 3/4 (P(x + a d) - x) + 1/4 (x - x'))`, x' the point before (2003.01690).

    d is the norm's steepest direction, P the projection on ball and box. The step size a begins at
    2 eps; at checkpoints, which come closer and closer, it is halved and the ascent goes on at the
    best point so far, where fewer than 3/4 of the steps have raised the loss or where neither best
    loss nor step size has changed. For L1 (2103.01208) d has as many entries as two thirds of the
    best perturbation, and the step size is set back where that number falls.

    `loss` is ascended; with `targets` (a number of likeliest wrong classes, or classes `[B, T]`),
    the loss of the target is descended, and `losses.dlr` takes its targeted form. With restarts and
    targets as one batch, the point with the largest margin is returned, the clean one included. The
    loop ends when every example is misclassified. Norms: L1, L2, LINF.

    >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
    >>> apgd(jax.random.key(0), lambda x: x, x, y, 0.25).argmax(-1)
    Array([1], dtype=int32)
    """
    check_inputs(logits_fn, x, y, bounds)
    check_norm("apgd", norm, L1, L2, LINF)
    at_least_one("apgd", steps=steps)
    lengths = _checkpoints(steps, sparse=norm is L1)

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
            return values.sum(), (values, margin(logits, y))

        ascend = jax.grad(total, has_aux=True)
        into = partial(_into, x, eps=eps, norm=norm, bounds=bounds)
        start = into(x + expand(eps, x) * random_in_ball(keys, x, norm))
        grad, (value, score) = ascend(start)
        clean = margin(logits_fn(x).astype(x.dtype), y)
        rule = _SparseStep(x, eps) if norm is L1 else _Step(norm, eps)
        state = {
            "x": start,
            "before": start,
            "grad": grad,
            "value": value,
            # The point to go on from after a checkpoint: the largest loss.
            "best": (start, grad, value),
            # The point to return: the largest margin.
            "kept": (select(score > clean, start, x), jnp.maximum(score, clean)),
            "improved": jnp.zeros(y.shape, jnp.int32),
            "rule": rule.init(value),
        }

        def body(carry: tuple[Array, dict]) -> tuple[Array, dict]:
            step, s = carry
            moved = into(s["x"] + rule.step(s["rule"], s["grad"]).astype(x.dtype))
            share = jnp.where(step > 0, 0.75, 1.0).astype(x.dtype)
            point = into(s["x"] + share * (moved - s["x"]) + (1 - share) * (s["x"] - s["before"]))
            grad, (value, score) = ascend(point)
            better = value > s["best"][2]
            best = (
                select(better, point, s["best"][0]),
                select(better, grad, s["best"][1]),
                jnp.where(better, value, s["best"][2]),
            )
            farther = score > s["kept"][1]
            kept = select(farther, point, s["kept"][0]), jnp.where(farther, score, s["kept"][1])
            improved = s["improved"] + (value > s["value"]).astype(jnp.int32)
            length = jnp.asarray(lengths)[step]
            checked, back = rule.check(s["rule"], best, improved, length)
            is_check = length > 0
            back = back & is_check
            return step + 1, {
                "x": select(back, best[0], point),
                "before": s["x"],
                "grad": select(back, best[1], grad),
                # Of the point that was looked at, also where the ascent goes back to the best one:
                # what follows need not be better than that to count as improved.
                "value": value,
                "best": best,
                "kept": kept,
                "improved": jnp.where(is_check, 0, improved),
                "rule": jax.tree.map(lambda a, b: jnp.where(is_check, a, b), checked, s["rule"]),
            }

        def goes_on(carry: tuple[Array, dict]) -> Array:
            return (carry[0] < steps) & (carry[1]["kept"][1] <= 0).any()

        _, state = jax.lax.while_loop(goes_on, body, (jnp.int32(0), state))
        return state["kept"]

    return strongest_copy(one, key, logits_fn, x, y, eps, restarts=restarts, targets=targets)


def _checkpoints(steps: int, sparse: bool) -> np.ndarray:
    """For each step, the number of steps since the last checkpoint if it is one, and else 0."""
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
    """The projection on ball and box; for L2 first on the one, then on the other."""
    low, high = bounds
    if norm is not L1:
        return jnp.clip(x + norm.project(point - x, eps).astype(x.dtype), low, high)
    # min ||z - point||_2: every entry of the perturbation shrinks by one amount, then meets the
    # box, and the sum of what is left falls as the amount rises: bisected.
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
    """The step of L2 and LINF, `a d`: its size halves where the ascent does not get on."""

    def __init__(self, norm: Norm, eps: Array):
        self.norm, self.eps = norm, eps

    def init(self, value: Array) -> dict[str, Array]:
        return {"size": 2 * self.eps, "halved": jnp.ones(value.shape, bool), "best": value}

    def step(self, rule: dict[str, Array], grad: Array) -> Array:
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

    def __init__(self, x: Array, eps: Array):
        self.x, self.eps = x, eps
        self.pixels = x[0].size

    def init(self, value: Array) -> dict[str, Array]:
        few = jnp.full(value.shape, max(0.2 * self.pixels, 1.0), self.x.dtype)
        used = jnp.full_like(few, self.pixels)
        return {"size": self.eps, "entries": few, "used": used, "best": value}

    def step(self, rule: dict[str, Array], grad: Array) -> Array:
        flat = grad.reshape(grad.shape[0], -1)
        ranked = jnp.sort(jnp.abs(flat), axis=1, descending=True)
        last = jnp.clip(rule["entries"].astype(jnp.int32), 1, self.pixels) - 1
        enough = jnp.abs(flat) >= jnp.take_along_axis(ranked, last[:, None], 1)
        signs = jnp.where(enough, jnp.sign(flat), 0.0)
        length = jnp.maximum(jnp.abs(signs).sum(1), 1.0)
        return (signs * expand(rule["size"] / length, signs)).reshape(grad.shape)

    def check(
        self, rule: dict[str, Array], best: tuple, improved: Array, length: Array
    ) -> tuple[dict[str, Array], Array]:
        moved = (best[0] - self.x).reshape(self.x.shape[0], -1)
        used = (jnp.abs(moved) > 1e-10).sum(1).astype(self.x.dtype)
        sparser = used < 0.95 * rule["used"]
        size = jnp.where(sparser, self.eps, jnp.maximum(rule["size"] / 1.5, self.eps / 10))
        # Two entries of three, or half as many as last time where that did not help.
        stands = rule["best"] >= best[2]
        entries = jnp.maximum(jnp.where(stands, rule["entries"] / 2, used / 1.5), 1.0)
        return {"size": size, "entries": entries, "used": used, "best": best[2]}, sparser | stands
