"""Optimisers by name: each makes a finite step, and what cannot make one is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipreg import optimizers

W = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3), "bias": jnp.ones(3)}
G = {"kernel": jnp.full((2, 3), 0.1), "bias": jnp.array([1.0, -2.0, 3.0])}
RATE = optimizers.schedule("cosine", 0.1, 10)


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's bias corrections mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def step(tx, w=W, g=G):
    updates, _ = jax.jit(tx.update)(g, tx.init(w), w)
    return updates


@pytest.mark.parametrize("name", [*optimizers.NAMES, "optax.contrib:muon"])
def test_every_optimizer_makes_a_step_at_the_schedules_rate(name):
    options = {"key": 0} if name == "noisy_sgd" else {}  # whose noise optax wants seeded
    updates = step(optimizers.build(name, RATE, weight_decay=1e-3, clip=1.0, **options))
    assert jax.tree.structure(updates) == jax.tree.structure(W)
    moved = [np.asarray(leaf) for leaf in jax.tree.leaves(updates)]
    assert all(np.isfinite(leaf).all() and leaf.dtype == np.float32 for leaf in moved)
    assert any(leaf.any() for leaf in moved)


def test_weight_decay_goes_to_the_optimizer_that_takes_it_and_else_into_the_gradient():
    adamw = optimizers.build("adamw", 0.1, weight_decay=0.5, b2=0.95)
    expected = step(optax.adamw(0.1, b2=0.95, weight_decay=0.5))
    jax.tree.map(np.testing.assert_allclose, step(adamw), expected)
    adam = optimizers.build("adam", 0.1, weight_decay=0.5)
    decayed = jax.tree.map(lambda g, w: g + 0.5 * w, G, W)
    jax.tree.map(np.testing.assert_allclose, step(adam), step(optax.adam(0.1), g=decayed))


def test_the_gradient_is_clipped_before_it_is_decayed_and_steps_are_accumulated():
    tx = optimizers.build("sgd", 1.0, weight_decay=0.5, clip=0.1, accumulate=2)
    state = tx.init(W)
    first, state = tx.update(G, state, W)
    second, _ = tx.update(G, state, W)
    norm = optax.tree.norm(G)
    assert not any(leaf.any() for leaf in jax.tree.leaves(first))
    expected = jax.tree.map(lambda g, w: -(0.1 * g / norm + 0.5 * w), G, W)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), second, expected)


def any_options(rate, **options):
    return optax.sgd(rate, **options)


def test_an_optimizer_of_ones_own_may_take_any_options():
    tx = optimizers.build(f"{__name__}:any_options", 0.1, momentum=0.5)
    jax.tree.map(np.testing.assert_allclose, step(tx), step(optax.sgd(0.1, momentum=0.5)))
    with pytest.raises(ValueError, match=r"any_options' makes no step .* unexpected keyword"):
        optimizers.build(f"{__name__}:any_options", 0.1, beta=0.5)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("adan2", {}, "No optimizer 'adan2'; choose one of sgd, adam, adamw, lion"),
        ("lbfgs", {}, r"'lbfgs' makes no step of gradients and a schedule .* 'value'"),
        ("polyak_sgd", {}, r"'polyak_sgd' makes no step of gradients .* 'value'"),
        ("sm3", {}, r"'sm3' makes no step of gradients and a schedule"),
        ("optax.contrib:momo", {}, r"'optax.contrib:momo' makes no step of gradients"),
        (
            "adamw",
            {"beta": 0.9},
            r"No option 'beta' of the optimizer 'adamw'; it takes b1",
        ),
        (
            "sgd",
            {"name": "adam"},
            r"No option 'name' of the optimizer 'sgd'; it takes mom",
        ),
        ("math:pi", {}, r"'math:pi' is a float; an optimizer is \(learning_rate"),
    ],
)
def test_what_makes_no_step_is_refused_in_one_line(name, options, told):
    with pytest.raises(ValueError, match=told) as raised:
        optimizers.build(name, RATE, **options)
    assert "\n" not in str(raised.value)
