"""Extensions and the convex program against closed forms, brute force and perturbations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lipreg.norms import L1, L2, LINF, lp
from lipreg.theory import interpolation
from lipreg.theory.interpolation import SIDES, extend, minimise

NORMS = [L1, L2, LINF, lp(3)]
each_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
each_side = pytest.mark.parametrize("side", SIDES)


def rng(seed=0):
    return np.random.default_rng(seed)


def slopes(x, y, p=2, q=2):
    """All `|y_i - y_j|_q / |x_i - x_j|_p`, i < j, by their definition."""
    x, y = np.reshape(x, (len(x), -1)), np.reshape(y, (len(y), -1))
    i, j = np.triu_indices(len(x), 1)
    return np.linalg.norm(y[i] - y[j], q, axis=1) / np.linalg.norm(x[i] - x[j], p, axis=1)


def functional(x, y, f, lam, L0, p=2):
    """`J^{Lip,n}[f]`, over points that do not coincide."""
    loss = np.square(f - y).sum() / len(x)
    return loss + lam * max(slopes(x, f, p).max() - L0, 0.0)


# Extensions.


def sine(x):
    return np.sin(2 * np.pi * x[:, 0])


KNOTS = np.linspace(0, 1, 11)[:, None]
FINE = np.linspace(0, 1, 1001)[:, None]


@each_side
def test_an_extension_interpolates_and_has_the_slope_that_it_was_given(side):
    L = 2 * np.pi
    f = extend(KNOTS, sine(KNOTS), L, side=side)
    np.testing.assert_allclose(f(KNOTS), sine(KNOTS), atol=1e-6)
    steepest = np.abs(np.diff(f(FINE))).max() / 1e-3
    # The outermost extensions have slope L all over; their mean has it where they are parallel.
    np.testing.assert_allclose(steepest, L, rtol=1e-3)


def test_an_extension_is_the_formula():
    x, y, points = rng().uniform(size=(5, 2)), rng(1).uniform(size=5), rng(2).uniform(size=(7, 2))
    reach = 9.0 * np.linalg.norm(points[:, None] - x[None], axis=2)
    for side, expected in (("lower", (y - reach).max(1)), ("upper", (y + reach).min(1))):
        np.testing.assert_allclose(extend(x, y, 9.0, side=side)(points), expected, rtol=1e-5)


def test_the_midpoint_is_within_two_covering_radii_times_the_slope_of_the_truth():
    """Theorem 2.7: `|f - u0| <= 2 L0 h`, here with the true `Lip(u0) = 2 pi` for L0."""
    for n in (6, 11, 41):
        knots = np.linspace(0, 1, n)[:, None]
        off = np.abs(extend(knots, sine(knots), 2 * np.pi)(FINE) - sine(FINE)).max()
        h = 0.5 / (n - 1)
        assert 0.05 * h < off <= 2 * (2 * np.pi) * h


@each_norm
def test_every_lipschitz_function_through_the_data_lies_between_lower_and_upper(norm):
    """`u = L |x - c|` is one, whatever the norm; at the data all meet."""
    x, points, c = (rng(i).uniform(size=(n, 2, 2)) for i, n in ((0, 8), (1, 60), (2, 1)))
    cone = lambda x: 3.0 * np.linalg.norm((x - c).reshape(len(x), -1), norm.p, axis=1)
    lower, middle, upper = (extend(x, cone(x), 3.0, side=s, norm=norm)(points) for s in SIDES)
    assert (lower <= cone(points) + 1e-5).all()
    assert (cone(points) <= upper + 1e-5).all()
    np.testing.assert_allclose(middle, (lower + upper) / 2, rtol=1e-6)
    assert (upper - lower).max() > 0.1


@each_norm
def test_an_extension_keeps_its_slope_in_the_norm_of_the_inputs(norm):
    x, points = rng().uniform(size=(8, 2, 2)), rng(1).uniform(size=(60, 2, 2))
    y = rng(2).normal(size=8)
    L = slopes(x, y, norm.p).max()
    for side in SIDES:
        values = np.asarray(extend(x, y, L, side=side, norm=norm)(points), np.float64)
        steepest = slopes(points, values, norm.p).max()
        assert 0.5 * L < steepest <= L * (1 + 1e-3)


def test_vectors_keep_their_slope_in_linf_and_lose_at_most_the_root_of_k_in_l2():
    K = 3
    x, y = rng().uniform(size=(12, 2)), rng(1).dirichlet(np.ones(K), 12)
    points = rng(2).uniform(size=(150, 2))
    L = slopes(x, y).max()
    for side in ("lower", "midpoint"):
        values = np.asarray(extend(x, y, L, side=side)(points), np.float64)
        assert slopes(points, values, q=np.inf).max() <= L * (1 + 1e-3)
        projected = np.asarray(extend(x, y, L, side=side, simplex=True)(points), np.float64)
        assert slopes(points, projected).max() <= np.sqrt(K) * L * (1 + 1e-3)
        # The nearest distribution, by its optimality: <v - p, q - p> <= 0 for every corner q.
        np.testing.assert_allclose(projected.sum(1), 1.0, atol=1e-5)
        assert projected.min() >= 0
        away = values - projected
        assert (away - (away * projected).sum(1, keepdims=True)).max() <= 1e-4
    np.testing.assert_allclose(extend(x, y, L, simplex=True)(x), y, atol=1e-5)


def test_an_extension_can_be_jitted_and_differentiated():
    x, y = jnp.array([[0.0, 0.0], [1.0, 0.0]]), jnp.array([0.0, 1.0])
    f = extend(x, y, 2.0, side="lower")
    points = jnp.array([[0.9, 0.0], [1.0, 0.3], [1.0, 0.0]])
    np.testing.assert_allclose(jax.jit(f)(points), f(points), rtol=1e-6)
    grad = jax.jit(jax.grad(lambda p: f(p).sum()))(points)
    np.testing.assert_allclose(grad, [[2.0, 0.0], [0.0, -2.0], [0.0, 0.0]], atol=1e-5)
    probability = extend(x, jax.nn.one_hot(jnp.array([0, 1]), 3), 2.0, simplex=True)
    assert jnp.isfinite(jax.grad(lambda p: probability(p)[:, 0].sum())(points)).all()


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_points_that_lie_close_rise_no_more_than_their_distance_allows(side):
    """A constant of 1e4, and points 1e-6 apart: only the rounding of the values remains."""
    x = rng().uniform(size=(200, 2))
    y = rng(1).uniform(size=200)
    L = 1e4
    y = y * min(1.0, L / slopes(x, y).max())
    f = extend(x, y, L, side=side)
    u = rng(2).uniform(size=(300, 2)).astype(np.float32)
    v = (u + 1e-6 * rng(3).normal(size=u.shape)).astype(np.float32)
    rises = np.abs(np.float64(f(u)) - np.float64(f(v)))
    apart = np.linalg.norm(np.float64(u) - v, axis=1)
    assert (rises <= L * apart * (1 + 1e-9) + 2.0**-23 * np.abs(np.float64(f(u)))).all()
    # numpy's float64 points keep their digits.
    v = np.float64(u) + 1e-7 * rng(4).normal(size=u.shape)
    rises = np.abs(np.float64(f(np.float64(u))) - np.float64(f(v)))
    apart = np.linalg.norm(u - v, axis=1)
    assert (rises <= L * apart * (1 + 1e-9) + 2.0**-23 * np.abs(np.float64(f(v)))).all()


def test_memory_is_that_of_a_block_of_points_and_the_blocks_do_not_show():
    """2^22 numbers at a time, 32 MiB; all the differences of these points at once are 1.3 GB."""
    x, points = rng().uniform(size=(40, 700)), rng(1).uniform(size=(6010, 700))
    f = extend(x, x[:, 0], 1.0)
    program = jax.jit(f).lower(points).compile()
    assert program.memory_analysis().temp_size_in_bytes < 1e8
    whole = f(points[:601])  # 149 at a time: the last block is cut short
    np.testing.assert_allclose(whole[590:], f(points[590:601]), rtol=1e-6)


# The convex program.


def two_points(r, lam, L0):
    """The slope for labels 0 and 1 at the distance r, `L0 <= 1/r`: `(1 - 2 lam/r)/r`, clipped."""
    return np.clip((1 - 2 * lam / r) / r, L0, 1 / r)


def test_two_points_have_their_closed_form():
    draw = rng()
    for _ in range(300):
        r = draw.uniform(0.05, 2)
        L0, lam = draw.uniform(0, 1 / r), draw.uniform(0, r)
        found = minimise(np.array([[0.0], [r]]), np.array([0.0, 1.0]), lam=lam, L0=L0)
        slope = two_points(r, lam, L0)
        np.testing.assert_allclose(found.L, slope, atol=1e-6 / r)
        np.testing.assert_allclose(
            found.values, [(1 - slope * r) / 2, (1 + slope * r) / 2], atol=1e-6
        )
        np.testing.assert_allclose(
            found.value, (1 - slope * r) ** 2 / 4 + lam * (slope - L0), atol=1e-8
        )


@each_norm
def test_two_images_and_vector_labels_have_the_closed_form_along_their_segment(norm):
    """Labels e_0 and e_1 are sqrt(2) apart: scaling labels by c scales L by c and lam by c too."""
    x = rng().uniform(size=(2, 2, 2, 1))
    r = np.linalg.norm((x[0] - x[1]).ravel(), norm.p)
    slope = np.sqrt(2) * two_points(r, 0.1 * r / np.sqrt(2), 0.3 / r / np.sqrt(2))
    found = minimise(x, np.eye(3)[:2], lam=0.1 * r, L0=0.3 / r, norm=norm)
    np.testing.assert_allclose(found.L, slope, rtol=1e-5)
    np.testing.assert_allclose(found.values.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(found.values[:, 2], 0.0, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(3, 1), (4, 1), (3, 2), (4, 2)])
def test_no_point_of_a_fine_grid_is_better(n, d):
    """All values on a grid of 41 in [0, 1]: the grid's best is a cell's width away at most."""
    x, y = rng(d).uniform(size=(n, d)), rng(n).integers(0, 2, n).astype(float)
    y[:2] = 0.0, 1.0
    grid = np.array(list(itertools.product(np.linspace(0, 1, 41 if n == 3 else 21), repeat=n)))
    i, j = np.triu_indices(n, 1)
    lip = (abs(grid[:, i] - grid[:, j]) / np.linalg.norm(x[i] - x[j], axis=1)).max(1)
    for lam, L0 in ((0.01, 0.5), (0.05, 0.2), (0.3, 0.5)):
        found = minimise(x, y, lam=lam, L0=L0)
        best = (np.square(grid - y).mean(1) + lam * np.maximum(lip - L0, 0)).min()
        np.testing.assert_allclose(found.value, functional(x, y, found.values, lam, L0), rtol=1e-6)
        assert found.value <= best + 1e-8
        assert best - found.value < 0.02


CASES = {
    "1-D": (rng(0).uniform(size=(40, 1)), rng(1).integers(0, 2, 40).astype(float), L2),
    "2-D": (rng(2).uniform(size=(40, 2)), rng(3).normal(size=40), LINF),
    "images": (rng(4).uniform(size=(30, 3, 3, 1)), rng(5).normal(size=30), L1),
    "classes": (rng(6).uniform(size=(30, 2)), np.eye(3)[rng(7).integers(0, 3, 30)], L2),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@each_case
@pytest.mark.parametrize("lam", [1e-3, 1e-2])
def test_the_minimum_meets_its_optimality_conditions(case, lam):
    """No perturbation lowers the functional: random ones, at three scales, and towards the labels.

    Convexity makes of a local minimum a global one.
    """
    x, y, norm = case
    flat, L0 = x.reshape(len(x), -1), 0.5
    found = minimise(x, y, lam=lam, L0=L0, norm=norm)
    value = lambda f: functional(flat, y, f, lam, L0, norm.p)
    np.testing.assert_allclose(found.value, value(found.values), rtol=1e-9)
    np.testing.assert_allclose(found.L, slopes(flat, found.values, norm.p).max(), rtol=1e-9)
    assert L0 < found.L < slopes(flat, y, norm.p).max()
    draw = rng(9)
    others = [found.values + s * draw.normal(size=y.shape) for s in (1e-3, 1e-2, 0.1) * 100]
    others += [y, np.broadcast_to(y.mean(0), y.shape)]
    # A feasible direction: towards another function, of any constant up to that of the labels.
    others += [minimise(x, y, lam=lam * s, L0=L0, norm=norm).values for s in (0.5, 0.9, 1.1, 2.0)]
    for other in others:
        for t in (1e-2, 0.1, 1.0):
            assert value(found.values + t * (other - found.values)) >= found.value - 1e-8


def test_the_slope_of_the_minimum_is_the_best_of_all_slopes():
    """Given L the program is a projection, here by Dykstra's method; over L a scalar search."""
    x, y = rng(1).uniform(size=(5, 1)), np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    lam, L0 = 0.02, 0.5
    pairs = list(itertools.combinations(range(5), 2))

    def projection(L):
        f, corrections = y.copy(), np.zeros((len(pairs), 2))
        for _ in range(300):
            for row, (i, j) in enumerate(pairs):
                a = f[[i, j]] + corrections[row]
                excess = abs(a[0] - a[1]) - L * abs(x[i, 0] - x[j, 0])
                f[[i, j]] = a - np.array([0.5, -0.5]) * np.sign(a[0] - a[1]) * max(excess, 0.0)
                corrections[row] = a - f[[i, j]]
        return f

    value = lambda L: np.square(projection(L) - y).mean() + lam * (L - L0)
    best = minimize_scalar(value, bounds=(L0, slopes(x, y).max()), method="bounded")
    found = minimise(x, y, lam=lam, L0=L0)
    np.testing.assert_allclose(found.value, best.fun, atol=1e-6)
    np.testing.assert_allclose(found.values, projection(found.L), atol=1e-4)


