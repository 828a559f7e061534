"""The Boundary attack and HopSkipJump against exact distances: to hyperplanes and to spheres."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg.attacks.decisions import boundary, hopskipjump
from lipreg.boundary import misclassified
from lipreg.norms import L1, L2, LINF

KEY = jax.random.key(0)
BATCH, PIXELS = 8, (4, 4, 1)
KEYS = jax.vmap(partial(jax.random.fold_in, KEY))(jnp.arange(BATCH))
normal = lambda n, *shape: jax.random.normal(jax.random.fold_in(KEY, n), shape)
X = 0.5 + 0.05 * normal(1, BATCH, *PIXELS)
ATTACKS = {
    "boundary": (partial(boundary, steps=500), L2),
    "hopskipjump-l2": (partial(hopskipjump, steps=12, evaluations=60), L2),
    "hopskipjump-linf": (partial(hopskipjump, steps=12, evaluations=60, norm=LINF), LINF),
}
in_l2 = pytest.mark.parametrize("name", ["boundary", "hopskipjump-l2"])
each_attack = pytest.mark.parametrize("name", ATTACKS)
ONES = jnp.ones(BATCH, int)
# Class 1 where `<w, x - 1/2> + bias - curve |x - 1/2|^2 >= 0`: a half-space or a ball.
WEIGHTS = normal(2, 16)
PLANE = {"weights": WEIGHTS, "bias": jnp.float32(0.8), "curve": jnp.float32(0.0)}
BALL = {"weights": 0 * WEIGHTS, "bias": jnp.float32(0.16), "curve": jnp.float32(1.0)}


def model(params, x, hard):
    """`hard` leaves of the logits nothing but the decision."""
    x = x.reshape(x.shape[0], -1) - 0.5
    score = x @ params["weights"] + params["bias"] - params["curve"] * jnp.square(x).sum(1)
    logits = jnp.stack([0 * score, score], -1)
    return jnp.where(hard, jax.nn.one_hot(jnp.argmax(logits, -1), 2), logits)


@functools.cache
def compiled(name):
    """One program for all the tests of an attack."""
    attack, _ = ATTACKS[name]

    def run(params, hard, keys, x, y):
        logits_fn = lambda x: model(params, x, hard)
        x_adv = attack(keys, logits_fn, x, y)
        return x_adv, misclassified(logits_fn, x_adv, y)

    return jax.jit(run)


def run(name, params=PLANE, hard=False, keys=KEYS, x=X, y=ONES):
    x_adv, fooled = compiled(name)(params, hard, keys, x, y)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    return x_adv, fooled


@each_attack
def test_the_distance_to_a_hyperplane_is_found_and_never_less(name):
    """`(<w, x - 1/2> + b) / ||w||_*`."""
    norm = ATTACKS[name][1]
    x_adv, fooled = run(name)
    exact = model(PLANE, X, False)[:, 1] / norm.dual(WEIGHTS[None])
    assert fooled.all()
    assert (norm.size(x_adv - X) >= exact * (1 - 1e-5)).all()
    assert (norm.size(x_adv - X) <= exact * 1.05).all()


@in_l2
def test_the_distance_to_a_sphere_is_found_and_never_less(name):
    """From inside, its radius less the distance to its centre."""
    x_adv, fooled = run(name, BALL)
    exact = jnp.sqrt(BALL["bias"]) - L2.size(X - 0.5)
    assert fooled.all()
    assert (L2.size(x_adv - X) >= exact * (1 - 1e-5)).all()
    assert (L2.size(x_adv - X) <= exact * 1.1).all()


@each_attack
def test_only_decisions_matter(name):
    """Logits that are the decision itself give the same images, to the last bit."""
    np.testing.assert_array_equal(run(name, hard=True)[0], run(name)[0])


@each_attack
def test_an_example_keeps_its_result_wherever_it_stands_in_the_batch(name):
    order = jnp.array([3, 0, 7, 6, 1, 2, 5, 4])
    moved, _ = run(name, keys=KEYS[order], x=X[order])
    np.testing.assert_allclose(moved, run(name)[0][order], atol=1e-6)


@each_attack
def test_a_misclassified_image_and_one_without_a_start_come_back_as_they_were(name):
    y = jnp.arange(BATCH) % 2
    x_adv, _ = run(name, y=y)
    np.testing.assert_array_equal(x_adv[y == 0], X[y == 0])
    assert (x_adv != X).any((1, 2, 3))[y == 1].all()
    unbreakable = {**PLANE, "bias": jnp.float32(100.0)}
    x_adv, fooled = run(name, unbreakable)
    np.testing.assert_array_equal(x_adv, X)
    assert not fooled.any()


@in_l2
def test_the_box_is_part_of_the_problem(name):
    """To `sum x <= 6.5` every pixel goes down by as much, but four of them end at 0 before."""
    x = (X + 0.1).at[:, 0].set(0.01)
    x_adv, fooled = run(name, {**PLANE, "weights": jnp.ones(16), "bias": jnp.float32(1.5)}, x=x)
    down = (x[:, 1:].sum((1, 2, 3)) - 6.5) / 12
    assert (down > 0.01).all()
    exact = jnp.sqrt(12 * down**2 + 4 * 0.01**2)
    assert fooled.all()
    assert (L2.size(x_adv - x) >= exact * (1 - 1e-5)).all()
    assert (L2.size(x_adv - x) <= exact * 1.05).all()


@pytest.mark.parametrize(
    ("attack", "given", "said"),
    [
        (boundary, {"norm": LINF}, "boundary: no form for the norm linf; choose one of l2"),
        (boundary, {"steps": 0}, "boundary: steps = 0; it must be at least 1"),
        (hopskipjump, {"norm": L1}, "hopskipjump: no form for the norm l1; choose one of l2, linf"),
        (hopskipjump, {"evaluations": 0}, "hopskipjump: evaluations = 0; it must be at least 1"),
        (hopskipjump, {"starts": 0}, "hopskipjump: starts = 0; it must be at least 1"),
        (hopskipjump, {"x": X + 1}, "x has values from .* outside bounds"),
    ],
)
def test_what_is_wrong_is_named_with_the_choices(attack, given, said):
    inputs = {"x": X, "y": ONES, **given}
    with pytest.raises(ValueError, match=said):
        attack(KEY, lambda x: model(PLANE, x, False), **inputs)
