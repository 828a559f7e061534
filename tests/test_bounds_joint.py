"""Bounds of what is one map of several values: 1-Lipschitz layers have the constant 1."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_programs import batched

from lipreg.lipschitz import declare
from lipreg.lipschitz.bounds import interval, lipschitz

RNG = np.random.default_rng(0)
NUMBERS = ("NHWC", "HWIO", "NHWC")
X = jnp.full((1, 8), 0.5)
IMAGE = jnp.full((1, 32), 0.5)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def orthogonal(n):
    return jnp.asarray(np.linalg.qr(RNG.normal(size=(n, n)))[0], jnp.float32)


ROTATIONS = [orthogonal(8) for _ in range(3)]


def dense(x):
    """The matrix of a linear map of vectors as long as x."""
    return lambda f: np.asarray(jax.vmap(lambda v: f(v[None])[0])(jnp.eye(x.size)))


# Activations that sort, as people write them.


def halves(x):
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b)], -1)


def neighbours(x):
    high = jnp.maximum(x[..., ::2], x[..., 1::2])
    return jnp.stack([high, jnp.minimum(x[..., ::2], x[..., 1::2])], -1).reshape(x.shape)


def reduced(x):
    pairs = x.reshape(len(x), -1, 2)
    return jnp.concatenate([pairs.max(-1), pairs.min(-1)], -1)


def group_sort(x):
    return jnp.sort(x.reshape(len(x), -1, 4), -1).reshape(x.shape)


def chosen(x):
    a, b = x[:, :4], x[:, 4:]
    return jnp.concatenate([jnp.where(a > b, a, b), jnp.where(a > b, b, a)], -1)


def turned(x):
    a, b = x[:, :4], x[:, 4:]
    return jnp.concatenate([jnp.maximum(a, b), -jnp.maximum(-a, -b)], -1)


def rotated(x):
    middle, half = (x[:, :4] + x[:, 4:]) / 2, (x[:, :4] - x[:, 4:]) / 2
    return jnp.concatenate([middle + jnp.abs(half), middle - jnp.abs(half)], -1)


def both_signs(x):
    half = x[:, :4]
    return jnp.concatenate([jax.nn.relu(half), jax.nn.relu(-half)], -1)


SORTING = (halves, neighbours, reduced, group_sort, chosen, turned, rotated, both_signs, jnp.abs)


@pytest.mark.parametrize("act", SORTING, ids=lambda act: act.__name__)
def test_a_sorting_activation_between_rotations_leaves_the_constant_1(act):
    def f(x):
        for w in ROTATIONS[:2]:
            x = act(x @ w + 0.1)
        return x

    np.testing.assert_allclose(lipschitz(f, X).output, 1.0, rtol=1e-5)


def test_pieces_that_share_entries_count_as_often_as_they_do():
    """x_0 .. x_4 and x_3 .. x_7 share two entries, whose maximum and minimum move together."""
    f = lambda x: jnp.concatenate([jnp.maximum(x[:, :5], x[:, 3:]), x[:, :4]], 1)
    found = lipschitz(f, X).output[0]
    corners = [np.eye(8)[[*order, *range(4)]] for order in ([3, 4, 5, 3, 4], [0, 1, 2, 3, 4])]
    assert max(np.linalg.norm(j, 2) for j in corners) <= found * (1 + 1e-6)
    assert found <= 2.0


def test_a_comparison_of_two_values_can_only_choose_between_them():
    a, b = (lambda x: x[:, :4]), (lambda x: x[:, 4:])
    with pytest.raises(ValueError, match="'select_n' of several values"):
        lipschitz(lambda x: jnp.where(a(x) > b(x), a(x), 2 * b(x)), X)
    with pytest.raises(ValueError, match=r"'convert_element_type' of several values|No bound"):
        lipschitz(lambda x: (a(x) > b(x)).astype(x.dtype), X)


def test_a_norm_of_groups_has_the_constant_1():
    window = (1, 2, 2, 1)

    def pooled(x):
        x = x.reshape(1, 4, 4, 2)
        return jnp.sqrt(lax.reduce_window(x * x, 0.0, lax.add, window, window, "VALID") + 1e-12)

    flat = lambda x: pooled(x).reshape(1, -1)
    np.testing.assert_allclose(lipschitz(flat, IMAGE).output, 1.0, rtol=1e-5)
    norm = lambda x: 3 * jnp.linalg.norm(x.reshape(1, 2, 4), axis=-1)
    np.testing.assert_allclose(lipschitz(norm, X).output, 3.0, rtol=1e-5)


# Residual layers: SLL and CPL, in the ways that they are written.


def sll_weights(w):
    return 1 / (jnp.abs(w @ w.T).sum(1) + 1e-6)


W = normal(6, 8)
T = sll_weights(W)
RESIDUALS = {
    "scale outside": lambda x: x - 2 * (T[None] * jax.nn.relu(x @ W.T + 0.1)) @ W,
    "scale inside": lambda x: x + jax.nn.relu(x @ W.T + 0.1) @ (-2 * T[:, None] * W),
    "a square root on both sides": lambda x: (
        x - 2 * jax.nn.softplus(x @ (jnp.sqrt(T)[:, None] * W).T) @ (jnp.sqrt(T)[:, None] * W)
    ),
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_a_residual_layer_has_the_constant_1_as_its_weights_prove(name):
    np.testing.assert_allclose(lipschitz(RESIDUALS[name], X).output, 1.0, rtol=1e-5)


def test_a_residual_layer_whose_condition_fails_has_the_constant_that_it_has():
    """`1 - s w w^T` for a unit that is on: of norm `max(1, s ||w||^2 - 1)`."""
    w = normal(8)[None]
    square = float(jnp.square(w).sum())
    f = lambda x: x - 5 / square * jax.nn.relu(x @ w.T + 99.0) @ w
    np.testing.assert_allclose(lipschitz(f, X).output, 4.0, rtol=1e-5)
    # With another matrix behind the units it is no such layer.
    other = lambda x: x - 2 * (T[None] * jax.nn.relu(x @ W.T)) @ W[::-1]
    rows = jax.vmap(jax.jacrev(lambda v: other(v[None])[0]))(jnp.float32(RNG.uniform(size=(64, 8))))
    assert 1.1 < np.linalg.norm(rows, 2, axis=(1, 2)).max() <= lipschitz(other, X).output[0]


def test_a_residual_around_another_value_is_no_such_layer():
    """`w - w^T D w (2 x)` and an image that is padded with twice itself: what looks alike."""
    w = normal(1, 8)
    w = w / jnp.linalg.norm(w)
    f = lambda x: x - 2 * jax.nn.relu((2 * x) @ w.T + 9.0) @ w  # 1 - 4 w w^T
    assert lipschitz(f, X).output[0] >= 3

    def g(x):
        x = x.reshape(1, 1, 8)
        x = jnp.concatenate([4 * x[..., -1:], x, 4 * x[..., :1]], -1)
        return lax.conv_general_dilated(x, jnp.ones((1, 1, 3)), (1,), "VALID").reshape(1, -1)

    assert np.linalg.norm(dense(X)(g), 2) <= lipschitz(g, X).output[0]


KERNEL = normal(3, 3, 2, 3)


def zero_padded(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)


def wrapped(x, w):
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NUMBERS)


@pytest.mark.parametrize("conv", [zero_padded, wrapped])
def test_a_convolutional_residual_layer_has_the_constant_1(conv):
    scale = 0.5 / jnp.square(jnp.abs(KERNEL).sum())

    def f(x):
        x = x.reshape(1, 4, 4, 2)
        inner = scale * jax.nn.relu(conv(x, KERNEL) + 0.1)
        return (x - 2 * conv(inner, jnp.flip(KERNEL, (0, 1)).swapaxes(2, 3))).reshape(1, -1)

    np.testing.assert_allclose(lipschitz(f, IMAGE).output, 1.0, rtol=1e-5)


def test_a_convolution_of_a_stride_and_a_dilation_is_no_transpose_of_another():
    numbers = ("NWC", "WIO", "NWC")
    w = jnp.array([0.5, 0.0, -0.5]).reshape(3, 1, 1)

    def conv(x, w):  # of two pixels, to two
        return lax.conv_general_dilated(
            x, w, (3,), [(1, 2)], lhs_dilation=(2,), dimension_numbers=numbers
        )

    def f(x):
        x = x.reshape(len(x), 2, 1)
        return (x - 2 * conv(jax.nn.relu(conv(x, w)), w[::-1])).reshape(len(x), 2)

    x = jnp.full((1, 2), 0.5)
    slope = np.linalg.norm(jax.jacrev(lambda v: f(v[None])[0])(x[0]), 2)
    assert slope == pytest.approx(1.5)
    assert lipschitz(f, x, bounds=(-1, 1)).output >= slope


def test_a_sandwich_layer_has_the_constant_1():
    """`sqrt(2) A^T relu(sqrt(2) B x)` with `A A^T + B B^T = 1` (2301.11526)."""
    both = np.linalg.qr(RNG.normal(size=(12, 5)))[0] * math.sqrt(2)
    b, a = jnp.asarray(both[:8], jnp.float32), jnp.asarray(both[8:], jnp.float32)
    f = lambda x: jax.nn.relu(x @ b + 0.1) @ a.T
    found, product = lipschitz(f, X).output[0], np.linalg.norm(a, 2) * np.linalg.norm(b, 2)
    assert found <= 1 + 1e-5 < product
    # Exact where one direction of a unit is as long on both sides: ||b_i|| ||a_i|| / 2 + ... = 1.
    one = lambda x: 3 * jax.nn.relu(x[:, :1] + 9.0) @ jnp.ones((1, 1))
    np.testing.assert_allclose(lipschitz(one, X).output, 3.0, rtol=1e-5)


# Convolutions on a torus and with strides: exact.


def test_an_orthogonal_circular_convolution_has_the_constant_1():
    """Cayley's map for each frequency (2104.07167)."""
    waves = np.fft.fft2(RNG.normal(size=(3, 3, 2, 2)), (4, 4), (0, 1))
    skew, one = waves - waves.conj().swapaxes(-1, -2), np.eye(2)
    kernel = np.fft.ifft2(np.linalg.solve(one + skew, one - skew), axes=(0, 1)).real
    kernel = jnp.asarray(kernel, jnp.float32)

    def f(x):
        x = jnp.pad(x.reshape(1, 4, 4, 2), ((0, 0), (2, 1), (2, 1), (0, 0)), mode="wrap")
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS)
        return jnp.abs(x).reshape(1, -1)

    np.testing.assert_allclose(lipschitz(f, IMAGE).output, 1.0, rtol=1e-5)


