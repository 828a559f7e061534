"""Theorem 2.2 for every norm: the direction attains the dual, nothing in the ball beats it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg.norms import L1, L2, LINF, by_name, expand, finite, lp

NORMS = [L1, L2, LINF, lp(1.5), lp(3)]
each_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
KEY = jax.random.key(0)
# Images, so that the flattening is tested, too.
G = jax.random.normal(KEY, (6, 3, 2, 2))


def inner(a, b):
    return (a * b).reshape(a.shape[0], -1).sum(1)


def dual_exponent(norm):
    if norm.p == 1:
        return math.inf
    return 1.0 if norm.p == math.inf else norm.p / (norm.p - 1)


def numpy_norm(v, p):
    flat = np.asarray(v, np.float64).reshape(v.shape[0], -1)
    return np.linalg.norm(flat, ord=p, axis=1)


@each_norm
def test_size_and_dual_are_the_norms_of_numpy(norm):
    np.testing.assert_allclose(norm.size(G), numpy_norm(G, norm.p), rtol=2e-6)
    np.testing.assert_allclose(norm.dual(G), numpy_norm(G, dual_exponent(norm)), rtol=2e-6)


@each_norm
def test_the_direction_has_unit_size_and_attains_the_dual(norm):
    direction = norm.direction(G)
    np.testing.assert_allclose(norm.size(direction), np.ones(6), rtol=2e-6)
    np.testing.assert_allclose(inner(direction, G), norm.dual(G), rtol=2e-6)


@each_norm
def test_no_point_of_the_unit_ball_beats_the_direction(norm):
    """Hölder's inequality at random points of the sphere, its corners, and near the maximiser."""
    g = G[:1]
    scattered = jax.random.normal(jax.random.fold_in(KEY, 1), (500, *g.shape[1:]))
    nearby = norm.direction(g) + 0.01 * scattered
    corners = jnp.concatenate([jnp.eye(12), -jnp.eye(12)]).reshape(-1, *g.shape[1:])
    points = jnp.concatenate([scattered, nearby, corners, jnp.sign(scattered)])
    points = points / expand(norm.size(points), points)
    best = norm.dual(g)[0]
    reached = inner(points, jnp.broadcast_to(g, points.shape))
    assert reached.max() <= best * (1 + 1e-6)
    assert reached.max() > 0.9 * best  # the points near the maximiser nearly reach it


@each_norm
def test_the_norm_and_its_dual_pair_both_ways(norm):
    """The dual of the dual is the norm: a norm built from the dual exponent swaps the two."""
    other = lp(dual_exponent(norm))
    np.testing.assert_allclose(other.size(G), norm.dual(G), rtol=2e-6)
    np.testing.assert_allclose(other.dual(G), norm.size(G), rtol=2e-6)


@each_norm
def test_the_derivative_of_the_dual_is_the_direction(norm):
    """Danskin: the maximiser is the gradient of the maximum, here where it is unique."""
    gradient_of_dual = jax.grad(lambda g: norm.dual(g).sum())(G)
    np.testing.assert_allclose(gradient_of_dual, norm.direction(G), atol=2e-6)


def test_the_second_derivative_of_the_l2_norm_is_the_projector_over_the_norm():
    g = G.reshape(6, -1)[0]
    hessian = jax.hessian(lambda g: L2.dual(g[None])[0])(g)
    unit, size = g / jnp.linalg.norm(g), jnp.linalg.norm(g)
    np.testing.assert_allclose(hessian, (jnp.eye(12) - jnp.outer(unit, unit)) / size, atol=1e-6)


@pytest.mark.parametrize("norm", [lp(1.5), lp(3)], ids=lambda norm: norm.name)
def test_the_second_derivative_of_the_other_norms_agrees_with_differences(norm):
    g = G.reshape(6, -1)[0]
    slope = jax.grad(lambda g: norm.dual(g[None])[0])
    v = jax.random.normal(jax.random.fold_in(KEY, 2), g.shape)
    exact = jax.jvp(slope, (g,), (v,))[1]
    h = 1e-3
    np.testing.assert_allclose(exact, (slope(g + h * v) - slope(g - h * v)) / (2 * h), atol=2e-3)


