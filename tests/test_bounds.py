"""lipreg.lipschitz.bounds: exact on linear maps, and never below what points and gradients show."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from lipreg import models
from lipreg.convolution import conv
from lipreg.lipschitz.bounds import interval, lipschitz
from lipreg.models.layers import pooled

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SLACK = 1 + 1e-5


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.normal(size=shape), jnp.float32)


def uniform(*shape):
    return jnp.asarray(RNG.uniform(size=shape), jnp.float32)


def jacobians(f, x):
    """`[B, K, pixels]`."""
    rows = jax.vmap(jax.jacrev(lambda u: f(u[None])[0]))(x)
    return np.asarray(rows).reshape(len(x), rows.shape[1], -1)


def spread(rows):
    """`||a_j - a_k||_2` of rows `[..., K, n]`."""
    return np.linalg.norm(rows[..., :, None, :] - rows[..., None, :, :], axis=-1)


def spectral(f, x):
    return np.linalg.norm(jacobians(f, x), 2, axis=(1, 2))


# Exact.

W = normal(12, 4)
X = uniform(3, 2, 2, 3)


def linear(x):
    return x.reshape(len(x), -1) @ W + 1.0


@pytest.mark.parametrize("eps", [np.inf, 0.1])
def test_a_linear_map_has_its_spectral_norm_and_its_margins_those_of_differences(eps):
    found = lipschitz(linear, X, eps)
    assert found.kind == "certified"
    np.testing.assert_allclose(found.output, [np.linalg.norm(W, 2)] * 3, rtol=1e-5)
    np.testing.assert_allclose(found.margins, [spread(np.asarray(W.T))] * 3, rtol=1e-5)


def test_the_interval_of_a_linear_map_is_attained():
    low, high = X - 0.1, X + jnp.linspace(0.0, 0.3, 12).reshape(1, 2, 2, 3)
    bounds = jax.jit(partial(interval, linear))(low, high)
    best = jnp.where(W.T[None] > 0, high.reshape(3, 1, -1), low.reshape(3, 1, -1))
    worst = jnp.where(W.T[None] > 0, low.reshape(3, 1, -1), high.reshape(3, 1, -1))
    expected = [(corner * W.T[None]).sum(2) + 1.0 for corner in (worst, best)]
    np.testing.assert_allclose(bounds, expected, rtol=1e-5, atol=1e-6)


def test_a_normalisation_joins_the_weights_before_it():
    scale = jnp.asarray([[0.0, 3.0, -1.0, 0.1]])
    found = lipschitz(lambda x: (linear(x) - 2.0) * scale / 2.0 + 1.0, X)
    exact = np.asarray(W * scale / 2)
    np.testing.assert_allclose(found.output, np.linalg.norm(exact, 2), rtol=1e-5)
    np.testing.assert_allclose(found.margins[0], spread(exact.T), rtol=1e-5, atol=1e-7)


def test_a_relu_network_whose_units_are_fixed_has_the_norm_of_what_is_left():
    """Units 0 and 1 on, 2 and 3 off, on all of the box: the last layer sees two units."""
    shift = jnp.asarray([[30.0, 30.0, -30.0, -30.0]])
    out = normal(4, 3)
    f = lambda x: jax.nn.relu(x.reshape(len(x), -1) @ W + shift) @ out
    found, exact = lipschitz(f, X), jacobians(f, X[:1])
    first, last = (np.linalg.norm(a, 2) for a in (W, out[:2]))
    assert np.linalg.norm(exact[0], 2) <= found.output[0] <= first * last * SLACK
    assert (spread(exact[0]) <= found.margins[0] * SLACK).all()
    assert (found.margins[0] <= first * spread(np.asarray(out[:2].T)) * SLACK).all()
    # Alone behind an orthogonal layer, it is exact.
    rotation = jnp.asarray(np.linalg.qr(np.asarray(normal(12, 12)))[0][:, :4])
    g = lambda x: jax.nn.relu(x.reshape(len(x), -1) @ rotation + shift) @ out
    np.testing.assert_allclose(lipschitz(g, X[:1]).output, spectral(g, X[:1]), rtol=1e-5)


def test_a_normalisation_between_two_layers_counts_once():
    scale, out = jnp.asarray([[3.0, -4.0, 2.0, 0.5]]), normal(4, 3)
    f = lambda x: jax.nn.relu(x.reshape(len(x), -1) @ W * scale + 99.0) @ out
    found = lipschitz(f, X[:1]).output[0]
    product = np.linalg.norm(W * scale, 2) * np.linalg.norm(out, 2)
    assert spectral(f, X[:1])[0] <= found * SLACK
    assert found <= product * SLACK


def test_a_unit_counts_from_the_radius_on_at_which_it_is_reached():
    """It is off at x, and on from distance 0.09 on."""
    x = jnp.full((2, 4), 0.5)
    way = jnp.asarray([[0.5], [-0.5], [0.5], [-0.5]])
    f = lambda x: jax.nn.relu(x @ way - 0.09)
    np.testing.assert_allclose(lipschitz(f, x, jnp.asarray([0.08, 0.1])).output, [0, 1], rtol=1e-5)


def test_a_sum_of_two_ways_adds_their_constants():
    square = normal(12, 12)
    f = lambda x: x.reshape(len(x), -1) + jnp.tanh(x.reshape(len(x), -1) @ square)
    np.testing.assert_allclose(lipschitz(f, X).output, 1 + np.linalg.norm(square, 2), rtol=1e-5)


def test_averages_and_maxima_over_windows_have_their_norms():
    image = uniform(1, 4, 4, 2)
    flat = lambda v: v.reshape(len(v), -1)
    window = (1, 2, 2, 1)
    mean = lambda x: flat(jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / 4)
    np.testing.assert_allclose(lipschitz(mean, image).output, 0.5, rtol=1e-5)
    high = lambda x: flat(nnx.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_allclose(lipschitz(high, image).output, 1.0, rtol=1e-5)
    # A pixel in the middle lies in four windows, and counts in all where it is the largest.
    often = lambda x: flat(nnx.max_pool(x, (3, 3), (1, 1)))
    assert 2 <= lipschitz(often, image).output[0] <= 3 * SLACK
    whole = lambda x: x.mean((1, 2))
    np.testing.assert_allclose(lipschitz(whole, image).output, 0.25, rtol=1e-5)


def test_pooling_is_bounded_as_the_mean_that_it_is_on_every_platform():
    """It is added up by hand where it runs; four parts of norm 1/4 each would make 1."""
    image, cotangent = uniform(2, 5, 6, 3), uniform(2, 2, 3, 3)
    values, back = jax.vjp(partial(pooled, train=False), image)
    means = np.asarray(image)[:, :4].reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(values, means, rtol=1e-6)
    np.testing.assert_allclose(pooled(image, train=True), means, rtol=1e-6)
    shares = np.asarray(cotangent).repeat(2, 1).repeat(2, 2) / 4
    np.testing.assert_allclose(back(cotangent)[0][:, :4], shares, rtol=1e-6)
    np.testing.assert_array_equal(back(cotangent)[0][:, 4], 0)
    flat = lambda x: pooled(x, train=False).reshape(len(x), -1)
    np.testing.assert_allclose(lipschitz(flat, image).output, 0.5, rtol=1e-5)
    ones = jnp.ones_like(image)
    for found, side in zip(interval(flat, image, ones), (flat(image), flat(ones)), strict=True):
        np.testing.assert_allclose(found, side, rtol=2e-6)


# Convolutions: the Fourier bound against the matrix.

CONVOLUTIONS = {
    "same": {"padding": "SAME"},
    "wide": {"padding": [(3, 3), (3, 3)]},
    "stride": {"padding": "SAME", "window_strides": (2, 2)},
    "dilated": {"padding": [(2, 2), (2, 2)], "lhs_dilation": (2, 2), "rhs_dilation": (2, 2)},
    "groups": {"padding": "SAME", "feature_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_fourier_bound_is_never_below_the_norm_of_the_convolution(name):
    options = {"window_strides": (1, 1), **CONVOLUTIONS[name]}
    groups = options.get("feature_group_count", 1)
    kernel, image = normal(3, 3, 2 // groups, 4), uniform(1, 8, 8, 2)
    numbers = ("NHWC", "HWIO", "NHWC")
    scale = jnp.asarray([1.0, -3.0, 0.5, 1.0]).reshape(1, 1, 1, 4)

    def f(x):
        y = jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options) * scale
        return y.reshape(len(y), -1)

    exact = np.linalg.norm(f(jnp.eye(128).reshape(128, 8, 8, 2)), 2)  # of the dense matrix
    found = lipschitz(f, image).output[0]
    assert exact <= found * SLACK
    # A stride, or zeros in between, leave out what the torus has.
    assert found <= exact * (1.1 if name in ("same", "wide", "groups") else 2.1)


def test_a_gradient_of_the_library_convolution_is_bounded_as_what_it_computes():
    w, x = normal(3, 3, 1, 2), uniform(2, 4, 4, 1)

    def smooth(x):
        return jnp.exp(conv(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))

    f = lambda x: jax.grad(lambda x: smooth(x).sum())(x).reshape(len(x), -1)
    found = lipschitz(f, x)
    assert (spectral(f, x) <= np.asarray(found.output) * SLACK).all()
    assert jnp.isfinite(found.output).all()
    low, high = interval(f, jnp.zeros_like(x), jnp.ones_like(x))
    assert ((low <= f(x)) & (f(x) <= high)).all()
    assert jnp.isfinite(high - low).all()


def test_windows_that_do_not_overlap_are_exact():
    kernel, image = normal(2, 2, 3, 5), uniform(1, 4, 4, 3)
    numbers = ("NHWC", "HWIO", "NHWC")
    f = lambda x: jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=numbers
    ).reshape(1, -1)
    np.testing.assert_allclose(lipschitz(f, image).output, spectral(f, image), rtol=1e-5)


# Activations, each as a function of one number on intervals of several sizes.

SMOOTH = {
    "silu": (jax.nn.silu, 1.0999),
    "gelu": (jax.nn.gelu, 1.129),
    "erf gelu": (partial(jax.nn.gelu, approximate=False), 1.129),
    "softplus": (jax.nn.softplus, 1.0),
    "c2relu": (models.c2relu, 1.0),
    "elu": (jax.nn.elu, 1.0),
    "leaky relu": (jax.nn.leaky_relu, 1.0),
    "hard tanh": (jax.nn.hard_tanh, 1.0),
    "tanh": (jnp.tanh, 1.0),
    "relu": (jax.nn.relu, 1.0),
    "square": (lambda x: x * x, 100.0),
    "sin": (jnp.sin, 1.0),
    "cos": (lambda x: jnp.cos(0.7 * x), 0.7),
    "arctan": (jnp.arctan, 1.0),
    "arcsinh": (jnp.arcsinh, 1.0),
    "soft threshold": (lambda x: jnp.where(jnp.abs(x) > 0.3, x - 0.3 * jnp.sign(x), 0.0), 1.0),
    "indicator": (lambda x: x * (x > 0).astype(x.dtype), 1.0),
}


def test_activations_have_their_ranges_and_their_largest_slopes():
    acts, steepest = zip(*SMOOTH.values(), strict=True)
    f = lambda x: jnp.concatenate([act(x) for act in acts] + [jnp.zeros((len(x), 1))], 1)
    centres, radii = np.meshgrid([-30.0, -1.0, -0.17, 0.0, 0.6, 2.0, 30.0], [0.1, 1.0, 20.0])
    middle, radius = jnp.float32(centres.reshape(-1, 1)), jnp.float32(radii.reshape(-1, 1))
    low, high = (end[:, None, :-1] for end in interval(f, middle - radius, middle + radius))
    # The difference from an output that stays 0 is the activation itself.
    slopes = lipschitz(f, middle, radius[:, 0], bounds=(-50.0, 50.0)).margins[:, :-1, -1]
    points = middle + radius * jnp.linspace(-1.0, 1.0, 401)[None]
    values = f(points.reshape(-1, 1)).reshape(*points.shape, -1)[..., :-1]
    room = 1e-5 * (1 + jnp.abs(values).max(1, keepdims=True))
    assert (low - room <= values).all()
    assert (values <= high + room).all()
    assert (high - low <= 1.4 * jnp.ptp(values, axis=1, keepdims=True) + 0.3).all()
    quotients = np.abs(np.diff(values, axis=1) / np.diff(points, axis=1)[..., None]).max(1)
    rounding = 3e-7 * (31 + jnp.abs(values).max(1)) / (radius / 200) + 1e-4
    assert (quotients <= slopes + rounding).all()
    assert (slopes.max(0) <= 1.4 * np.asarray(steepest)).all()
    assert (slopes <= 1.35 * quotients + rounding + 0.12)[:7].all()


# Arguments that are not the usual ones: the norm of a linear map is that of its matrix.

WINDOWS = {
    "dilation and stride": {"window_strides": (1, 2), "window_dilation": (1, 2)},
    "dilation": {"window_strides": (1, 1), "window_dilation": (1, 3)},
    "stride and dilation without a common divisor": {
        "window_strides": (1, 2),
        "window_dilation": (1, 3),
    },
    "zeros in between": {"window_strides": (1, 2), "base_dilation": (1, 2)},
    "padding": {"window_strides": (1, 3), "padding": [(0, 0), (5, 2)]},
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_counts_an_entry_as_often_as_it_holds_it(name):
    options = {"padding": [(0, 0), (0, 0)], **WINDOWS[name]}
    total = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 4), **options)
    exact = np.linalg.norm(np.asarray(total(jnp.eye(40))), 2)
    found = lipschitz(total, jnp.full((1, 40), 0.5)).output[0]
    assert exact <= found <= 1.5 * exact
    # The largest entry, in the middle, is the maximum of every window that contains it.
    peak = jnp.full((1, 40), 0.5).at[0, 20].set(0.9)
    high = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 4), **options)
    times = jnp.sum(high(peak) == 0.9)
    assert np.sqrt(times) <= lipschitz(high, peak).output[0] <= 2 * SLACK


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (2,), "lhs_dilation": (2,)},
        {"window_strides": (1,), "rhs_dilation": (3,)},
        {"window_strides": (3,), "lhs_dilation": (2,), "rhs_dilation": (2,)},
    ],
)
def test_a_convolution_has_its_norm_whichever_argument_is_the_image(image_first, options):
    other = normal(2, 3, 5)

    def f(x):
        v = x.reshape(1, 3, 8)
        pair = (v, other) if image_first else (other, v)
        return jax.lax.conv_general_dilated(*pair, padding=[(9, 9)], **options).reshape(1, -1)

    exact = np.linalg.norm(np.asarray(jax.vmap(lambda v: f(v[None])[0])(jnp.eye(24))), 2)
    found = lipschitz(f, jnp.full((1, 24), 0.5)).output[0]
    assert 0 < exact <= found <= 2.1 * exact  # strides and zeros leave out what the torus has


def test_groups_of_the_batch_have_the_norm_of_their_matrix():
    kernel = normal(4, 3, 2)
    f = lambda x: jax.lax.conv_general_dilated(
        x.reshape(2, 3, 4), kernel, (1,), "VALID", batch_group_count=2
    ).reshape(1, -1)
    exact = np.linalg.norm(np.asarray(jax.vmap(lambda v: f(v[None])[0])(jnp.eye(24))), 2)
    assert 0 < exact <= lipschitz(f, jnp.full((1, 24), 0.5)).output[0] <= 1.5 * exact


def steep(x):
    return 1e12 * jnp.maximum(0.0, 1e-11 * (x - 0.5))


def test_a_kink_counts_however_small_its_units():
    x = jnp.full((1, 2), 0.5)
    np.testing.assert_allclose(lipschitz(steep, x).output, 10, rtol=1e-5)
    jump = lambda x: 1e12 * jnp.where(x > 0.5, 1e-17, 0.0)
    assert lipschitz(jump, x).output == jnp.inf
    # Two ways to write the same shift agree up to rounding.
    meet = lambda x: jnp.where(x - 0.1 > 0, (x - 0.1) * 3, 0.0)
    assert jnp.isfinite(lipschitz(meet, x, 0.25).output).all()


def test_a_jump_counts_where_the_condition_is_flat_on_one_side():
    jump = lambda x: jnp.where(jnp.maximum(0.0, x) > 0, x + 5, 0.0)
    assert lipschitz(jump, jnp.zeros((1, 1)), bounds=(-1.0, 1.0)).output == jnp.inf
    # A condition that never changes chooses one case, at every x.
    never = lambda x: jnp.where(0 * x > 0, x, 5 * x)
    assert lipschitz(never, jnp.zeros((1, 1))).output >= 5
    assert interval(never, jnp.zeros((1, 1)), jnp.ones((1, 1)))[1] >= 5


def test_a_number_in_two_types_is_two_numbers():
    """0.1 is written alike in both, and not of one value."""

    def f(x):
        single = (x * np.float32(0.1)).astype(jnp.float64)
        return 1e9 * (x.astype(jnp.float64) * np.float64(0.1) - single)

    with jax.enable_x64(True):
        slope = 1e9 * abs(0.1 - float(np.float32(0.1)))
        assert slope > 1
        assert lipschitz(f, jnp.ones((1, 1), jnp.float32)).output[0] >= slope


def test_rows_that_nearly_agree_have_no_margin_below_the_difference():
    rows = np.ones((2, 64), np.float32)
    rows[1, 0] += 2.0**-23
    found = lipschitz(lambda x: x @ rows.T, jnp.zeros((1, 64))).margins[0, 0, 1]
    assert 2.0**-23 <= found < 1e-5


def test_slopes_that_underflow_when_squared_are_not_0():
    def f(x):
        weak = jnp.exp(-400 * x) @ jnp.ones((2, 2), x.dtype)  # of slope 1e-171
        return weak * 1e38 * 1e38 * 1e38 * 1e38

    found = float(lipschitz(f, jnp.ones((1, 2)), 0.01).output[0])
    with jax.enable_x64(True):
        assert 0 < spectral(f, jnp.ones((1, 2)))[0] <= found


def test_a_function_of_the_platform_has_the_bound_of_its_steepest_form():
    both = lambda *forms: lambda x: jax.lax.platform_dependent(x, cpu=forms[0], default=forms[1])
    x = jnp.full((1, 3), 0.5)
    for forms in ((lambda x: 9 * x, lambda x: x), (lambda x: x, lambda x: 9 * x)):
        np.testing.assert_allclose(lipschitz(both(*forms), x).output, 9, rtol=1e-5)
        low, high = interval(both(*forms), x, x)
        assert (low <= 0.5).all()
        assert (high >= 4.5).all()
    nearly = both(lambda x: x * 1.0001, lambda x: x)
    assert lipschitz(nearly, x).output >= 1.0001
    # For two forms of one affine map, the default's bound.
    alike = both(lambda x: x[:, :1] + x[:, 1:2] + x[:, 2:], lambda x: x.sum(1, keepdims=True))
    np.testing.assert_allclose(lipschitz(alike, x).output, np.sqrt(3), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_bound_is_never_rounded_down(dtype):
    """In the type of the images: of 40 constants not representable in it, about 20 would be."""
    for true in np.float32(RNG.uniform(0.5, 50.0, 6)):
        f = lambda x, true=true: true * x.astype(jnp.float32)
        found = lipschitz(f, jnp.zeros((1, 2), dtype)).output
        assert found.dtype == dtype
        room = 2e-6 + 2 * float(jnp.finfo(dtype).eps)
        assert np.float64(true) <= np.float64(found[0]) <= true * (1 + room) + 1e-4


def test_an_interval_is_never_rounded_inwards():
    way = np.abs(RNG.normal(size=(784, 3))).astype(np.float32)
    shift = jnp.asarray([[-100.0, 0.0, 1e3]])
    low, high = interval(lambda x: x @ way + shift, jnp.zeros((1, 784)), jnp.ones((1, 784)))
    exact = np.float64(way).sum(0) + np.asarray(shift)
    assert (np.float64(high) >= exact).all()
    assert (np.float64(low) <= np.asarray(shift)).all()
    np.testing.assert_allclose(high, exact, rtol=3e-6)


def test_a_masked_class_has_an_interval_of_one_infinite_number():
    mask = lambda x: jnp.where(jnp.array([True, False]), x, -jnp.inf)
    low, high = interval(mask, jnp.zeros((1, 2)), jnp.ones((1, 2)))
    np.testing.assert_array_equal([low[0, 1], high[0, 1]], -jnp.inf)
    np.testing.assert_allclose(high[0, 0], 1, rtol=1e-5)


def test_what_overflows_in_float32_is_not_taken_for_finite():
    step = lambda x: jnp.where(jnp.isfinite(jnp.exp(100 * x)), x, -x)
    assert lipschitz(step, jnp.zeros((1, 1))).output == jnp.inf
    np.testing.assert_allclose(lipschitz(step, jnp.zeros((1, 1)), 0.5).output, 1, rtol=1e-5)


def test_an_inverse_about_0_is_anything():
    ends = interval(lambda x: 1 / (x - 0.5), jnp.zeros((1, 2)), jnp.ones((1, 2)))
    np.testing.assert_array_equal(ends, np.stack([np.full((1, 2), s * np.inf) for s in (-1, 1)]))
    assert lipschitz(lambda x: 1 / (x - 0.5), jnp.zeros((1, 2))).output == jnp.inf
    near = interval(lambda x: 1 / (x - 0.5), jnp.full((1, 1), 0.75), jnp.ones((1, 1)))
    np.testing.assert_allclose(near, [[[2.0]], [[4.0]]], rtol=1e-5)


def test_weights_of_numpy_are_those_that_the_function_computes_with():
    """That is in float32; numpy's float64 has digits that the function never sees."""
    way = np.array([[2.0**24 + 1.0]])  # 2^24 in float32
    found = lipschitz(lambda x: x * way - x * 2.0**24, jnp.zeros((1, 1)))
    assert found.output[0] < 1e-4


