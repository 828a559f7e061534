"""Known covering radii, closed forms of W_1, and rates with the manifold's dimension in them."""

import jax
import numpy as np
import pytest
from scipy import stats

from lipreg.norms import L1, L2, LINF
from lipreg.theory import convergence
from lipreg.theory.convergence import covering_radius, discrepancy, fit_rate

KEY = jax.random.key(0)


def compiled(manifold):
    """With one program for a chart in place of one for each of its operations."""
    return manifold._replace(chart=jax.jit(manifold.chart))


ROLL, CIRCLE, SPHERE = map(
    compiled, (convergence.swiss_roll(KEY), convergence.circle(), convergence.sphere())
)
MANIFOLDS = {
    "cube": (convergence.cube(3), 3, 3),
    "circle": (CIRCLE, 1, 2),
    "sphere": (SPHERE, 2, 3),
    "roll": (ROLL, 2, 20),
}
each_manifold = pytest.mark.parametrize("row", MANIFOLDS.values(), ids=MANIFOLDS.keys())


# Manifolds.


@each_manifold
def test_samples_follow_their_key_and_have_the_dimension_of_the_space(row):
    manifold, m, d = row
    sample = manifold.sample(KEY, 300)
    assert manifold.dimension == m
    assert sample.shape == (300, d)
    assert len(np.unique(sample, axis=0)) == 300
    np.testing.assert_array_equal(manifold.sample(KEY, 300), sample)
    assert abs(manifold.sample(jax.random.key(1), 300) - sample).max() > 0.1


@each_manifold
def test_a_reference_comes_closer_to_every_sample_as_it_grows(row):
    manifold, m, d = row
    assert manifold.reference(9).shape == (9**m, d)
    sample = manifold.sample(KEY, 300)
    coarse, fine = (covering_radius(manifold.reference(k), sample) for k in (9, 33))
    assert 0 < fine < 0.35 * coarse


@pytest.mark.parametrize(("manifold", "d"), [(CIRCLE, 2), (SPHERE, 3)], ids=["circle", "sphere"])
def test_circle_and_sphere_have_radius_one_and_are_uniform(manifold, d):
    x = np.asarray(manifold.sample(KEY, 4000))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(x.mean(0), 0.0, atol=0.05)
    # Every direction has the same share 1/d of the square.
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(d) / d, atol=0.03)


def test_a_roll_is_turned_without_a_change_of_distances():
    """In spaces of 20 and of 7 dimensions the Gram matrix is that of the roll itself."""
    u = np.random.default_rng(0).uniform(size=(36, 2)).astype(np.float32)
    t, h = 1.5 * np.pi * (1 + 2 * u[:, 0]), 21 * u[:, 1]
    roll = np.stack([t * np.cos(t), t * np.sin(t), h], -1)
    for turned in (ROLL, convergence.swiss_roll(jax.random.key(1), d=7)):
        points = np.asarray(turned.chart(u))
        np.testing.assert_allclose(points @ points.T, roll @ roll.T, atol=1e-3)
        assert abs(points).max(0).min() > 0.1  # no direction of the space is left out


# Covering radius.


def cells(m, k):
    """The centres of k^m equal cells: the corners are the farthest, `sqrt(m) / (2 k)` away."""
    axes = np.meshgrid(*[(np.arange(k) + 0.5) / k] * m, indexing="ij")
    return np.stack(axes, -1).reshape(-1, m)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_covering_radius_of_a_uniform_grid_and_its_slope_are_exact(m):
    sizes, reference = np.array([1, 2, 4]), convergence.cube(m).reference(9)
    for norm in (L1, L2, LINF):
        radii = [covering_radius(cells(m, k), reference, norm=norm) for k in sizes]
        np.testing.assert_allclose(radii, m ** (1 / norm.p) / (2 * sizes), rtol=1e-6)
        rate = fit_rate(sizes**m, radii)
        assert rate.low - 1e-9 <= -1 / m <= rate.high + 1e-9
        np.testing.assert_allclose(rate, -1 / m, rtol=1e-6)