@each_norm
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_gradients_keep_their_norm_and_their_direction(norm, scale):
    g = G * jnp.float32(scale)
    np.testing.assert_allclose(norm.dual(g), norm.dual(G) * jnp.float32(scale), rtol=1e-5)
    np.testing.assert_allclose(norm.size(g), norm.size(G) * jnp.float32(scale), rtol=1e-5)
    np.testing.assert_allclose(norm.direction(g), norm.direction(G), atol=1e-5)
    slope = jax.grad(lambda g: norm.dual(g).sum())(g)
    np.testing.assert_allclose(slope, norm.direction(G), atol=1e-5)


@each_norm
def test_a_zero_gradient_has_no_size_and_no_direction(norm):
    zero = jnp.zeros((2, 3, 2))
    for value in (norm.size(zero), norm.dual(zero), norm.direction(zero)):
        np.testing.assert_array_equal(value, jnp.zeros_like(value))


@each_norm
def test_derivatives_are_finite_to_second_order_also_at_zero(norm):
    # A row of zeros, a row with single zeros, a row without, at every scale.
    rows = jnp.array([[0.0, 0.0, 0.0], [0.0, 2.0, -1.0], [3.0, 2.0, -1.0]])
    rows = jnp.concatenate([rows * jnp.float32(scale) for scale in (1e-30, 1.0, 1e30)])

    def derivatives(function):
        first = jax.grad(lambda v: function(v).sum())
        # Forward over reverse, and what training does: reverse over reverse.
        return function(rows), first(rows), jax.jacfwd(first)(rows), jax.jacrev(first)(rows)

    for function in (norm.size, norm.dual):
        for value in jax.jit(lambda function=function: derivatives(function))():
            assert jnp.isfinite(value).all()
    slope = jax.jit(jax.jacrev(norm.direction))(rows[3:6])
    assert jnp.isfinite(slope).all()


def test_the_largest_entry_has_a_slope_where_a_program_computes_it_twice():
    """Without LLVM's passes, as here, the exponentials of two fusions differ in the last bit: where
    the maximum is looked for by comparison no entry attains it."""
    key = jax.random.key(0)
    w, u, v = (jax.random.normal(jax.random.fold_in(key, i), (64, 16)) for i in range(3))
    probabilities = lambda x: jax.nn.softmax(x @ w.T[:, :3])
    change = jax.jit(jax.grad(lambda u: LINF.size(probabilities(u) - probabilities(v)).sum()))
    assert jnp.isfinite(change(u)).all()
    np.testing.assert_allclose(change(u), change.__wrapped__(u), atol=1e-6)


@each_norm
def test_an_example_is_treated_by_itself(norm):
    eps = jnp.linspace(0.1, 2.0, 6)
    for row in range(6):
        alone = slice(row, row + 1)
        np.testing.assert_allclose(norm.direction(G[alone]), norm.direction(G)[alone], atol=1e-7)
        np.testing.assert_allclose(
            norm.project(G[alone], eps[row]), norm.project(G, eps)[alone], atol=1e-6
        )


@each_norm
def test_half_precision_is_measured_in_single_precision(norm):
    half = G.astype(jnp.bfloat16)
    for function in (norm.size, norm.dual, norm.direction):
        assert function(half).dtype == jnp.float32
        np.testing.assert_array_equal(function(half), function(half.astype(jnp.float32)))
    assert norm.project(half, 0.5).dtype == jnp.float32


def test_equal_largest_entries_give_the_l1_attack_its_first_pixel():
    np.testing.assert_array_equal(L1.direction(jnp.array([[1.0, -2.0, 2.0]])), [[0.0, -1.0, 0.0]])


RADII = {"small": 0.05, "zero": 0.0, "large": 50.0, "each": jnp.linspace(0.0, 5.0, 6)}
each_radius = pytest.mark.parametrize("radius", RADII.values(), ids=RADII.keys())