def test_clean_labels_have_loss_zero():
    x = rng().uniform(size=(200, 2))
    clean = np.sin(x).sum(1) / np.sqrt(2)  # a gradient of 1 at most
    found = minimise(x, clean, lam=10.0, L0=1.0)
    np.testing.assert_array_equal(found.values, clean)
    assert (found.L, found.value) == (1.0, 0.0)


@each_case
def test_without_a_weight_the_labels_are_interpolated(case):
    x, y, norm = case
    found = minimise(x, y, lam=0.0, L0=0.0, norm=norm)
    np.testing.assert_array_equal(found.values, y)
    assert found.value == 0.0
    np.testing.assert_allclose(found.L, slopes(x, y, norm.p).max(), rtol=1e-12)


@each_case
def test_a_large_weight_leaves_the_slope_l0_and_nothing_to_gain_from_a_larger(case):
    x, y, norm = case
    flat = x.reshape(len(x), -1)
    spread = np.linalg.norm((y - y.mean(0)).reshape(len(x), -1), axis=1).mean()
    lam = (
        2 * spread * max(np.linalg.norm(a - b, norm.p) for a, b in itertools.combinations(flat, 2))
    )
    for weight in (lam, 1e9 * lam):
        found = minimise(x, y, lam=weight, L0=0.3, norm=norm)
        np.testing.assert_allclose(found.L, 0.3, rtol=1e-6)
        assert slopes(flat, found.values, norm.p).max() <= 0.3 * (1 + 1e-6)
    constant = minimise(x, y, lam=1e3 * lam, L0=0.0, norm=norm)
    mean = np.broadcast_to(y.mean(0), y.shape)
    np.testing.assert_allclose(constant.values, mean, atol=1e-5)


