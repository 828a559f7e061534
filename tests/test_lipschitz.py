"""Lipschitz constants of data against brute force, those of functions against exact ones."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import lipschitz
from lipreg.convolution import conv
from lipreg.keys import example_keys
from lipreg.lipschitz import ascended_pairs, gradient_norms, of_data, of_linear, worst_pairs
from lipreg.losses import cross_entropy
from lipreg.norms import L1, L2, LINF, lp

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NORMS = [L1, L2, LINF, lp(3)]


def sizes(v, norm):
    return np.linalg.norm(v, norm.p, axis=-1)


# Data.

N = 61
X = RNG.random((N, 2, 3)).astype(np.float32)
CLASSES = RNG.integers(0, 3, N)
LABELS = {
    "classes": CLASSES,
    "one-hot": np.eye(3, dtype=np.float32)[CLASSES],
    "simplex": RNG.dirichlet(np.ones(3), N),
    "real": RNG.normal(size=N),
}


def brute_force(x, y, norm, label_norm):
    """The quotients of all pairs, [n, n], in float64; 0 on the diagonal."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    y = np.eye(y.max() + 1)[y] if y.dtype.kind == "i" else np.float64(y).reshape(len(y), -1)
    gaps, distances = sizes(y[:, None] - y, label_norm), sizes(x[:, None] - x, norm)
    return np.where(gaps > 0, gaps / np.where(gaps > 0, distances, 1), 0)


@pytest.mark.parametrize(
    ("norm", "label_norm", "labels"),
    [(L2, LINF, name) for name in LABELS]
    + [(norm, L2, name) for norm in NORMS for name in ("classes", "simplex")],
)
def test_the_constant_of_data_is_that_of_brute_force_for_every_image(norm, label_norm, labels):
    y = LABELS[labels]
    expected = brute_force(X, y, norm, label_norm)
    found = of_data(X, y, norm=norm, label_norm=label_norm, block=16)
    np.testing.assert_allclose(found.quotients, expected.max(1), rtol=1e-12)
    np.testing.assert_array_equal(found.partners, expected.argmax(1))
    i, j = found.pair
    assert found.value == found.quotients.max()
    assert found.quotients[i] == found.value
    assert found.partners[i] == j
    apart = sizes(np.float64(X - X[found.partners]).reshape(N, -1), norm)
    np.testing.assert_allclose(found.distances, apart, rtol=1e-6)
    assert found.distance == found.distances[i]
    assert (found.duplicates, found.conflicts, found.kind) == (0, 0, "exact")


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
def test_two_classes_that_a_gap_parts_have_one_over_the_gap(norm):
    x = np.array([[0.0], [0.1], [0.6], [0.9]])
    assert of_data(x, np.array([0, 0, 1, 1]), norm=norm).value == pytest.approx(2)
    two = of_data(x, np.array([0, 0, 1, 1]), norm=norm, label_norm=L2)
    assert two.value == pytest.approx(2 * np.sqrt(2))
    assert two.pair == (1, 2)


def test_cancellation_in_the_products_does_not_change_the_winner():
    """Two clusters far apart: |x|^2 + |x'|^2 - 2 x.x' in float32 is noise within each."""
    x = np.float32(RNG.choice([-100.0, 100.0], (200, 1)) + 1e-2 * RNG.random((200, 8)))
    y = RNG.integers(0, 2, 200)
    expected = brute_force(x, y, L2, LINF)
    squares = np.square(x).sum(1)
    naive = squares[:, None] + squares - 2 * x @ x.T
    naive = np.where(y[:, None] == y, np.inf, naive).argmin(1)
    assert (naive != expected.argmax(1)).mean() > 0.5
    found = of_data(x, y)
    np.testing.assert_array_equal(found.partners, expected.argmax(1))
    assert found.value == expected.max()