@each_norm
@each_radius
def test_a_projection_is_in_the_ball_and_stays_where_it_is(norm, radius):
    projected = norm.project(G, radius)
    assert projected.shape == G.shape
    assert (norm.size(projected) <= radius * (1 + 1e-5)).all()
    np.testing.assert_allclose(norm.project(projected, radius), projected, atol=2e-6)


@each_norm
@each_radius
def test_a_projection_leaves_the_points_of_the_ball_alone(norm, radius):
    inside = norm.direction(G) * expand(0.9 * jnp.broadcast_to(jnp.asarray(radius), 6), G)
    np.testing.assert_array_equal(norm.project(inside, radius), inside)


@pytest.mark.parametrize("norm", [L1, L2, LINF], ids=lambda norm: norm.name)
@each_radius
def test_a_projection_is_the_nearest_point_of_the_ball(norm, radius):
    """P(v) is nearest iff <v - P, z - P> <= 0 for all z in the ball; the largest <v - P, z> there
    is eps ||v - P||_*, so that one inequality covers them all."""
    projected = norm.project(G, radius)
    rest = G - projected
    slack = radius * norm.dual(rest) - inner(rest, projected)
    assert (slack <= 1e-5 * (1 + radius * norm.dual(rest))).all()


@each_norm
def test_a_radius_far_below_the_point_is_still_met(norm):
    v = jax.random.normal(KEY, (4, 500))
    for radius in (1e-1, 1e-3, 1e-5):
        np.testing.assert_allclose(norm.size(norm.project(v, radius)), radius, rtol=1e-4)


def test_a_number_is_expanded_to_the_shape_and_type_of_a_batch():
    v = jnp.zeros((2, 3, 4), jnp.bfloat16)
    assert expand(0.5, v).shape == (1, 1, 1)
    assert expand(jnp.ones(2), v).shape == (2, 1, 1)
    assert expand(0.5, v).dtype == jnp.bfloat16


def test_equal_exponents_give_the_same_norm():
    assert lp(2) is L2
    assert lp(math.inf) is LINF
    assert lp(1.5) is lp(1.5)
    assert [norm.name for norm in NORMS] == ["l1", "l2", "linf", "l1.5", "l3"]


def test_a_norm_has_one_name_by_which_configs_and_files_call_it():
    assert [by_name(name) for name in ("l1", "l2", "linf")] == [L1, L2, LINF]
    with pytest.raises(ValueError, match="No norm 'l3'; choose one of l1, l2, linf"):
        by_name("l3")


@pytest.mark.parametrize(("p", "said"), [(0.5, "0.5"), (-1, "-1"), (0, "0"), (math.nan, "nan")])
def test_an_exponent_below_one_is_refused(p, said):
    with pytest.raises(ValueError, match=rf"p = {said}; choose 1 <= p <= inf"):
        lp(p)


def test_an_entry_that_is_no_finite_number_is_none_of_a_finite_gradient():
    g = jnp.array([[1.0, jnp.nan, -2.0, jnp.inf], [-jnp.inf, 0.0, 3.0, 4.0]])
    np.testing.assert_array_equal(finite(g), [[1.0, 0.0, -2.0, 0.0], [0.0, 0.0, 3.0, 4.0]])


@each_norm
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_size_with_an_entry_that_is_no_finite_number_is_none(norm, value):
    v = G.at[0, 1, 0, 0].set(value).at[1].set(0.0)
    expected = jnp.abs(value)
    for size in (norm.size(v), norm.dual(v)):
        np.testing.assert_array_equal(size[:2], [expected, 0.0])


@each_norm
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0), (2, 3, 0)])
def test_without_examples_or_pixels_there_is_nothing_to_measure_or_move(norm, shape):
    v = jnp.zeros(shape)
    for size in (norm.size(v), norm.dual(v)):
        np.testing.assert_array_equal(size, np.zeros(shape[0]))
    assert norm.direction(v).shape == norm.project(v, 0.1).shape == shape