def test_distributions_are_fitted_by_distributions():
    x, y, _ = CASES["classes"]
    values = minimise(x, y, lam=1e-2, L0=0.5).values
    np.testing.assert_allclose(values.sum(1), 1.0, atol=1e-6)
    assert values.min() > -1e-6


def test_noisy_labels_are_corrected():
    """Two far groups of constant labels, a tenth of them flipped: rounding gives them all back."""
    x = np.concatenate([rng(0).uniform(0, 1, (50, 2)), rng(1).uniform(3, 4, (50, 2))])
    clean = np.repeat([0.0, 1.0], 50)
    noisy = clean.copy()
    noisy[::10] = 1 - clean[::10]
    values = minimise(x, noisy, lam=0.3, L0=0.5).values
    np.testing.assert_array_equal(values > 0.5, clean > 0.5)


def test_points_that_coincide_share_a_value_whatever_their_labels():
    """Three copies count as the weight 3 of their mean, plus what no function can explain."""
    x, y = np.array([[0.0], [1.0], [0.0], [-0.0]]), np.array([0.0, 1.0, 1.0, 0.5])
    found = minimise(x, y, lam=0.0, L0=0.0)
    np.testing.assert_allclose(found.values, [0.5, 1.0, 0.5, 0.5])
    np.testing.assert_allclose([found.L, found.value], [0.5, 0.5 / 4])
    # Weights 3/4 and 1/4: 2 w_i (t_i - f_i) = -+lam, away from the bend at L0.
    found = minimise(x, y, lam=0.05, L0=0.0)
    expected = np.array([0.5 + 0.05 / 1.5, 1.0 - 0.05 / 0.5])
    np.testing.assert_allclose(found.values, expected[[0, 1, 0, 0]], atol=1e-6)
    alike = minimise(np.zeros((3, 1)), np.array([0.0, 0.0, 3.0]), lam=1.0, L0=0.0)
    np.testing.assert_allclose(alike.values, 1.0)