STRIDED = {
    "a stride": {"window_strides": (2, 2), "padding": "SAME"},
    "a stride of 3": {"window_strides": (3, 3), "padding": [(2, 1), (0, 3)]},
    "a dilated image": {"window_strides": (1, 1), "lhs_dilation": (2, 2), "padding": [(1, 2)] * 2},
    "both": {"window_strides": (2, 1), "lhs_dilation": (3, 2), "padding": [(2, 2), (2, 2)]},
}


@pytest.mark.parametrize("name", STRIDED)
def test_phases_of_a_stride_are_channels(name):
    kernel = normal(3, 3, 1, 2)

    def f(x):
        x = x.reshape(1, 10, 10, 1)
        y = lax.conv_general_dilated(x, kernel, dimension_numbers=NUMBERS, **STRIDED[name])
        return y.reshape(1, -1)

    x = jnp.full((1, 100), 0.5)
    exact = np.linalg.norm(dense(x)(f), 2)
    found = lipschitz(f, x).output[0]
    assert exact <= found * (1 + 1e-5)
    assert found <= exact * (2.1 if name == "both" else 1.1)


def test_the_fourier_bound_is_never_above_the_gram_iteration_of_the_kernel():
    """2305.16173: `||K||^(2^-k)` of the kernel correlated with itself, as an infinite image."""
    power, scale = np.asarray(KERNEL, np.float64).transpose(3, 2, 0, 1), 1.0
    for k in range(4):
        sides = [2 * n - 1 for n in power.shape[2:]]
        waves = np.fft.fft2(power, sides)
        gram = np.einsum("oiab,ojab->ijab", waves.conj(), waves)
        size = np.abs(gram).max()
        power, scale = np.fft.ifft2(gram / size).real, scale * size ** (0.5 ** (k + 1))
        power = np.fft.fftshift(power, (2, 3))
    gram_bound = scale * np.linalg.norm(power, axis=(0, 1)).sum() ** (0.5**4)
    f = lambda x: zero_padded(x.reshape(1, 4, 4, 2), KERNEL).reshape(1, -1)
    found = lipschitz(f, IMAGE).output[0]
    assert np.linalg.norm(dense(IMAGE)(f), 2) <= found <= gram_bound * (1 + 1e-6)