def test_labels_closer_than_float32_can_tell_are_told_apart():
    y = 1e6 + 1e-3 * RNG.random(N)
    expected = brute_force(X, y, L2, L2)
    found = of_data(X, y, label_norm=L2)
    np.testing.assert_array_equal(found.partners, expected.argmax(1))
    assert found.value == pytest.approx(expected.max(), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_data_whose_squares_float32_cannot_hold_have_their_constant(scale):
    x = np.float32(scale) * X
    expected = brute_force(x, CLASSES, L2, LINF).max(1)
    np.testing.assert_allclose(of_data(x, CLASSES).quotients, expected, rtol=1e-12)


def test_images_whose_distances_tie_have_the_largest_quotient():
    x, y = RNG.integers(0, 2, (100, 20)).astype(np.float32), RNG.integers(0, 2, 100)
    for norm in NORMS:
        found = of_data(x, y, norm=norm)
        expected = brute_force(x, y, norm, LINF).max(1)
        np.testing.assert_allclose(found.quotients, expected, rtol=5e-6)


def test_in_float16_the_images_are_the_numbers_that_it_holds():
    # Less its mean, in float16, the first would be nearer to the third than to the second.
    x = np.array([[0.221435546875], [1.1884765625], [-0.74609375], [8.390625]], np.float16)
    found = of_data(x, np.array([0, 1, 1, 0]))
    assert found.partners[0] == 1
    assert found.distances[0] == 1.1884765625 - 0.221435546875


def test_quotients_too_small_for_float32_are_between_different_labels():
    x = 1e10 * np.float64(X)
    found = of_data(x, 1e-40 * LABELS["real"])
    expected = brute_force(x, 1e-40 * LABELS["real"], L2, LINF).max(1)
    np.testing.assert_allclose(found.quotients, expected, rtol=1e-12)


@pytest.mark.parametrize("labels", ["classes", "one-hot"])
def test_equal_images_are_counted_and_only_their_equal_labels_forgiven(labels):
    x = np.array([[0.0], [1.0], [-0.0], [1.0], [1.0], [5.0]])
    y = np.array([0, 1, 0, 1, 1, 0])
    clean = of_data(x, y if labels == "classes" else np.eye(2)[y])
    assert (clean.value, clean.duplicates, clean.conflicts) == (1.0, 4, 0)
    y = np.array([0, 1, 0, 1, 0, 0])
    wrong = of_data(x, y if labels == "classes" else np.eye(2)[y])
    assert (wrong.value, wrong.duplicates, wrong.conflicts) == (np.inf, 2, 2)
    assert wrong.pair == (1, 4)
    assert wrong.distance == 0
    assert worst_pairs(wrong, 2).tolist() == [[1, 4], [3, 4]]
    assert wrong.quotients[[0, 2, 5]].tolist() == [1.0, 1.0, 0.25]


def test_the_upper_envelope_interpolates_from_the_constant_on_and_not_below():
    """McShane: `min_i y_i + L ||x - x_i||` is y at the data if and only if L >= L0."""
    y = np.sin(7 * X[:, 0, 0]).astype(np.float64)
    for norm in NORMS:
        found = of_data(X, y, norm=norm)
        x = np.float64(X).reshape(N, -1)
        distances = sizes(x[:, None] - x, norm)
        errors = [
            np.abs((y + share * found.value * distances).min(1) - y) for share in (1 + 5e-6, 0.999)
        ]
        assert errors[0].max() < 1e-12
        assert set(np.flatnonzero(errors[1] > 0)) <= set(found.pair)
        assert errors[1].max() > 0


def test_random_labels_make_the_constant_grow_like_the_square_of_the_number_on_a_line():
    """The least distance of n points on a line is of order n^-2."""
    sample = lambda n: of_data(RNG.random((n, 1)), RNG.integers(0, 2, n)).value
    few, many = (np.exp(np.mean([np.log(sample(n)) for _ in range(25)])) for n in (50, 800))
    assert 1.5 < np.log(many / few) / np.log(16) < 2.5


def test_a_wrong_label_is_in_the_worst_pairs():
    x = np.concatenate([c + 0.1 * RNG.random((20, 4)) for c in (0, 1)])
    y = np.repeat([0, 1], 20)
    assert of_data(x, y).value < 1
    y[7] = 1
    found = of_data(x, y)
    assert found.value > 5
    pairs = worst_pairs(found, 10)
    assert pairs.shape == (10, 2)
    assert (pairs == 7).any(1).all()
    quotients = brute_force(x, y, L2, LINF)[tuple(pairs.T)]
    np.testing.assert_array_equal(quotients, np.sort(quotients)[::-1])
    assert tuple(pairs[0]) == tuple(sorted(found.pair))
    everything = worst_pairs(found, 1000)
    assert len(np.unique(everything, axis=0)) == len(everything) <= 40


def test_blocks_and_progress_change_nothing_and_jax_arrays_serve():
    seen = []

    def progress(starts):
        for start in starts:
            seen.append(start)
            yield start

    one = of_data(jnp.asarray(X), jnp.asarray(CLASSES), block=1000)
    many = of_data(X, CLASSES, block=16, progress=progress)
    assert seen == [0, 16, 32, 48]
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:1], CLASSES[:1], "n of 2 or more"),
        (X[:, 0, 0], CLASSES, r"x has shape \[61\]"),
        (X[0, 0, 0], CLASSES, r"x has shape \[\]"),
        (X[:, :0], CLASSES, r"x has shape \[61, 0, 3\]"),
        (X, np.float32(1), r"y has shape \[\]"),
        (np.uint8(X), CLASSES, "x has dtype uint8"),
        (np.where(X.max() == X, np.nan, X), CLASSES, rf"x\[{X.max((1, 2)).argmax()}\] has values"),
        (X, np.full(N, np.inf), r"y\[0\] has values that are not finite"),
        (X, CLASSES[1:], r"y has shape \[60\], dtype int64; want classes \[61\]"),
        (X, np.eye(3, dtype=int)[CLASSES], "want classes"),
        (X, np.array(["a"] * N), "want classes"),
        (X, np.ones(N, int), "All 61 labels are equal"),
        (X, np.ones((N, 2)), "All 61 labels are equal"),
    ],
)
def test_data_without_a_constant_are_refused_in_one_line(x, y, message):
    with pytest.raises(ValueError, match=message) as e:
        of_data(x, y)
    assert "\n" not in str(e.value)


