"""Carlini & Wagner and EAD against the exact distances of linear models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from lipreg.attacks.penalties import carlini_wagner, ead
from lipreg.losses import margin
from lipreg.norms import L1, L2, LINF

KEY = jax.random.key(0)
BATCH, PIXELS = 8, 64
Y = jnp.zeros(BATCH, jnp.int32)
NORMS = {carlini_wagner: L2, ead: L1}
EXACT = {L2: jnp.geomspace(0.01, 1.0, BATCH), L1: jnp.geomspace(0.01, 0.4, BATCH)}
each_attack = pytest.mark.parametrize("attack", NORMS, ids=lambda attack: attack.__name__)


def normal(i, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, i), shape)


# The largest weight is the last pixel's alone: the nearest point in l_1 moves no other.
W = normal(0, PIXELS).at[-1].set(4.0)


def linear(x, w=W, b=-0.5 * W.sum()):
    return jnp.stack([0 * x[:, 0], x @ w + b], -1)


def at_distance(d, norm):
    """Points near the middle of [0, 1] whose exact distance from the other class is d, [B]."""
    x = 0.5 + 0.05 * normal(1, BATCH, PIXELS)
    level = linear(x)[:, 1] + norm.dual(W[None]) * d
    return x - (level / (W @ W))[:, None] * W[None]


def run(attack, w, b, x, y, confidence):
    return attack(KEY, lambda x: linear(x, w, b), x, y, confidence=confidence)


RUN = {attack: jax.jit(partial(run, attack)) for attack in NORMS}  # each is compiled once


def attacked(attack, x, y=Y, w=W, b=None, confidence=0.0):
    """`b`, one number for each image."""
    return RUN[attack](w, jnp.full(BATCH, -0.5 * W.sum()) if b is None else b, x, y, confidence)


@each_attack
def test_the_distance_is_that_of_a_linear_model_and_never_below(attack):
    """In l_2 Adam's first step is longer than many of them."""
    norm = NORMS[attack]
    x = at_distance(EXACT[norm], norm)
    x_adv = attacked(attack, x)
    found = norm.size(x_adv - x)
    assert (margin(linear(x_adv), Y) >= 0).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert (found >= EXACT[norm] * (1 - 1e-4)).all()
    assert (found <= EXACT[norm] * (1.002 if norm is L2 else 1.03)).all()
    if norm is L1:
        assert ((x_adv != x).sum(1) <= 2).all()


@each_attack
def test_what_is_wrong_already_comes_back_untouched_beside_what_is_not(attack):
    x = at_distance(EXACT[NORMS[attack]], NORMS[attack])
    x_adv = attacked(attack, x, jnp.arange(BATCH, dtype=jnp.int32) % 2)
    np.testing.assert_array_equal(x_adv[1::2], x[1::2])
    np.testing.assert_array_equal(x_adv[::2], attacked(attack, x)[::2])


@each_attack
def test_a_constant_classifier_is_not_broken_and_gives_no_nan(attack):
    """In black and white images, where tanh is flat, too."""
    x = jnp.round(jax.random.uniform(KEY, (BATCH, PIXELS)))
    x_adv = attacked(attack, x, w=0 * W, b=-jnp.ones(BATCH))
    np.testing.assert_array_equal(x_adv, x)


def test_carlini_and_wagner_move_pixels_away_from_the_bounds_they_lie_on():
    """Black and white images: half of the pixels can't follow w. The nearest point is `x + l w`,
    cut off at the box, with the l that puts it on the boundary."""
    x = jnp.round(jax.random.uniform(KEY, (BATCH, PIXELS)))
    levels = jnp.linspace(1.0, 10.0, BATCH)
    x_adv = attacked(carlini_wagner, x, b=-(x @ W) - levels)
    w = np.asarray(W, float)

    def exact(image, level):
        moved = lambda length: np.clip(length * w, -image, 1 - image)
        return np.linalg.norm(moved(brentq(lambda length: moved(length) @ w - level, 0, 100)))

    expected = [exact(*pair) for pair in zip(np.asarray(x), np.asarray(levels), strict=True)]
    np.testing.assert_allclose(L2.size(x_adv - x), expected, rtol=2e-3)


def test_ead_follows_its_formulas():
    """FISTA in float64, with one c: the closest point in l_1 of all that are misclassified."""
    exact, c, beta, rate, steps = jnp.full(1, 0.2), 0.5, 0.02, 0.03, 40
    x = at_distance(exact, L1)[:1]
    image, w, b = np.asarray(x[0], float), np.asarray(W, float), float(-0.5 * W.sum())
    point = ahead = image
    found = []
    for k in range(steps):
        found += [ahead] if ahead @ w + b > 0 else []
        slope = 2 * (ahead - image) - c * w * (ahead @ w + b < 0)
        moved = ahead - rate * np.sqrt(1 - k / steps) * slope - image
        shrunk = np.sign(moved) * np.maximum(np.abs(moved) - beta, 0)
        before, point = point, np.clip(image + shrunk, 0, 1)
        ahead = np.clip(point + k / (k + 3) * (point - before), 0, 1)
    nearest = min(found, key=lambda point: np.abs(point - image).sum())

    options = {"c": c, "beta": beta, "learning_rate": rate, "steps": steps, "searches": 1}
    x_adv = jax.jit(partial(ead, KEY, linear, **options))(x, Y[:1])
    np.testing.assert_allclose(x_adv[0], nearest, atol=1e-5)


@each_attack
def test_confidence_is_a_margin_that_the_point_has(attack):
    norm, confidence = NORMS[attack], 0.4
    x = at_distance(jnp.full(BATCH, 0.05), norm)
    x_adv = attacked(attack, x, confidence=confidence)
    assert (margin(linear(x_adv), Y) >= confidence - 1e-5).all()
    farther = 0.05 + confidence / norm.dual(jnp.stack([W] * BATCH))
    np.testing.assert_allclose(norm.size(x_adv - x), farther, rtol=0.05)


@each_attack
def test_another_unit_and_logits_in_half_precision_leave_the_distance(attack):
    norm, exact = NORMS[attack], jnp.full(BATCH, 0.2)
    x = at_distance(exact, norm)
    model = lambda x: linear(x / 255).astype(jnp.bfloat16)
    x_adv = jax.jit(partial(attack, KEY, model, bounds=(0.0, 255.0), steps=300))(255 * x, Y)
    assert x_adv.dtype == jnp.float32
    np.testing.assert_allclose(norm.size(x_adv / 255 - x), exact, rtol=0.03)


@each_attack
def test_what_is_wrong_is_named_with_the_choices(attack):
    x = at_distance(jnp.full(BATCH, 0.2), L2)
    with pytest.raises(ValueError, match=f"norm linf; choose one of {NORMS[attack].name}"):
        attack(KEY, linear, x, Y, norm=LINF)
    for option in ("steps", "searches"):
        with pytest.raises(ValueError, match=f"{option} = 0; it must be at least 1"):
            attack(KEY, linear, x, Y, **{option: 0})
    with pytest.raises(ValueError, match="outside bounds"):
        attack(KEY, linear, x + 1, Y)
