"""Inner attacks: any of `attacks`, and what only training takes: steps from noise, other scores.

They see the frozen view, in which the attack on an example does not depend on its batch. What they
return has no derivative.
"""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lipreg import attacks
from lipreg.box import Bounds, check_inside, within
from lipreg.contracts import at_least_one, check_radius, not_negative
from lipreg.doors import called, named
from lipreg.keys import example_keys
from lipreg.losses import cross_entropy
from lipreg.norms import Norm, NormLike, by_name, finite, random_in_ball, wide
from lipreg.objectives.contract import moved

__all__ = ["Attack", "ascend", "fgsm_rs", "inner", "n_fgsm", "near", "steepest"]

Attack = str | Callable[..., Array]  # "pgd(steps=10)", or a function on the contract of attacks
View = Callable[[Array], Array]  # x [B, ...] -> logits [B, K]


def near(key: Array, x: Array, radius: ArrayLike, norm: Norm, bounds: Bounds) -> Array:
    """`box(x + radius u)`, u a random point of the unit ball, one for each example."""
    check_inside(x, bounds)
    check_radius(radius)
    noise = random_in_ball(example_keys(key, len(x)), wide(x), norm)
    return jnp.clip(moved(x, radius, noise), *bounds)


def steepest(grad: Array, x: Array, norm: Norm, bounds: Bounds) -> Array:
    """The norm's steepest direction at x; below l_2, where few entries change, among those that can
    move in the box.
    """
    grad = finite(grad)
    return norm.direction(within(grad, x, bounds) if norm.p < 2 else grad)


def ascend(
    score: Callable[[Array], Array],
    start: Array,
    x: Array,
    eps: ArrayLike,
    *,
    norm: Norm,
    bounds: Bounds,
    steps: int = 1,
    step_size: float | None = None,
    unroll: int = 1,
) -> Array:
    """`x' <- box(ball(x' + a eps d))` from `start`, d the steepest direction of `score(x') [B]`.

    Steps are those of `attacks.pgd`: a is `step_size`, by default `2.5 / steps`. The last point is
    returned. It moves in float32 where x is in half precision.
    """
    at_least_one("an inner attack", steps=steps)
    check_inside(x, bounds)
    check_radius(eps)
    rate = 2.5 / steps if step_size is None else step_size
    not_negative("an inner attack", step_size=rate)
    slope = jax.grad(lambda point: score(point.astype(x.dtype)).sum())

    def body(_: int, point: Array) -> Array:
        ahead = moved(point, rate * eps, steepest(slope(point), point, norm, bounds))
        return jnp.clip(wide(x) + norm.project(ahead - wide(x), eps), *bounds)

    point = jax.lax.fori_loop(0, steps, body, wide(start), unroll=unroll)
    return jax.lax.stop_gradient(point.astype(x.dtype))


def fgsm_rs(
    key: Array,
    logits_fn: View,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: NormLike,
    bounds: Bounds,
    alpha: float = 1.25,
) -> Array:
    """From noise of radius eps a step of `alpha eps`, projected onto the ball (2001.03994)."""
    norm = by_name(norm)
    score = lambda point: cross_entropy(logits_fn(point), y)
    start = near(key, x, eps, norm, bounds)
    return ascend(score, start, x, eps, norm=norm, bounds=bounds, step_size=alpha)


def n_fgsm(
    key: Array,
    logits_fn: View,
    x: Array,
    y: Array,
    eps: ArrayLike,
    *,
    norm: NormLike,
    bounds: Bounds,
    k: float = 2.0,
    alpha: float = 1.0,
) -> Array:
    """From noise of radius `k eps` a step of `alpha eps`, which may leave the ball (2202.01181)."""
    norm = by_name(norm)
    score = lambda point: cross_entropy(logits_fn(point), y)
    start = near(key, x, k * eps, norm, bounds)
    return ascend(score, start, start, alpha * eps, norm=norm, bounds=bounds, step_size=1.0)


_NAMES = {name: getattr(attacks, name) for name in attacks.__all__}
_NAMES |= {"fgsm_rs": fgsm_rs, "n_fgsm": n_fgsm}
_GIVEN = ("key", "logits_fn", "x", "y", "eps", "norm", "bounds")


def inner(attack: Attack) -> Callable[..., Array]:
    """`(key, logits_fn, x, y, eps, *, norm, bounds) -> x_adv` of an attack or its text.

    A text is a name in `attacks`, `fgsm_rs`, `n_fgsm`, or an outsider's `package.module:name`, with
    options. What an attack without a radius finds is projected onto the ball: adversarial training
    with DDN (Rony et al., 1811.09600).

    Raises: ValueError for an unknown name or option, with the choices.
    """
    name, options = called(attack) if isinstance(attack, str) else ("", {})
    function = named("attack", name, _NAMES) if isinstance(attack, str) else attack
    takes = inspect.signature(function).parameters
    free = [option for option in takes if option not in _GIVEN]
    for option in options:
        if option in _GIVEN:
            raise ValueError(f"{option} of {name}: the attack gets that of the objective.")
        if option not in free:
            raise ValueError(f"No option {option!r} of {name}; it takes {', '.join(free) or '-'}.")
    run = partial(function, **options)

    def on_ball(
        key: Array,
        logits_fn: View,
        x: Array,
        y: Array,
        eps: ArrayLike,
        *,
        norm: Norm,
        bounds: Bounds,
    ) -> Array:
        if "eps" in takes:
            x_adv = run(key, logits_fn, x, y, eps, norm=norm, bounds=bounds)
        else:
            check_radius(eps)
            found = run(key, logits_fn, x, y, norm=norm, bounds=bounds)
            inside = wide(x) + norm.project(wide(found) - wide(x), eps)
            x_adv = jnp.clip(inside, *bounds).astype(x.dtype)  # rounding may leave the box
        return jax.lax.stop_gradient(x_adv)

    return on_ball