HARMLESS = {
    "stop_gradient": (jax.lax.stop_gradient, 1.0),
    "clamp": (lambda x: jax.lax.clamp(0.2, x, 0.8), 1.0),
    "clip": (lambda x: jnp.clip(x, 0.2, 0.8), 1.0),
    "stack": (lambda x: jnp.stack([x, 1 - x], 1).reshape(len(x), -1), np.sqrt(2)),
    "tile": (lambda x: jnp.tile(x, (1, 3)), np.sqrt(3)),
    "rsqrt": (lambda x: jax.lax.rsqrt(x + 1.0), 0.5),
    "take": (lambda x: jnp.take(x, jnp.array([0, 2, 2]), axis=1), np.sqrt(2)),
    "indices": (lambda x: x[:, np.array([3, 1])], 1.0),
    "sign": (lambda x: jnp.sign(x + 0.1), 0.0),
    "isfinite": (lambda x: jnp.where(jnp.isfinite(x), x, 0.0), 1.0),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_has_its_constant(name):
    f, constant = HARMLESS[name]
    x = uniform(1, 4)
    np.testing.assert_allclose(lipschitz(f, x).output, constant, rtol=1e-5)
    low, high = interval(f, 0 * x, 0 * x + 1)
    assert (low <= f(x)).all()
    assert (f(x) <= high).all()


@pytest.mark.parametrize("f", [jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp])
def test_softmax_and_its_logarithms_are_bounded(f):
    whole = lambda x: f(x @ W[:4], axis=1).reshape(1, -1)
    x = uniform(1, 4)
    found = lipschitz(whole, x, 0.1)
    assert spectral(whole, x)[0] <= found.output[0] < 100
    low, high = interval(whole, x - 0.05, x + 0.05)
    assert (low < whole(x)).all()
    assert (whole(x) < high).all()


def test_a_sign_whose_argument_may_be_0_has_no_bound():
    assert lipschitz(jnp.sign, jnp.zeros((1, 2))).output == jnp.inf
    low, high = interval(jnp.sign, jnp.array([[-1.0, 0.5]]), jnp.ones((1, 2)))
    np.testing.assert_allclose([low, high], [[[-1, 1]], [[1, 1]]], rtol=1e-5)


def test_a_step_has_no_bound_and_a_step_that_is_not_reached_costs_nothing():
    step = lambda x: jnp.where(x > 0.5, x + 1.0, x)
    found = lipschitz(step, jnp.asarray([[0.5], [0.2]]), 0.1)
    np.testing.assert_allclose(found.output, [jnp.inf, 1.0], rtol=1e-5)
    # Reached at the end of the box only, it is reached.
    at_end = lipschitz(lambda x: jnp.where(x > 0, 1.0, 0.0), jnp.zeros((1, 1)), 0.1)
    np.testing.assert_array_equal(at_end.output, jnp.inf)


# Whole networks: never below the difference quotients, the gradients and the values of points.


def mlp(x):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ W1 + 0.1)
    return jax.nn.relu(hidden @ W2 - 0.1) @ W3


