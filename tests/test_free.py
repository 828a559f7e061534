"""Free adversarial training: the perturbation is carried, and a batch is replayed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipreg import datasets, runs, training
from lipreg.norms import L2, LINF
from lipreg.objectives import free_at
from lipreg.runs.config import base_config, options, strengths

KEY = jax.random.key(0)
X = jnp.array([[0.2, 0.9, 0.5], [0.6, 0.4, 0.05]])
Y = jnp.array([0, 1])
W = jnp.array([[2.0, -1.0], [0.5, 1.0], [-3.0, 2.0]])


def apply(params, model_state, x, train, key):
    return x @ params, model_state


@pytest.mark.parametrize("norm", [LINF, L2])
def test_weights_and_perturbation_move_by_one_gradient_of_the_same_loss(norm):
    tx = optax.sgd(0.5)
    step = jax.jit(training.make_step(apply, partial(free_at, norm=norm), tx))
    state = training.init(KEY, W, {}, tx, carried=jnp.zeros_like(X))

    def loss(w, delta):
        logits = jnp.clip(X + delta, 0, 1) @ w
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))
    w, delta = W, jnp.zeros_like(X)
    for _ in range(3):
        state, parts = step(state, {"eps": jnp.float32(0.1)}, (X, Y))
        value, (to_w, to_delta) = gradients(w, delta)
        w, delta = w - 0.5 * to_w, norm.project(delta + 0.1 * norm.direction(to_delta), 0.1)
        np.testing.assert_allclose(parts["loss_adv"], value, rtol=1e-5)
        np.testing.assert_allclose(state.params, w, rtol=1e-5)
        np.testing.assert_allclose(state.carried, delta, rtol=1e-4, atol=1e-6)
    assert set(parts) == {"loss_adv", "objective", "grad_params"}


def test_a_pixel_on_the_border_of_the_box_counts_whole_and_one_beyond_it_not_at_all():
    loss = lambda logits, y: logits[:, 0] + logits[:, 1]  # of gradient (1, 1) in x
    step = partial(free_at, lambda x: x, y=jnp.array([0]), eps=0.1, loss=loss, norm=L2)
    root = 0.1 / 2**0.5
    _, parts = step(jnp.array([[0.0, 0.5]]))
    np.testing.assert_allclose(parts["carried"], [[root, root]], rtol=1e-6)
    _, parts = step(jnp.array([[1.0, 0.5]]), carried=jnp.array([[1e-3, 0.0]]))
    np.testing.assert_allclose(parts["carried"], [[1e-3, 0.1]], rtol=1e-3)


def test_a_batch_is_replayed_with_its_random_numbers_and_a_run_goes_on_inside_a_replay():
    def drawn(logits_fn, x, y, *, key, loss, frozen):
        value = (logits_fn(x)[0] * 0).mean()
        return value, {"aux": {}, "seen": x.mean(), "drawn": jax.random.uniform(key)}

    tx = optax.sgd(0.1)
    step = training.make_step(apply, drawn, tx, replay=3)
    dataset = datasets.Dataset(
        np.linspace(0, 1, 24, dtype=np.float32).reshape(8, 3), np.zeros(8, np.int32), 2
    )

    def seen(first):
        state = training.init(KEY, W, {}, tx)
        state = dataclasses.replace(state, step=jnp.int32(first))
        options = {"batch_size": 4, "steps": 12, "every": 1, "key": KEY, "replay": 3}
        return [
            (p["seen"], p["drawn"]) for _, p in training.fit(step, state, {}, dataset, **options)
        ]

    whole = seen(0)
    assert [whole.index(parts) for parts in whole] == [0] * 3 + [3] * 3 + [6] * 3 + [9] * 3
    assert seen(4) == whole[4:]


def test_a_config_names_it_and_an_epoch_has_so_many_times_the_steps():
    assert strengths("free_at") == ("eps",)
    assert options("free_at") == {"norm": "linf", "bounds": (0.0, 1.0)}
    config = base_config("free_at", {"free_at": {"eps": 0.1}})
    with pytest.raises(ValueError, match=r"replay = 1; free_at's perturbation is for the next ste"):
        runs.prepare(config)
    config.train.replay = 4
    config.model.name, config.model.settings = "MLP", {"widths": (2,)}
    prepared = runs.prepare(config)
    assert prepared.state.carried.shape == (128, 8, 8, 1)
    assert prepared.steps == 10 * 4 * (len(prepared.training.y) // 128)


def test_every_example_may_have_a_radius_of_its_own():
    x, y = jnp.array([[0.6, 0.4], [0.6, 0.4]]), jnp.array([0, 0])
    _, parts = free_at(lambda x: 10 * x, x, y, eps=jnp.array([0.1, 0.0]))
    np.testing.assert_allclose(parts["carried"], [[-0.1, 0.1], [0.0, 0.0]], atol=1e-7)