# Ellipsoids: ECLipsE-Fast.


def mlp(weights, act=jax.nn.relu):
    def f(x):
        for w in weights[:-1]:
            x = act(x @ w)
        return x @ weights[-1]

    return f


def eclipse_fast(weights):
    """2404.04375, section 4, as written."""
    x = np.eye(len(weights[0]))
    *hidden, last = (np.float64(w.T) for w in weights)
    for w in hidden:
        p = w @ np.linalg.inv(x) @ w.T
        step = 2 / np.linalg.eigvalsh(p)[-1]
        x = step * np.eye(len(p)) - step**2 / 4 * p
    return math.sqrt(np.linalg.eigvalsh(last @ np.linalg.inv(x) @ last.T)[-1])


def test_a_random_network_of_dense_layers_has_the_bound_of_eclipse_fast_or_less():
    weights = [normal(16, 16) / 4 for _ in range(4)] + [normal(16, 3) / 4]
    found = lipschitz(mlp(weights), jnp.zeros((1, 16)), bounds=(-1.0, 1.0)).output[0]
    product = np.prod([np.linalg.norm(w, 2) for w in weights])
    assert found <= eclipse_fast(weights) * (1 + 1e-5)
    assert product / found >= 1.5
    points = jnp.asarray(RNG.uniform(-1, 1, (256, 16)), jnp.float32)
    rows = jax.vmap(jax.jacrev(lambda v: mlp(weights)(v[None])[0]))(points)
    assert np.linalg.norm(rows, 2, axis=(1, 2)).max() <= found


