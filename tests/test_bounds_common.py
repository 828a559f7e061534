"""Proved bounds of what networks are written with besides layers and activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from lipreg.lipschitz import declare
from lipreg.lipschitz.bounds import interval, lipschitz

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(6, 6)), jnp.float32)
X = jnp.asarray(RNG.uniform(size=(2, 6)), jnp.float32)
NORM = np.linalg.norm(W, 2)


def steepest(f, x, eps, count=64):
    """The largest spectral norm of the Jacobian at points of the balls around x."""
    away = RNG.normal(size=(count, *x.shape))
    away *= eps / np.linalg.norm(away, axis=-1, keepdims=True)
    points = jnp.clip(x[None] + jnp.asarray(away, x.dtype), 0.0, 1.0).reshape(-1, 1, x.shape[1])
    rows = jax.jit(jax.vmap(jax.jacrev(f)))(points).reshape(len(points), -1, x.shape[1])
    return np.linalg.norm(rows, 2, axis=(1, 2)).reshape(count, -1).max(0)


# Thresholds: a kink or a jump at any number.


def soft(x, t):
    return jnp.where(x > t, x - t, jnp.where(x < -t, x + t, 0.0))


@pytest.mark.parametrize(
    ("f", "constant"),
    [
        (lambda x: jnp.where(x > 0.3, x, 0.3), 1.0),
        (lambda x: soft(x - 0.4, 0.17), 1.0),
        (lambda x: jnp.where(jnp.abs(x - 0.5) > 0.3, 2 * jnp.abs(x - 0.5), 0.6), 2.0),
        (lambda x: soft(x, jnp.linspace(0.0, 0.9, 6)[None]), 1.0),
        (lambda x: jnp.where(x == 0.3, 0.3, x), 1.0),
        (lambda x: jnp.where((x > 0.1) & ~(x >= 0.7), x, jnp.clip(x, 0.1, 0.7)), 1.0),
        (lambda x: jnp.where((x < 0.21) | (x == 0.4), 0 * x, jax.nn.relu(x - 0.21)), np.inf),
        (lambda x: jnp.where(x > 0.3, x, 0.31), np.inf),
        (lambda x: jnp.where(x == 0.3, 0.4, x), np.inf),
        (lambda x: (x > 0.3).astype(x.dtype), np.inf),
        (lambda x: (x > -0.3).astype(x.dtype), 0.0),
        (lambda x: (x - 0.3) * (x > 0.3).astype(x.dtype), 1.0),
        (lambda x: (x - 0.2) * (x > 0.3).astype(x.dtype), np.inf),
        (lambda x: 3 * x * (x > 0.0).astype(x.dtype) * jnp.minimum(x, 0.5), 3.0),
        (lambda x: jnp.where(jnp.maximum(x, 0.3) == 0.3, 0.0, 1.0), np.inf),
    ],
)
def test_cases_count_by_what_they_are_where_they_meet(f, constant):
    np.testing.assert_allclose(lipschitz(f, X).output, constant, rtol=1e-5)
    local = lipschitz(f, X, 0.05).output
    assert (local <= lipschitz(f, X).output).all()
    assert (steepest(f, X, 0.05) <= local * (1 + 1e-5)).all()


def test_a_threshold_outside_of_the_ball_costs_nothing():
    f = lambda x: jnp.where(x > 0.3, 1.0, 0.0)
    x = jnp.asarray([[0.5], [0.35]])
    np.testing.assert_array_equal(lipschitz(f, x, 0.1).output, [0.0, jnp.inf])


# Functions of one number.


@pytest.mark.parametrize(
    ("f", "constant"),
    [
        (lambda x: x**1.5, 1.5),
        (lambda x: (x + 1.0) ** -2, 2.0),
        (lambda x: (x + 0.5) ** -0.5, 0.5 * 0.5**-1.5),
        (lambda x: (x - 0.5) ** jnp.float32(3.0), 0.75),
        (lambda x: (x - 2.0) ** jnp.float32(-1.0), 1.0),
        (lambda x: x**0.5, np.inf),
        (lambda x: (x - 0.5) ** -2, np.inf),
        (lambda x: 2.0**x, 2 * np.log(2)),
        (lambda x: jnp.sin(3 * x), 3.0),
        (lambda x: jnp.cos(x), np.sin(1)),
        (lambda x: jnp.arctan(5 * x - 2), 5.0),
        (lambda x: jnp.arcsinh(x + 1), 2**-0.5),
    ],
)
def test_powers_and_waves_have_their_largest_slope(f, constant):
    np.testing.assert_allclose(lipschitz(f, X).output, constant, rtol=1e-5)
    low, high = interval(f, X - X % 0.25, X - X % 0.25 + 0.25)
    assert (low <= f(X)).all()
    assert (f(X) <= high).all()


def test_a_wave_that_turns_inside_of_an_interval_reaches_one():
    ends = jnp.asarray([[1.5, 4.7, 0.1, 1e6, -3.2]]), jnp.asarray([[1.6, 4.8, 0.2, 2e6, -3.1]])
    low, high = interval(jnp.sin, *ends)
    np.testing.assert_allclose(
        high, [[1.0, np.sin(4.8), np.sin(0.2), 1.0, np.sin(-3.2)]], rtol=1e-5
    )
    np.testing.assert_allclose(
        low, [[np.sin(1.5), -1.0, np.sin(0.1), -1.0, np.sin(-3.1)]], rtol=1e-5
    )


def test_one_curve_after_another_is_bounded_as_one_function():
    """By boxes the first has the slope 4.4e5, the second 4.4e5."""
    for f, most in (
        (lambda x: jnp.log1p(jnp.exp(20 * x - 10)), 6.0),
        (lambda x: 1 / (1 + jnp.exp(10 - 20 * x)), 1.2),
    ):
        exact = 20.0 if most == 6.0 else 5.0
        assert exact * (1 - 1e-4) <= lipschitz(f, X).output[0] <= exact * most


# Loops, branches, sums.


def test_a_loop_has_the_bound_of_its_turns_one_after_the_other():
    turn = lambda i, x: jnp.tanh(x @ W / 3 + i)
    loop = lambda x: lax.fori_loop(0, 3, turn, x)
    plain = lambda x: turn(2, turn(1, turn(0, x)))
    for eps in (np.inf, 0.1):
        a, b = lipschitz(loop, X, eps), lipschitz(plain, X, eps)
        np.testing.assert_allclose(a.output, b.output, rtol=1e-6)
        np.testing.assert_allclose(a.margins, b.margins, rtol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_columns_is_the_matrix_that_it_is(reverse):
    def f(x):
        step = lambda carry, column: ((carry + column) / 2, carry - column)
        last, out = lax.scan(step, jnp.ones(len(x)), x.T, reverse=reverse)
        return jnp.concatenate([last[:, None], out.T], 1)

    matrix = jax.jacobian(lambda x: f(x[None])[0])(X[0])
    found = lipschitz(f, X[:1]).output[0]
    assert np.linalg.norm(matrix, 2) <= found * (1 + 1e-6)
    assert found <= 4 * np.linalg.norm(matrix, 2)


def test_a_loop_without_turns_or_with_too_many():
    same = lambda x: lax.scan(lambda c, _: (2 * c, c), x, None, length=0)[0]
    np.testing.assert_allclose(lipschitz(same, X).output, 1.0, rtol=1e-5)
    long = lambda x: lax.fori_loop(0, 1001, lambda _, x: x / 2, x)
    with pytest.raises(ValueError, match=r"'scan' of 1001 turns; .*declare.* at most 1000"):
        lipschitz(long, X)
    while_ = lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1]
    with pytest.raises(ValueError, match="No bound for 'while'"):
        lipschitz(while_, X)


def test_a_function_declared_in_a_loop_is_looked_at_in_each_turn():
    half = declare(lambda x: x / 2, 0.5, proof="x / 2")
    loop = lambda f: lambda x: lax.fori_loop(0, 3, lambda _, x: f(x), x)
    np.testing.assert_allclose(lipschitz(loop(half), X).output, 0.125, rtol=1e-5)
    with pytest.raises(ValueError, match=r"difference quotient of 0\.5"):
        lipschitz(loop(declare(lambda x: x / 2, 0.4)), X)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_cumulative_sum_has_the_norm_of_its_triangle(axis, reverse):
    f = lambda x: lax.cumsum(x.reshape(-1, 3, 2), axis, reverse).reshape(len(x), -1)
    exact = np.linalg.norm(np.tri((3, 2)[axis - 1]), 2)
    np.testing.assert_allclose(lipschitz(f, X).output, exact, rtol=1e-5)


def test_entries_that_are_set_are_constant_and_the_others_as_they_were():
    covered = lambda x: x.at[:, jnp.array([1, 4])].set(7.0, unique_indices=True) @ W
    exact = np.linalg.norm(np.delete(W, [1, 4], 0), 2)
    np.testing.assert_allclose(lipschitz(covered, X).output, exact, rtol=1e-5)
    padded = lambda x: jnp.ones((len(x), 9)).at[:, 2:8].set(2 * x)
    np.testing.assert_allclose(lipschitz(padded, X).output, 2.0, rtol=1e-5)
    both = lambda x: x.at[:, :3].set(x[:, 3:])
    assert np.sqrt(2) <= lipschitz(both, X).output[0] * (1 + 1e-6)
    twice = lambda x: x.at[:, jnp.array([1, 1])].set(x[:, :2])
    with pytest.raises(ValueError, match=r"'scatter' that may write twice.*unique_indices=True"):
        lipschitz(twice, X)


def test_sums_over_segments_have_the_norm_of_their_matrix():
    ids = jnp.array([0, 0, 1, 2, 2, 2])
    sums = lambda x: jax.vmap(lambda row: jax.ops.segment_sum(row, ids, 4))(x)
    np.testing.assert_allclose(lipschitz(sums, X).output, np.sqrt(3), rtol=1e-5)
    added = lambda x: jnp.zeros((len(x), 6)).at[:, jnp.array([1, 1, 4])].add(2 * x[:, :3]) @ W
    exact = np.linalg.norm(2 * np.eye(6)[[1, 1, 4]] @ W, 2)
    np.testing.assert_allclose(lipschitz(added, X).output, exact, rtol=1e-5)
    outside = lambda x: x.at[:, jnp.array([0, 9])].add(x[:, 1:3])  # 9 is dropped
    np.testing.assert_allclose(lipschitz(outside, X).output, 2.0, rtol=1e-5)  # a sum of two
    transposed = lambda x: jax.grad(lambda x: jnp.square(x[:, ids]).sum() / 2)(x)
    np.testing.assert_allclose(lipschitz(transposed, X).output, 3.0, rtol=1e-5)


def test_a_branch_that_does_not_depend_on_x_counts_with_the_steeper():
    f = lambda x: lax.cond(W.sum() > 0, jnp.tanh, lambda x: 2 * x, x)
    np.testing.assert_allclose(lipschitz(f, X).output, 2.0, rtol=1e-5)
    with pytest.raises(ValueError, match="No bound for"):
        lipschitz(lambda x: lax.cond(x.sum() > 0, jnp.tanh, lambda x: 2 * x, x), X)


def test_a_layer_with_weights_for_each_place_has_the_largest_of_their_norms():
    w = jnp.asarray(RNG.normal(size=(3, 2, 4)), jnp.float32)
    exact = np.linalg.norm(w, 2, axis=(1, 2)).max()
    left = lambda x: jnp.einsum("bsi,sio->bso", x.reshape(-1, 3, 2), w).reshape(len(x), -1)
    right = lambda x: jnp.einsum("sio,bsi->sob", w, x.reshape(-1, 3, 2)).reshape(len(x), -1)
    for f in (left, right):
        np.testing.assert_allclose(lipschitz(f, X).output, exact, rtol=1e-5)
        first = lambda x, f=f: f(jax.nn.relu(x - 0.5))
        local = lipschitz(
            first, jnp.tile(jnp.float32([[0.9, 0.9, 0.1, 0.1, 0.1, 0.1]]), (2, 1)), 0.1
        )
        np.testing.assert_allclose(local.output, np.linalg.norm(w[0], 2), rtol=1e-5)


# Softmax and its relatives.


def logits(x):
    return 5 * (x @ W) - 2.0


def test_a_softmax_has_half_the_constant_of_its_logits():
    found = lipschitz(lambda x: jax.nn.softmax(logits(x)), X)
    np.testing.assert_allclose(found.output, 5 * NORM / 2, rtol=1e-5)
    even = lambda x: jax.nn.softmax(jnp.concatenate([x, -x], 1))  # attained at x = 0
    np.testing.assert_allclose(
        lipschitz(even, jnp.zeros((1, 1)), bounds=(-9.0, 9.0)).output, np.sqrt(2) / 2, rtol=1e-5
    )


def test_a_logsumexp_has_the_constant_of_its_logits_and_lies_above_their_maximum():
    f = lambda x: jax.nn.logsumexp(logits(x), axis=1, keepdims=True)
    np.testing.assert_allclose(lipschitz(f, X).output, 5 * NORM, rtol=1e-5)
    ends = jnp.zeros((1, 3)), jnp.float32([[1000.0, 2.0, 3.0]])
    low, high = interval(lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True), *ends)
    assert low[0, 0] >= -1e-5
    np.testing.assert_allclose(high[0, 0], 1000.0 + np.log(3), rtol=1e-5)


@pytest.mark.parametrize(
    "log",
    [jax.nn.log_softmax, lambda z: z - jax.nn.logsumexp(z, axis=1, keepdims=True)],
    ids=["log_softmax", "by hand"],
)
def test_a_log_softmax_has_the_margins_of_its_logits(log):
    for eps in (np.inf, 0.1):
        found, given = lipschitz(lambda x: log(logits(x)), X, eps), lipschitz(logits, X, eps)
        np.testing.assert_allclose(found.margins, given.margins, rtol=1e-5)
        np.testing.assert_allclose(found.output, np.sqrt(6) * 5 * NORM, rtol=1e-5)


def test_a_softmax_over_other_entries_than_its_sum_is_none():
    """Rows divided by the sums of columns, whose slope is more than half."""

    def f(x):
        e = jnp.exp(3 * x.reshape(-1, 2, 3)[..., :2])
        return (e / e.sum(1)[:, :, None]).reshape(len(x), -1)

    x = jnp.asarray([[0.0, 1.0, 0.5, 1.0, 0.0, 0.5]])
    assert lipschitz(f, x, 0.1).output[0] >= steepest(f, x, 0.1)[0]


# Normalisations.


def rms(x):
    return linen.RMSNorm(epsilon=0.01).apply({"params": {"scale": SCALE}}, x @ W)


def layer(x):
    return linen.LayerNorm(epsilon=0.01).apply({"params": {"scale": SCALE, "bias": SCALE}}, x @ W)


def slow_layer(x):
    module = linen.LayerNorm(epsilon=0.01, use_fast_variance=False)
    return module.apply({"params": {"scale": SCALE, "bias": SCALE}}, x @ W)


def group(x):
    module = nnx.GroupNorm(6, 2, epsilon=0.01, rngs=nnx.Rngs(0))
    return SCALE[None] * module(x @ W)


def deviation(z):
    return jnp.sqrt(jnp.square(z).mean(1, keepdims=True) + 0.01)


SCALE = jnp.asarray([1.0, -2.0, 0.5, 1.0, 0.0, 1.5])
NORMALISED = {
    "rms": rms,
    "after a bias": lambda x: SCALE[None] * (x @ W + 0.2) / deviation(x @ W + 0.2),
    "layer": layer,
    "slow layer": slow_layer,
    "group": group,
    "standardize": lambda x: SCALE[None] * jax.nn.standardize(x @ W, epsilon=0.01),
    "by hand": lambda x: (
        SCALE[None] * (x @ W) / jnp.sqrt(jnp.square(x @ W).mean(1, keepdims=True) + 0.01)
    ),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_a_normalisation_has_at_most_the_constant_of_its_smallest_deviation(name):
    f = NORMALISED[name]
    found = lipschitz(f, X).output
    assert (found <= 2 * NORM / 0.1 * (1 + 1e-5)).all()
    assert (found >= steepest(f, X, 0.5)).all()
    local = lipschitz(f, X, 0.02).output
    assert (local >= steepest(f, X, 0.02)).all()
    assert (local <= 4 * steepest(f, X, 0.02)).all()


@pytest.mark.parametrize(
    ("f", "constant"),
    [
        (lambda x: x / jnp.sqrt(jnp.square(x).sum(1, keepdims=True) + 0.25), 2.0),
        (lambda x: x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 0.25), 4.0),
        (lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 0.25), 4.0),
        (lambda x: x * jnp.linalg.norm(x, axis=1, keepdims=True), 2 * np.sqrt(6)),
    ],
)
def test_a_vector_over_its_length_has_its_constant(f, constant):
    np.testing.assert_allclose(lipschitz(f, X).output, constant, rtol=1e-4)


def over(sums):
    return lambda x: (x.reshape(-1, 2, 3)[..., :2] * sums(x.reshape(-1, 2, 3)[..., :2])).reshape(
        len(x), -1
    )


@pytest.mark.parametrize(
    "f",
    [
        over(lambda v: lax.rsqrt(jnp.square(v).sum(1)[:, :, None] + 1e-4)),  # across
        over(lambda v: lax.rsqrt(jnp.square(v[:, ::-1]).sum(2, keepdims=True) + 1e-4)),  # another's
        lambda x: (
            (x - x.sum(1, keepdims=True) / 5)
            / jnp.sqrt(
                jnp.square(x).mean(1, keepdims=True) - jnp.square(x.sum(1, keepdims=True) / 5) + 2
            )
        ),
    ],
)
def test_what_is_divided_by_other_sums_is_no_normalisation(f):
    x = jnp.asarray([[0.9, 0.0, 0.3, 0.02, 0.01, 0.5], [0.5] * 6])
    for eps in (0.01, 0.1):
        found = lipschitz(f, x, eps).output
        assert (found >= steepest(f, x, eps) * (1 - 1e-5)).all()