def test_a_block_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="block = 0"):
        of_data(X, CLASSES, block=0)


# Functions.

W = jax.random.normal(KEY, (3, 5))
P = jax.random.uniform(jax.random.fold_in(KEY, 1), (6, 5))
SERVED = [(L2, LINF), (L1, LINF), (LINF, LINF), (lp(3), LINF), (L1, L1), (L1, L2), (L2, L2)]


def linear(x):
    return x @ W.T


@pytest.mark.parametrize(("norm", "label_norm"), SERVED)
def test_the_norm_of_a_matrix_is_attained_and_never_passed(norm, label_norm):
    w = np.asarray(W, np.float64)
    signs = np.array(list(itertools.product([-1, 1], repeat=5)))
    rows = np.asarray(norm.direction(W))
    v = np.concatenate([np.eye(5), signs, RNG.normal(size=(500, 5)), rows, np.linalg.svd(w)[2]])
    attained = (sizes(v @ w.T, label_norm) / sizes(v, norm)).max()
    found = of_linear(W, norm=norm, label_norm=label_norm)
    assert found.kind == "exact"
    assert found.value == pytest.approx(attained, rel=1e-6)


@pytest.mark.parametrize(("norm", "label_norm"), SERVED)
def test_the_norm_of_a_matrix_has_the_digits_of_float64_whatever_it_is_held_in(norm, label_norm):
    exact = of_linear(np.float64(W), norm=norm, label_norm=label_norm).value
    for dtype in (np.float32, jnp.bfloat16):
        held = jnp.asarray(W, dtype)
        found = of_linear(held, norm=norm, label_norm=label_norm).value
        wide = of_linear(np.float64(held), norm=norm, label_norm=label_norm).value
        assert found == pytest.approx(wide, rel=1e-12)
    assert of_linear(W, norm=norm, label_norm=label_norm).value == pytest.approx(exact, rel=1e-12)


def test_the_jacobian_of_a_linear_map_has_its_norm_everywhere():
    every = jax.jit(lambda x: [gradient_norms(linear, x, norm=n, label_norm=m) for n, m in SERVED])
    for found, (norm, label_norm) in zip(every(P), SERVED, strict=True):
        exact = of_linear(W, norm=norm, label_norm=label_norm).value
        np.testing.assert_allclose(found, np.full(6, exact, np.float32), rtol=1e-6)


def test_pairs_of_norms_without_a_closed_form_are_refused_with_those_that_have_one():
    for norm, label_norm in [(LINF, L1), (LINF, L2), (L2, L1), (lp(3), lp(3))]:
        with pytest.raises(ValueError, match=f"from {norm.name} to {label_norm.name}; choose any"):
            of_linear(W, norm=norm, label_norm=label_norm)
    # A scalar has one norm.
    assert gradient_norms(lambda x: linear(x)[:, 0], P, norm=LINF, label_norm=L1).shape == (6,)


def test_the_gradient_norms_of_a_quadratic_are_those_of_its_matrix_times_x():
    a = W.T @ W
    half = lambda x: jnp.einsum("bi,ij,bj->b", x, a, x) / 2
    every = jax.jit(lambda x: [(gradient_norms(half, x, norm=n), n.dual(x @ a)) for n in NORMS])
    for found, expected in every(P):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = lipschitz.of_function(half, P)
    assert found.kind == "estimate"
    assert found.value == pytest.approx(float(L2.dual(P @ a).max()), rel=1e-6)
    # A vector of squares: the Jacobian is diagonal.
    np.testing.assert_allclose(gradient_norms(lambda x: x**2, P, label_norm=L2), 2 * P.max(1))