W1, W2, W3 = normal(192, 8, scale=0.1), normal(8, 6, scale=0.5), normal(6, 3)


def flax_model(name, **settings):
    model = models.build(name, classes=3, **settings)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)

    def draw(path, leaf):
        if leaf.ndim > 1:
            return normal(*leaf.shape, scale=np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return (
            0.5 + uniform(*leaf.shape)
            if path[-1].key in ("scale", "var", "t")
            else normal(*leaf.shape, scale=0.1)
        )

    return partial(model.apply, jax.tree_util.tree_map_with_path(draw, shapes))


IMAGES = uniform(2, 8, 8, 3)
NETS = {
    "plain": lambda: mlp,
    "CNN tanh": lambda: flax_model(
        "CNN", channels=(4,), hidden=8, batch_norm=True, head="tanh", activation="silu"
    ),
    "ResNeXt": lambda: flax_model("ResNeXt34_2x32", stages=(1,), channels=(4,)),
    "ResNet18": lambda: flax_model("ResNet18", stages=(1, 1), channels=(4, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_no_point_of_a_ball_or_of_the_box_contradicts_the_bounds(name):
    f = NETS[name]()
    radii = np.asarray([0.02, 0.3, np.inf], np.float32)
    x = jnp.concatenate([IMAGES[:1]] * 3)
    found = lipschitz(f, x, radii)
    assert jnp.isfinite(found.output).all()
    # A smaller ball has no larger bound.
    assert (np.diff(found.output) >= 0).all()
    assert (np.diff(found.margins, axis=0) >= -1e-6).all()
    low = jnp.maximum(x - jnp.asarray([0.02, 0.3, 1.0]).reshape(3, 1, 1, 1), 0.0)
    high = jnp.minimum(x + jnp.asarray([0.02, 0.3, 1.0]).reshape(3, 1, 1, 1), 1.0)
    lowest, highest = interval(f, low, high)

    @jax.jit
    def look(u):
        rows = jax.vmap(jax.jacrev(lambda v: f(v[None])[0]))(u)
        return f(u), rows.reshape(*rows.shape[:2], -1)

    for i, radius in enumerate(radii):
        u = RNG.uniform(size=(64, 8, 8, 3))
        u[32:] = np.round(u[32:])  # corners
        points = np.asarray(low[i]) + u * np.asarray(high[i] - low[i])
        values, _ = look(jnp.float32(points))
        assert (values >= lowest[i][None] - 1e-4).all()
        assert (values <= highest[i][None] + 1e-4).all()
        if radius < np.inf:  # drawn to the ball
            away = points - np.asarray(x[i])
            size = np.linalg.norm(away.reshape(64, -1), axis=1).reshape(-1, 1, 1, 1)
            points = np.asarray(x[i]) + away * np.minimum(1, radius / size)
        values, rows = look(jnp.float32(points))
        assert np.linalg.norm(rows, 2, axis=(1, 2)).max() <= found.output[i] * SLACK
        assert (spread(np.asarray(rows)) <= found.margins[i][None] * SLACK + 1e-6).all()
        steps = np.linalg.norm((points[1:] - points[:-1]).reshape(63, -1), axis=1)
        moved = np.linalg.norm(np.diff(values, axis=0), axis=1)
        assert (moved <= found.output[i] * steps * SLACK + 1e-5).all()


def test_a_small_ball_fixes_the_units_of_a_relu_network():
    """Where no unit changes, margins are bounded by the first norm and the masked last rows."""
    first, last = normal(12, 6), normal(6, 3)
    f = lambda x: jax.nn.relu(x.reshape(len(x), -1) @ first) @ last
    on = np.asarray(X.reshape(3, -1) @ first) > 0
    assert 0 < on.mean() < 1
    found = lipschitz(f, X, 1e-5)
    masked = np.asarray(last.T)[None] * on[:, None, :]
    exact = spread(jacobians(f, X))
    assert (exact <= found.margins * SLACK).all()
    assert (found.margins <= np.linalg.norm(first, 2) * spread(masked) * SLACK).all()


def test_an_nnx_model_is_bounded_as_the_plain_function_it_is():
    model = nnx.Sequential(
        nnx.Linear(12, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 3, rngs=nnx.Rngs(1))
    )
    first, _, last = model.layers
    plain = lambda x: jnp.maximum(x @ first.kernel[...], 0.0) @ last.kernel[...]
    x = X.reshape(3, -1)
    for one, other in zip(lipschitz(model, x, 0.1)[:2], lipschitz(plain, x, 0.1)[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_an_interval_can_be_trained_on():
    """The gradient in the weights of the upper end, against a difference."""
    x, way = X.reshape(3, -1), normal(12, 4)
    high = jax.jit(
        lambda t: interval(lambda x: jnp.tanh(x @ (W + t * way)), x - 0.1, x + 0.1)[1].sum()
    )
    slope = (high(0.01) - high(-0.01)) / 0.02
    np.testing.assert_allclose(jax.jit(jax.grad(high))(0.0), slope, rtol=1e-2)


def test_what_does_not_depend_on_x_has_constant_zero():
    found = lipschitz(lambda x: jnp.ones((len(x), 2)), X)
    np.testing.assert_array_equal(found.output, jnp.zeros(3))
    np.testing.assert_array_equal(found.margins, jnp.zeros((3, 2, 2)))


# What is refused.


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (
            lambda x: lax.cumprod(linear(x), 1),
            "No bound for 'cumprod' of a value that depends on x",
        ),
        (lambda x: jnp.floor(linear(x)), "No bound for 'floor'"),
        (lambda x: linear(x) @ linear(x).T @ linear(x), "'dot_general' of several values"),
        (lambda x: (linear(x) > 0).astype(jnp.int32).astype(x.dtype), "element_type' in int32"),
        (lambda x: linear(x).astype(jnp.uint8).astype(x.dtype), "element_type' in uint8"),
        (lambda x: linear(x).astype(jnp.bfloat16), "in bfloat16 .* rounds in steps"),
        (lambda x: linear(x).astype(bool).astype(x.dtype), "element_type' in bool"),
        (lambda x: jnp.where(linear(x) > 0, 1, 2).astype(x.dtype), "'select_n' in int32"),
        (lambda x: jnp.real(linear(x).astype(complex)), "element_type' in complex64"),
        (lambda x: jnp.real(jnp.fft.fft(linear(x))), "element_type' in complex64"),
        (lambda x: linear(x) > 0, "f's output has dtype bool"),
        (lambda x: linear(x) + jax.random.normal(KEY, (len(x), 4)), "No bound for 'random_bits'"),
        (lambda x: jnp.where(linear(x) > 0, X.sum(), x.sum()), "'select_n' of several values"),
        (lambda x: linear(x)[0], r"must return \[B, K\]; for one example it returned \[4\]"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(f, said):
    with pytest.raises(ValueError, match=said) as error:
        lipschitz(f, X)
    assert "\n" not in str(error.value)


def test_arithmetic_in_16_bits_is_refused_and_moving_is_not():
    half = jnp.zeros((1, 4), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"'mul' in bfloat16 .* compute in float32"):
        lipschitz(lambda x: x * jnp.bfloat16(3), half)
    wide = lambda x: 3 * jnp.maximum(x.reshape(1, 2, 2)[:, ::-1], 0.0).reshape(1, 4).astype(float)
    assert 3 <= lipschitz(wide, half).output[0] < 3.1
    low, high = interval(wide, half, half + 1)
    assert low.dtype == high.dtype == jnp.float32


def test_noise_is_refused_in_an_interval_and_so_it_is_in_loops_and_branches():
    noise = lambda x: jax.random.normal(KEY, x.shape)
    for f in (
        lambda x: x + noise(x),
        lambda x: x + jax.lax.fori_loop(0, 2, lambda i, a: a + i * noise(x), jnp.zeros_like(x)),
        lambda x: x + jax.lax.map(lambda i: i * noise(x), jnp.ones(2)).sum(0),
        lambda x: x + jax.lax.cond(jnp.array(True), noise, jnp.zeros_like, jnp.ones_like(x)),
    ):
        with pytest.raises(ValueError, match="random numbers of one example are not those of a"):
            interval(f, X, X)


@pytest.mark.parametrize(
    ("x", "options", "said"),
    [
        (X + 1.0, {}, r"outside bounds \(0.0, 1.0\)"),
        (X * jnp.nan, {}, "x has values of nan"),
        (X[:0], {}, "want examples"),
        (X[..., :0], {}, "want examples"),
        (X.astype(int), {}, "x has dtype int32"),
        (X.astype(complex), {}, "x has dtype complex64"),
        (X, {"eps": -1.0}, "want a radius >= 0"),
        (X, {"eps": jnp.ones(2)}, r"one per example \[3\]"),
        (X, {"bounds": (0.0, np.inf)}, "two finite numbers"),
        (X, {"bounds": (np.zeros(3), np.ones(3))}, "give two numbers, which jit does not trace"),
        (X, {"bounds": 1.0}, "bounds = 1.0: give two numbers"),
    ],
)
def test_wrong_inputs_are_named(x, options, said):
    with pytest.raises(ValueError, match=said):
        lipschitz(linear, x, **options)


def test_a_tracer_and_an_empty_interval_are_refused():
    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(lambda x: lipschitz(linear, x).output)(X)
    with pytest.raises(ValueError, match=r"low <= high does not hold in 36 of 36"):
        interval(linear, X, X - 1.0)
    with pytest.raises(ValueError, match=r"want \[B, ...\] twice"):
        interval(linear, X, X[:1])
    for f in (lambda x: (linear(x), x), lambda x: linear(x).mean(0), lambda x: linear(x).sum()):
        with pytest.raises(ValueError, match=r"must return one array \[B, ...\]; for one example"):
            interval(f, X, X)