@pytest.mark.parametrize("act", [jax.nn.relu, jnp.tanh, jnp.abs, jax.nn.leaky_relu])
def test_the_bound_of_dense_layers_on_a_ball_grows_with_it_and_holds_within(act):
    weights = [normal(12, 16) / 3, normal(16, 16) / 4, normal(16, 3) / 4]
    f, x, radii = mlp(weights, act), normal(1, 12) / 3, (0.01, 0.1, 0.5, 2.0)
    everywhere = lipschitz(f, x, bounds=(-10.0, 10.0)).output[0]
    near = [lipschitz(f, x, eps, bounds=(-10.0, 10.0)).output[0] for eps in radii]
    away = RNG.normal(size=(500, 12))
    away /= np.linalg.norm(away, axis=1, keepdims=True) * RNG.uniform(size=(500, 1)) ** -0.2
    slopes = jax.jit(jax.vmap(jax.jacrev(lambda v: f(v[None])[0])))
    for eps, bound in zip(radii, near, strict=True):
        rows = np.asarray(slopes(x + jnp.asarray(eps * away, jnp.float32)))
        steepest = np.linalg.norm(rows, 2, axis=(1, 2)).max()
        assert steepest <= bound * (1 + 1e-5)
        assert bound <= 2 * steepest or eps > 0.01
    assert (np.diff([*near, everywhere]) >= -1e-6 * everywhere).all()
    assert near[0] < 0.9 * everywhere