def test_a_reference_underestimates_by_its_own_covering_radius_at_most():
    points, cube = cells(2, 5)[::3], convergence.cube(2)
    true = covering_radius(points, cube.reference(201))
    for k in (3, 8):
        own = np.diff(np.unique(cube.reference(k + 1))).max() / np.sqrt(2)  # half a diagonal
        assert true - own <= covering_radius(points, cube.reference(k + 1)) <= true + 1e-7


def test_images_are_points_too():
    images = np.zeros((2, 2, 2, 1))
    images[1] = 1.0
    assert covering_radius(images[:1], images) == 2.0


def rate_of_covering(manifold, reference, sizes=(200, 400, 800, 1600), repeats=5):
    """The slope in `n / log n`, in which Lemma 2.9 has `-1/m` without a logarithm."""
    points = np.asarray(manifold.sample(KEY, repeats * sum(sizes)))
    ends = np.cumsum(np.repeat(sizes, repeats))
    radii = [covering_radius(part, reference) for part in np.split(points, ends[:-1])]
    return fit_rate(np.array(sizes) / np.log(sizes), np.reshape(radii, (len(sizes), repeats)))


@pytest.mark.parametrize("name", ["circle", "sphere", "roll"])
def test_the_covering_radius_falls_with_the_dimension_of_the_manifold_not_of_the_space(name):
    manifold, m, d = MANIFOLDS[name]
    rate = rate_of_covering(manifold, manifold.reference({1: 4000, 2: 80}[m]))
    assert rate.low < -1 / m < rate.high
    other = [-1 / k for k in (1, 2, 3, d) if k != m]
    assert all(abs(rate.slope + 1 / m) < abs(rate.slope - slope) for slope in other)


# Discrepancy.


def test_one_sample_and_midpoints_have_their_closed_forms():
    for c in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(discrepancy([c]), (c**2 + (1 - c) ** 2) / 2, rtol=1e-12)
    np.testing.assert_allclose(discrepancy([-1.0]), 1.5, rtol=1e-12)  # out of the interval, too
    for n in (1, 4, 100):
        np.testing.assert_allclose(discrepancy(cells(1, n)[:, 0]), 1 / (4 * n), rtol=1e-12)


def test_the_closed_form_against_the_uniform_law_is_scipys_against_a_fine_grid():
    x = np.random.default_rng(0).uniform(-0.1, 1.2, 30)
    k = 20000
    grid = cells(1, k)[:, 0]
    np.testing.assert_allclose(discrepancy(x), stats.wasserstein_distance(x, grid), atol=1 / k)
    np.testing.assert_allclose(discrepancy(x), discrepancy(x, grid), atol=1 / k)


def test_discrepancy_is_the_supremum_over_lipschitz_functions():
    """None of many exceeds it, and the one with slope `sign(F - F_n)` attains it."""
    x = np.sort(np.random.default_rng(0).uniform(size=7))
    grid = cells(1, 100000)[:, 0]
    found = discrepancy(x, L=2.0)
    gap = lambda f: abs(f(x).mean() - f(grid).mean())
    for w in (0.3, 1.0, 2.0, 5.0, 9.0):
        assert gap(lambda t, w=w: 2.0 * np.sin(w * t) / w) <= found + 1e-4
    slope = 2.0 * np.sign(grid - np.searchsorted(x, grid) / len(x))
    best = np.cumsum(slope) / len(grid)
    np.testing.assert_allclose(gap(lambda t: np.interp(t, grid, best)), found, rtol=1e-3)


def test_discrepancy_scales_with_the_lipschitz_constant():
    x, z = np.random.default_rng(0).uniform(size=(2, 20))
    for L in (0.0, 0.5, 7.0):
        np.testing.assert_allclose(discrepancy(x, L=L), L * discrepancy(x))
        np.testing.assert_allclose(discrepancy(x, z, L=L), L * discrepancy(x, z))
    assert discrepancy(x, x[::-1]) == 0.0