def test_one_point_is_fitted():
    found = minimise(np.zeros((1, 2)), np.array([3.0]), lam=1.0, L0=2.0)
    assert (found.values.tolist(), found.L, found.value) == ([3.0], 2.0, 0.0)


def test_units_change_nothing():
    """Labels by b and inputs by a: L by b/a, lam by a b, the value by b^2."""
    x, y = rng().uniform(size=(30, 2)), rng(1).normal(size=30)
    found = minimise(x, y, lam=0.01, L0=0.5)
    for a, b in ((1e-6, 1e6), (255.0, 1e-6), (1.0, 1.0)):
        other = minimise(a * x, b * (y + 7), lam=0.01 * a * b, L0=0.5 * b / a)
        np.testing.assert_allclose(other.L, found.L * b / a, rtol=1e-6)
        np.testing.assert_allclose(other.value, found.value * b**2, rtol=1e-6)
        np.testing.assert_allclose(other.values / b - 7, found.values, atol=1e-5)


@pytest.mark.parametrize("d", [1, 2])
def test_a_thousand_noisy_points_are_solved(d):
    """Pairs so close that the labels' slope is in the thousands; the solver must report success."""
    x, y = rng().uniform(size=(1000, d)), rng(1).integers(0, 2, 1000).astype(float)
    for lam in (1e-4, 1e-2, 100.0):
        found = minimise(x, y, lam=lam, L0=1.0)
        np.testing.assert_allclose(
            found.value, functional(x, y, found.values, lam, 1.0), rtol=1e-6, atol=1e-6
        )
        assert found.value <= y.var() - (0.01 if lam == 1e-4 else -1e-8)