def test_linear_layers_one_after_the_other_are_the_matrix_that_they_make():
    weights = [normal(8, 6), normal(6, 8), normal(8, 3)]
    exact = np.linalg.multi_dot([np.asarray(w) for w in weights])
    found = lipschitz(mlp(weights, lambda x: x + 1.0), X)
    np.testing.assert_allclose(found.output, np.linalg.norm(exact, 2), rtol=1e-5)
    gaps = np.linalg.norm(exact.T[:, None] - exact.T[None], axis=-1)
    np.testing.assert_allclose(found.margins[0], gaps, rtol=1e-4, atol=1e-4)
    # So are layers between which no unit changes its state, on a small ball.
    act = jax.nn.relu
    on = np.linalg.norm(jax.jacrev(lambda v: mlp(weights, act)(v[None])[0])(X[0] + 0.01), 2)
    np.testing.assert_allclose(lipschitz(mlp(weights, act), X + 0.01, 1e-5).output, on, rtol=1e-4)


# Constants that are declared.


def test_a_declared_constant_counts_as_what_it_rests_on():
    mean = lambda x: jnp.cumsum(x, 1) / 6  # of norm 0.86
    weights = normal(8, 3)
    f = lambda proof: lambda x: jax.nn.relu(declare(mean, 1.0, proof=proof)(x)) @ weights
    proved, told = lipschitz(f("||A||_F = 1"), X), lipschitz(f(""), X)
    assert (proved.kind, told.kind) == ("certified", "estimate")
    np.testing.assert_allclose(proved.output, np.linalg.norm(weights, 2), rtol=1e-5)
    np.testing.assert_array_equal(proved.margins, told.margins)
    low, high = interval(f("||A||_F = 1"), X, X)
    assert jnp.isinf(high - low).all()


def test_a_declared_constant_that_is_too_small_is_refused():
    mean = lambda x: jnp.cumsum(x, 1) / 4  # of norm 1.3
    whole = lambda x: jax.jit(lambda x: declare(mean, 1.0, proof="none")(2 * x))(x)
    with pytest.raises(ValueError, match=r"constant 1, but .* difference quotient of 1\.\d"):
        lipschitz(whole, X)
    with pytest.raises(ValueError, match="constant is -1"):
        declare(mean, -1.0)


def test_a_function_declared_for_a_platform_is_looked_at_as_all_are():
    on = lambda f, other: jax.jit(lambda x: lax.platform_dependent(x + 1, cpu=f, default=other))
    right, wrong = (declare(lambda x: 2 * x, c, proof="none") for c in (2.0, 0.5))
    for f, other in ((wrong, right), (right, wrong)):
        with pytest.raises(ValueError, match=r"constant 0\.5, but .* difference quotient of 2"):
            lipschitz(on(f, other), X)
    told = lipschitz(on(right, declare(lambda x: 2 * x, 2.0)), X)
    assert told.kind == "estimate"
    np.testing.assert_allclose(told.output, 2, rtol=1e-5)


def test_a_declared_function_computes_and_differentiates_as_before():
    """In its parameters, too, under jit and vmap."""
    f = lambda w, x: declare(lambda x: jnp.tanh(x * w), 3.0)(x).sum()
    g = lambda w, x: jnp.tanh(x * w).sum()
    for make in (jax.grad, lambda f: jax.jit(jax.hessian(f))):
        np.testing.assert_allclose(make(f)(2.0, X), make(g)(2.0, X), rtol=1e-6)
    one = lambda x: declare(jnp.tanh, 1.0)(x[None])[0]
    np.testing.assert_allclose(jax.vmap(one)(X), jnp.tanh(X), rtol=1e-6)


def test_what_has_no_rule_says_how_to_declare_it():
    with pytest.raises(
        ValueError, match=r"'cumprod' .* on x: lipreg.lipschitz.declare the constant"
    ):
        lipschitz(batched(partial(jnp.cumprod)), X)