def test_w1_of_uniform_samples_falls_as_the_root_of_n_with_the_brownian_bridges_constant():
    """`sqrt(n) E W_1 -> int_0^1 E|B(t)| dt = sqrt(2/pi) int sqrt(t (1 - t)) dt = sqrt(pi/32)`."""
    draw = np.random.default_rng(0)
    sizes = np.array([50, 200, 800, 3200])
    values = np.array([[discrepancy(draw.uniform(size=n)) for _ in range(200)] for n in sizes])
    rate = fit_rate(sizes, values)
    assert rate.low < -0.5 < rate.high
    assert rate.high - rate.low < 0.1
    constant = values.mean(1) * np.sqrt(sizes)
    np.testing.assert_allclose(constant, np.sqrt(np.pi / 32), rtol=0.1)


# Rates.


def test_a_power_has_its_exponent_and_no_uncertainty():
    n = np.array([10, 30, 100, 1000])
    for r in (-0.5, -1 / 20, 2.0):
        np.testing.assert_allclose(fit_rate(n, 3.0 * n**r), r, atol=1e-7)
        np.testing.assert_allclose(fit_rate(n, np.outer(n**r, [3.0, 3.0])), r, atol=1e-7)


def test_a_fit_is_scipys_and_its_interval_students():
    n = np.array([10, 40, 90, 300])
    values = n[:, None] ** -0.5 * np.exp(np.random.default_rng(0).normal(size=(4, 3)))
    fit = stats.linregress(np.log(np.repeat(n, 3)), np.log(values.ravel()))
    for confidence in (0.5, 0.95):
        reach = stats.t.ppf(0.5 + confidence / 2, 10) * fit.stderr
        expected = fit.slope, fit.slope - reach, fit.slope + reach
        np.testing.assert_allclose(fit_rate(n, values, confidence=confidence), expected, rtol=1e-9)


def test_an_interval_of_95_percent_holds_the_truth_19_times_in_20():
    draw, n = np.random.default_rng(0), np.array([10, 20, 40])
    held = 0
    for _ in range(1000):
        rate = fit_rate(n, n[:, None] ** -0.5 * np.exp(0.3 * draw.normal(size=(3, 2))))
        held += rate.low < -0.5 < rate.high
    assert 930 <= held <= 970


# What users get wrong.


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: convergence.swiss_roll(KEY, 2), "d = 2 dimensions; it needs at least 3"),
        (lambda: convergence.cube(0), "m = 0; a cube has at least 1 dimension"),
        (lambda: covering_radius(np.zeros((0, 2)), np.zeros((3, 2))), r"points has shape \[0, 2\]"),
        (lambda: covering_radius(np.zeros((3, 2)), np.zeros(3)), r"reference has shape \[3\]"),
        (lambda: covering_radius(np.full((3, 2), np.nan), np.zeros((3, 2))), "want finite points"),
        (
            lambda: covering_radius(np.zeros((3, 2)), np.zeros((3, 1))),
            "2 numbers, a reference of 1",
        ),
        (lambda: discrepancy(np.zeros((3, 2))), r"samples has shape \[3, 2\]"),
        (lambda: discrepancy([]), r"samples has shape \[0\]"),
        (lambda: discrepancy([0.5], [np.nan]), r"reference has shape \[1\]; want finite"),
        (lambda: discrepancy([0.5], L=-1.0), "L = -1; a Lipschitz constant"),
        (lambda: fit_rate([1, 2], [1.0, 2.0]), "three values at least"),
        (lambda: fit_rate([1, 2, 3], [1.0, 2.0]), r"n has shape \[3\], values \[2\]"),
        (lambda: fit_rate([2, 2, 2], [1.0, 2.0, 3.0]), "two different n"),
        (lambda: fit_rate([1, 2, 3], [1.0, 0.0, 3.0]), "positive finite values"),
        (lambda: fit_rate([1, 2, 3], [1.0, np.nan, 3.0]), "positive finite values"),
        (lambda: fit_rate([1, 2, 3], [1.0, 2.0, 3.0], confidence=95), "confidence = 95; choose"),
    ],
)
def test_what_is_wrong_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
