"""Local entropy by its equations: a proximal point, a Gibbs mean, a smoothed gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipreg import optimizers

H = jnp.array([[3.0, 1.0], [1.0, 2.0]])
X = jnp.array([1.0, -2.0])
GAMMA = 0.5
PROXIMAL = np.linalg.solve(np.eye(2) + GAMMA * np.asarray(H), np.asarray(X))
quadratic = lambda y: H @ y


def after(tx, gradient, x, calls):
    """The last state and params of so many calls on a gradient."""

    def call(_, carried):
        y, state = carried
        updates, state = tx.update(gradient(y), state, y)
        return optax.apply_updates(y, updates), state

    y, state = jax.lax.fori_loop(0, calls, call, (x, tx.init(x)))
    return state, y


def chains(gradient, x, calls, n, rate=0.05, **options):
    """`at_rest` of n chains that differ in their noise alone, `[n, ...]`."""

    def one(key):
        options_ = {"coupling": 1 / GAMMA, "period": calls, "decay": 0.0, "key": key} | options
        tx = optimizers.local_entropy(optax.sgd(rate), rate, **options_)
        return after(tx, gradient, x, calls)[0].at_rest(None)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n)))


@pytest.mark.parametrize("variant", optimizers.VARIANTS)
def test_a_period_of_one_without_coupling_is_the_inner_optimizer(variant):
    inner = optax.sgd(0.1, momentum=0.9)
    coupling = 1e-6 if variant == "heat" else 0.0
    tx = optimizers.local_entropy(
        inner, 0.1, variant=variant, period=1, coupling=coupling, decay=0.0, temperature=0.0
    )
    state, y = jax.jit(partial(after, tx, quadratic, calls=7))(X)
    _, expected = after(inner, quadratic, X, 7)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose(state.at_rest(y), expected, rtol=1e-5)


def test_hj_moves_to_the_proximal_point_and_stays_until_the_period_is_over():
    tx = optimizers.local_entropy(
        optax.sgd(0.1), 0.1, variant="hj", coupling=1 / GAMMA, period=60, decay=0.0
    )
    state, y = after(tx, quadratic, X, 59)
    np.testing.assert_array_equal(state.at_rest(y), X)
    np.testing.assert_allclose(y, PROXIMAL, rtol=1e-5)
    np.testing.assert_allclose(after(tx, quadratic, X, 60)[0].at_rest(None), PROXIMAL, rtol=1e-5)


def test_entropy_has_the_mean_of_hj_the_variance_of_its_law_and_tends_to_hj():
    hot, cold = (chains(quadratic, X, 80, 4000, temperature=t) for t in (0.04, 0.0004))
    np.testing.assert_allclose(hot.mean(0), PROXIMAL, atol=4 * hot.std() / 4000**0.5)
    # Of y <- (1 - rate K) y + sqrt(2 rate T) N, K = H + 1/gamma; for a small rate it is T K^-1.
    k = np.asarray(H) + np.eye(2) / GAMMA
    expected = 0.04 * np.linalg.inv(k @ (np.eye(2) - 0.05 / 2 * k))
    np.testing.assert_allclose(np.cov(hot.T), expected, atol=0.1 * expected.max())
    np.testing.assert_allclose(hot - PROXIMAL, 10 * (cold - PROXIMAL), atol=1e-4)


def test_the_move_is_gamma_times_the_gradient_of_local_entropy_by_quadrature():
    """Of a mixture of two quadratics, which has two minima."""
    wells = lambda y, m=np: -m.log(m.exp(-2 * (y + 0.7) ** 2) + 0.5 * m.exp(-4 * (y - 0.7) ** 2))
    beta, gamma, at, y = 2.0, 0.8, 0.3, np.linspace(-8, 8, 20001)

    def entropy(x):
        return -np.log(np.exp(-beta * (wells(y) + (x - y) ** 2 / (2 * gamma))).sum()) / beta

    slope = (entropy(at + 1e-4) - entropy(at - 1e-4)) / 2e-4
    x = chains(
        jax.grad(lambda y: wells(y, jnp)[0]), jnp.array([at]), 300, 8000,
        rate=0.02, temperature=1 / beta, coupling=1 / gamma,
    )  # fmt: skip
    np.testing.assert_allclose((at - x.mean()) / gamma, slope, atol=0.03)
    assert abs(slope) > 0.2


def test_heat_descends_the_gaussian_mean_of_the_loss():
    """Of cos it is exp(-variance / 2) cos, and of a quadratic itself plus a constant."""
    gradient = lambda y: H @ y - 5 * jnp.sin(y)
    variance = 0.3 * GAMMA
    x = chains(gradient, X, 41, 2000, variant="heat", temperature=0.3, rate=0.1)
    smoothed = H @ X - 5 * np.exp(-variance / 2) * jnp.sin(X)
    # The first of the gradients is at x itself.
    expected = X - 0.1 * (40 * smoothed + gradient(X)) / 41
    np.testing.assert_allclose(x.mean(0), expected, atol=4 * x.std(0).max() / 2000**0.5)
    assert np.abs(0.1 * (smoothed - gradient(X))).min() > 8 * x.std(0).max() / 2000**0.5


def test_the_mean_the_outer_step_and_the_scoping_follow_their_formulas():
    tx = optimizers.local_entropy(
        optax.sgd(0.1), 0.1, variant="hj", coupling=0.5, growth=0.5, period=2, decay=0.75, outer=0.3
    )
    x = np.asarray(X)
    for k in range(3):
        y = mean = x
        for _ in range(2):
            y = y - 0.1 * (np.asarray(H) @ y + 0.5 * 1.5**k * (y - x))
            mean = 0.75 * mean + 0.25 * y
        x = x - 0.3 * (x - mean)
    state, shown = after(tx, quadratic, X, 6)
    np.testing.assert_allclose(state.at_rest(shown), x, rtol=1e-5)
    np.testing.assert_allclose(shown, x, rtol=1e-5)


def test_replicas_take_turns_and_are_pulled_to_their_mean():
    """Elastic averaging, each with a momentum of its own; the gradient differs between calls."""
    options = {"variant": "hj", "period": 2, "coupling": 0.0, "decay": 0.0}
    inner = optax.sgd(0.1, momentum=0.9)
    tx = optimizers.local_entropy(inner, 0.1, replicas=3, elastic=0.2, **options)
    y, state = X, tx.init(X)
    x, velocity = np.stack([X] * 3), np.zeros((3, 2))
    for call in range(12):
        a = call // 2 % 3
        if call % 2 == 0:
            np.testing.assert_allclose(y, x[a], rtol=1e-5)
            z = x[a]
        updates, state = tx.update(H @ y + call, state, y)
        y = optax.apply_updates(y, updates)
        velocity[a] = 0.9 * velocity[a] + np.asarray(H) @ z + call
        z = z - 0.1 * velocity[a]
        if call % 2:
            x[a] = z - 0.2 * (x[a] - x.mean(0))
        np.testing.assert_allclose(state.at_rest(y), x.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"variant": "head"}, "No variant 'head'; choose one of entropy, hj, heat"),
        ({"period": 0}, "local_entropy: period = 0; it must be a whole number, 1 or"),
        ({"replicas": 2.0}, "local_entropy: replicas = 2.0; it must be a whole"),
        ({"decay": 1.0}, "local_entropy: decay = 1.0; it must be less than 1"),
        ({"temperature": -1.0}, "local_entropy: temperature = -1.0; .* finite"),
        ({"outer": 0.0}, "local_entropy: outer = 0.0; it must be greater than 0"),
        ({"variant": "heat", "coupling": 0.0}, "coupling = 0.0; heat has variance"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        optimizers.local_entropy(optax.sgd(0.1), 0.1, **options)


def test_the_noise_of_heat_shrinks_as_its_scoping_grows():
    """The variance of y - x is temperature / (coupling (1 + growth)^k) in round k."""
    options = {"coupling": 4.0, "temperature": 1.0, "period": 2, "growth": 3.0}
    tx = optimizers.local_entropy(optax.sgd(0.0), 0.0, variant="heat", **options)
    y = jnp.zeros(20_000)
    state, deviations = tx.init(y), []
    for _ in range(6):
        updates, state = tx.update(jnp.zeros_like(y), state, y)
        y = optax.apply_updates(y, updates)
        deviations.append(float(y.std()))
    expected = [0.5 * 4 ** (-(call // 2) / 2) for call in range(1, 7)]
    np.testing.assert_allclose(deviations, expected, rtol=0.03)


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_noise_falls_with_the_rate_which_counts_each_replicas_own_calls(replicas):
    """Of call c of round k the deviation is `sqrt(2 temperature rate(k period + c))`."""
    rate = lambda step: 0.1 * 0.5 ** jnp.float32(step)
    tx = optimizers.local_entropy(
        optax.sgd(0.0), rate, coupling=0.0, temperature=0.3, period=2, replicas=replicas
    )
    y, update = jnp.zeros(20_000), jax.jit(tx.update)
    state, found = tx.init(y), []
    for call in range(6):
        updates, state = update(jnp.zeros_like(y), state, y)
        y = optax.apply_updates(y, updates)
        if call % 2 == 0:  # after the others the weights move
            found.append(float(updates.std()))
    own = [0, 2, 4] if replicas == 1 else [0, 0, 2]
    np.testing.assert_allclose(found, [(2 * 0.3 * rate(step)) ** 0.5 for step in own], rtol=0.03)