def test_a_network_with_the_library_convolution_agrees_with_its_jacobian():
    kernel = jax.random.normal(KEY, (3, 3, 1, 2))
    numbers = ("NHWC", "HWIO", "NHWC")

    def f(x):
        hidden = conv(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.tanh(hidden).sum(1).reshape(x.shape[0], -1)

    x = jax.random.normal(KEY, (2, 4, 4, 1))

    @jax.jit
    def measure(x):
        jacobian = jax.vmap(jax.jacrev(lambda x: f(x[None])[0]))(x).reshape(2, 8, 16)
        return jacobian, gradient_norms(f, x, label_norm=L2), gradient_norms(f, x)

    jacobian, spectral, rows = map(np.asarray, measure(x))
    np.testing.assert_allclose(spectral, np.linalg.norm(jacobian, 2, (1, 2)), rtol=1e-5)
    np.testing.assert_allclose(rows, np.linalg.norm(jacobian, 2, 2).max(1), rtol=1e-5)
    # The l_2 norm of a vector lies between its largest entry and that times sqrt(K).
    assert (rows <= spectral * (1 + 1e-6)).all()


def test_gradients_of_a_saturated_network_do_not_underflow():
    found = gradient_norms(lambda x: 1e-30 * linear(x), P, label_norm=L2)
    np.testing.assert_allclose(found, np.linalg.norm(1e-30 * np.asarray(W), 2), rtol=1e-5)
    assert (gradient_norms(lambda x: 0 * linear(x), P, label_norm=L2) == 0).all()


# Cross entropy of a linear model: grad = W' (p - e_y), so its constant is max_j ||w_j - w_y||.

CE = lambda x: cross_entropy(linear(x), jnp.zeros(x.shape[0], jnp.int32))


def test_the_gradient_of_cross_entropy_approaches_the_exact_constant_of_a_linear_model():
    away = W[1:] - W[:1]
    x = jnp.concatenate([P, 30 * away])
    every = jax.jit(lambda x: [(gradient_norms(CE, x, norm=n), n.dual(away).max()) for n in NORMS])
    for found, exact in every(x):
        assert (found[:6] < 0.99 * exact).all()
        np.testing.assert_allclose(found.max(), exact, rtol=1e-5)


KEYS = example_keys(KEY, 6)
ascend_ce = jax.jit(
    lambda key, x, steps=40: ascended_pairs(key, CE, x, bounds=(-9.0, 9.0), steps=steps, eps=0.5),
    static_argnames="steps",
)


def test_ascended_pairs_approach_the_constant_of_cross_entropy_and_never_pass_it():
    exact = float(L2.dual(W[1:] - W[:1]).max())
    found = ascend_ce(KEYS, P)
    assert (found.quotients > 0.995 * exact).all()
    assert (found.quotients <= exact * (1 + 1e-5)).all()
    measured = jnp.abs(CE(found.x1) - CE(found.x2)) / L2.size(found.x1 - found.x2)
    np.testing.assert_allclose(found.quotients, measured, rtol=1e-5)


def test_more_steps_never_find_less():
    few, many = (ascend_ce(KEYS, P, steps=steps).quotients for steps in (3, 40))
    assert (few <= many).all()
    assert (few < 0.99 * many).any()


def test_a_pair_does_not_depend_on_its_place_in_the_batch():
    reverse = ascend_ce(KEYS[::-1], P[::-1]).quotients[::-1]
    np.testing.assert_allclose(reverse, ascend_ce(KEYS, P).quotients, rtol=1e-5)


def test_ascended_pairs_find_the_constant_of_a_linear_map():
    search = partial(ascended_pairs, KEY, linear, norm=LINF, steps=60, bounds=(-5.0, 5.0))
    found = jax.jit(search)(P).quotients
    exact = of_linear(W, norm=LINF).value
    assert (found <= exact * (1 + 1e-4)).all()
    assert found.max() > 0.99 * exact


def test_pairs_stay_in_the_box_and_apart_where_the_slope_is_largest_at_its_corner():
    """|x|^2 in [0, 1]^5 is steepest at (1, ..., 1): 2 sqrt(5)."""
    search = partial(ascended_pairs, KEY, lambda x: (x**2).sum(1), eps=0.2)
    found = jax.jit(search)(P)
    for x in (found.x1, found.x2):
        assert x.min() >= 0
        assert x.max() <= 1
    assert (L2.size(found.x1 - found.x2) > 0.2 - 1e-6).all()
    # The pair at the corner along the diagonal has 2 sqrt(5) - 0.2.
    assert found.quotients.min() > 0.95 * (2 * np.sqrt(5) - 0.2)
    assert found.quotients.max() < 2 * np.sqrt(5) - 0.2 + 1e-5


def test_pairs_that_would_close_in_on_the_steepest_point_stay_eps_apart():
    search = partial(ascended_pairs, KEY, lambda x: jnp.tanh(4 * x[:, 0] - 2), eps=0.2, steps=40)
    found = jax.jit(search)(P)
    assert (L2.size(found.x1 - found.x2) > 0.2 - 1e-6).all()
    np.testing.assert_allclose(found.quotients, np.full(6, 2 * np.tanh(0.4) / 0.2), rtol=1e-2)


def test_below_l2_a_pair_moves_along_entries_that_can():
    """The slope along x_1, `5 x_0 + 2 x_1`, rises most with x_0, which is at its bound already."""
    f = lambda x: 5 * x[:, 0] * x[:, 1] + jnp.square(x[:, 1])
    search = partial(ascended_pairs, KEY, f, norm=L1, eps=0.1, steps=40)
    found = jax.jit(search)(jnp.array([[1.0, 0.2]])).quotients[0]
    assert 6.6 < found <= 7


def test_an_entry_without_a_slope_costs_no_pair():
    f = lambda x: x[:, 0] + jnp.sqrt(jnp.square(x[:, 1]))
    x = jnp.array([[0.5, 0.0]])
    found = ascended_pairs(KEYS[:1], f, x, bounds=(0.0, 1.0))
    assert jnp.isfinite(found.x1).all()
    assert 1.3 < found.quotients[0] < 1.4143


def test_pairs_without_a_box_go_where_the_slope_is():
    search = partial(ascended_pairs, KEY, lambda x: jnp.tanh(x[:, 0] - 3).sum(keepdims=True))
    found = search(jnp.array([[1.0]]), bounds=(-np.inf, np.inf), steps=40)
    np.testing.assert_allclose(found.quotients, 1.0, atol=0.01)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_points_in_half_precision_are_paired_in_single(dtype):
    """The quotient is that of the returned points, at which the function was evaluated."""
    f = lambda x: 3 * x.astype(jnp.float32)[:, 0]
    found = ascended_pairs(KEY, f, P.astype(dtype), bounds=(-1.0, 1.0), steps=40)
    assert found.x1.dtype == dtype
    assert ((found.quotients > 2.9) & (found.quotients <= 3 * (1 + 1e-5))).all()
    assert gradient_norms(lambda x: x, P.astype(dtype), label_norm=L2).dtype == jnp.float32


def test_where_nothing_changes_the_quotient_is_zero_and_a_number():
    @jax.jit
    def search(scale, eps):
        f = lambda x: scale * linear(x)
        return ascended_pairs(KEY, f, jnp.ones((2, 5)), eps=eps, bounds=(0.0, 2.0), steps=2)

    flat = search(0.0, 0.1)
    assert (flat.quotients == 0).all()
    assert jnp.isfinite(flat.x1).all()
    # Too near for float32: both ends are one point.
    same = search(1.0, 1e-30)
    assert (same.x1 == same.x2).all()
    assert (same.quotients == 0).all()


@pytest.mark.parametrize(
    ("f", "x", "options", "message"),
    [
        (linear, P, {"steps": 0}, "steps = 0"),
        (linear, P, {"eps": 0.0}, "eps = 0.0"),
        (linear, 2 * P, {}, "outside bounds"),
        (linear, P.at[0, 0].set(jnp.nan), {}, "x has values of nan: 1 of 30"),
        (linear, P, {"bounds": (1.0, 0.0)}, "the first must be less"),
        (linear, jnp.ones((2, 5), jnp.int32), {}, "x has dtype int32"),
        (lambda x: x.sum(), P, {}, r"must return \[6\] or \[6, K\]; it returned \[\]"),
        (lambda x: (x, x), P, {}, "it returned tuple"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(f, x, options, message):
    with pytest.raises(ValueError, match=message) as e:
        ascended_pairs(KEY, f, x, **options)
    assert "\n" not in str(e.value)


def test_a_linear_map_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"W has shape \[5\]; want a matrix"):
        of_linear(jnp.ones(5))