def test_the_minimum_is_extended_with_its_own_constant():
    x, y, _ = CASES["2-D"]
    found = minimise(x, y, lam=0.01, L0=0.5)
    np.testing.assert_allclose(extend(x, found.values, found.L)(x), found.values, atol=1e-5)


# What users get wrong.

X, Y = np.array([[0.0], [0.5], [1.0]]), np.array([0.0, 0.0, 1.0])
MANY = np.linspace(0, 1, 2100)[:, None]  # more rows than one block of pairs


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: extend(X, Y, 1.9), "slope 2 between points 1 and 2; L = 1.9"),
        (lambda: extend(X, np.stack([Y, 2 * Y], 1), 3.9), "slope 4 between points 1 and 2"),
        (lambda: extend(np.zeros((2, 1)), Y[1:], 9.0), "slope inf between points 0 and 1"),
        (lambda: extend(MANY, MANY[:, 0] == 1.0, 9.0), "slope 2099 between points 2098 and 2099"),
        (lambda: extend(X, Y, np.inf), "L = inf must be finite"),
        (lambda: extend(X, Y, np.nan), "L = nan must be finite"),
        (lambda: extend(X, Y, 2.0, side="middle"), "No side 'middle'; choose one of lower, mid"),
        (lambda: extend(X, Y, 2.0, simplex=True), "distributions over K classes"),
        (lambda: extend(X, np.ones((3, 2)), 2.0, simplex=True), "distributions over K classes"),
        (lambda: extend(X, Y, 2.0)(np.zeros((4, 2))), r"Points of shape \[4, 2\]; want \[m, 1\]"),
        (lambda: extend(X[:, 0], Y, 2.0), r"x has shape \[3\], y \[3\]; want \[n, ...\]"),
        (lambda: minimise(X, Y[:2], lam=1.0, L0=1.0), r"x has shape \[3, 1\], y \[2\]"),
        (lambda: minimise(X[:0], Y[:0], lam=1.0, L0=1.0), r"x has shape \[0, 1\], y \[0\]"),
        (lambda: minimise(X, Y * np.nan, lam=1.0, L0=1.0), "y has 3 entries of 3 that are not"),
        (lambda: minimise(X + np.inf, Y, lam=1.0, L0=1.0), "x has 3 entries"),
        (lambda: minimise(X, Y, lam=-1.0, L0=1.0), "lam = -1, L0 = 1; both must be finite"),
        (lambda: minimise(X, Y, lam=1.0, L0=np.nan), "lam = 1, L0 = nan; both must be finite"),
    ],
)
def test_what_is_wrong_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_solver_that_does_not_finish_is_not_believed(monkeypatch):
    hasty = interpolation.clarabel.DefaultSettings()
    hasty.max_iter = 2
    monkeypatch.setattr(interpolation.clarabel, "DefaultSettings", lambda: hasty)
    with pytest.raises(RuntimeError, match="The solver ended with MaxIterations, n = 3, "):
        minimise(X, Y, lam=0.01, L0=0.5)
