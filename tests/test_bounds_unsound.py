"""Functions whose bounds were once called certified and were too small, or the like of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lipreg.certificates import interval_bound, margin_lipschitz, margin_local
from lipreg.lipschitz import declare
from lipreg.lipschitz.bounds import bounder, interval, lipschitz
from lipreg.lipschitz.bounds.forms import read_as
from lipreg.models.lipschitz import aol, l2_pooled, linear

X = jnp.full((1, 1), 0.5)
HALF, ZERO, ONE = (lambda x: jax.nn.relu(x - 0.25)), jnp.zeros_like, jnp.ones_like

# Each jumps where a clipped value reaches its limit, at points inside of a cell.
JUMPS = {
    "clipped": lambda x: jnp.where(jnp.clip(x, 0.3, 0.7) > 0.3, 0 * x, HALF(x)),
    "clipped, the other way round": lambda x: jnp.where(jnp.clip(x, 0.3, 0.7) >= 0.7, x, ONE(x)),
    "a valley": lambda x: jnp.where(
        jnp.maximum(jnp.abs(x * x - 0.0784), 0.01) > 0.01, ONE(x), ZERO(x)
    ),
    "a unit that is off": lambda x: jnp.where(
        jax.nn.relu(jnp.abs(jnp.tanh(x) - 0.28) - 0.01) > 0, ONE(x), 0 * x
    ),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_inside_of_a_cell_has_no_slope(name):
    assert lipschitz(JUMPS[name], X).output == jnp.inf


def test_a_box_around_a_jump_has_both_of_its_sides():
    f = JUMPS["a unit that is off"]
    low, high = interval(f, jnp.zeros((1, 1)), jnp.ones((1, 1)))
    assert low <= 0
    assert high >= 1
    logits = lambda x: jnp.concatenate([f(x), 0.5 + 0 * x], 1)
    x, y = jnp.array([[0.9]]), jnp.array([0])
    assert interval_bound(logits, x, y).radius < 0.62  # tanh(0.2877) = 0.28
    assert margin_local(logits, x, y).radius < 0.62


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.where(jnp.abs(x) < 0.25, 2 * x * x, jnp.abs(x) - 0.125),
        lambda x: jnp.where(x > 0.25, 0.5 - x, x),
        jax.nn.elu,
        jax.nn.hard_tanh,
    ],
    ids=["huber", "tent", "elu", "hard_tanh"],
)
def test_cases_that_agree_where_a_monotone_condition_switches_have_their_slope(f):
    assert lipschitz(f, X).output <= 1.001


@pytest.mark.parametrize("end", [-4.0, -32768.0])
def test_a_jump_at_the_lower_end_of_the_box_is_seen_however_far_it_is(end):
    f = lambda x: jnp.where(x > end, ONE(x), ZERO(x))
    assert lipschitz(f, jnp.zeros((1, 1)), bounds=(end, -end)).output == jnp.inf


def kernel(n):
    k = jax.random.normal(jax.random.key(0), (3, 3, n, n))
    return k / jnp.abs(k).sum()


def symmetric(first, second, padding=((1, 1), (1, 1)), sides=(4, 4), between=None):
    """`v - 2 B relu(A v)` on an image, B the transpose of A in layouts of NHWC."""
    k = kernel(1)

    def f(x):
        v = x.reshape(1, 4, 4, 1)
        layout = lambda out: ("NHWC", "HWIO", out)
        u = jax.nn.relu(
            lax.conv_general_dilated(v, k, (1, 1), padding, dimension_numbers=layout(first))
        )
        u = u if between is None else u.reshape(between)
        back = jnp.flip(k, (0, 1)).swapaxes(2, 3)
        w = lax.conv_general_dilated(u, back, (1, 1), padding, dimension_numbers=layout(second))
        return (v - 2 * w.reshape(v.shape)).reshape(1, -1)

    return f


def steepest(f, x, bounds=(-1.0, 1.0)):
    points = jax.random.uniform(jax.random.key(1), (300, *x.shape), minval=bounds[0])
    norms = jax.vmap(lambda p: jnp.linalg.norm(jax.jacobian(f)(p).reshape(-1, x.size), 2))
    return norms(points).max()


@pytest.mark.parametrize(
    ("options", "one"),
    [
        (("NHWC", "NHWC"), True),
        (("NHWC", "NWHC"), False),
        (("NWHC", "NHWC"), False),
        (("NHWC", "NHWC", [(1, 1), (1, 1)], (4, 4), (1, 2, 8, 1)), False),
    ],
)
def test_a_residual_is_one_map_only_where_both_convolutions_see_the_same_image(options, one):
    f, x = symmetric(*options), jnp.zeros((1, 16))
    bound = lipschitz(f, x, bounds=(-1.0, 1.0)).output[0]
    assert steepest(f, x) <= bound * (1 + 1e-5)
    assert (bound <= 1.0001) == one


@pytest.mark.parametrize("layout", ["NHWC", "NWHC"])
def test_a_sandwich_on_a_torus_is_one_only_where_both_convolutions_see_the_same_image(layout):
    """At each frequency one of the two has gain sqrt(2), by which side of the diagonal it is on."""
    n = 4
    f = np.minimum(np.arange(n), n - np.arange(n))
    first = np.where(f[:, None] > f[None], 1.0, np.where(f[:, None] < f[None], 0.0, 0.5))
    kernels = [np.fft.ifft2(np.sqrt(2 * share)).real for share in (first, 1 - first)]
    a, b = (jnp.asarray(k, jnp.float32).reshape(n, n, 1, 1) for k in kernels)
    wrapped = lambda v: jnp.pad(v, ((0, 0), (0, n - 1), (0, n - 1), (0, 0)), mode="wrap")
    conv = lambda v, k, into: lax.conv_general_dilated(
        wrapped(v), k, (1, 1), "VALID", dimension_numbers=(into, "HWIO", "NHWC")
    )
    g = lambda x: conv(jax.nn.relu(conv(x.reshape(1, n, n, 1), a, "NHWC")), b, layout).reshape(
        1, -1
    )
    bound = lipschitz(g, jnp.full((1, n * n), 0.5)).output[0]
    assert steepest(g, jnp.zeros((1, n * n))) <= bound * (1 + 1e-5)
    assert bound <= (1.0001 if layout == "NHWC" else 3)


def test_the_margins_of_each_examples_class_are_not_those_of_all_classes():
    """With as many examples as classes both would have the same shape."""
    f = lambda x: jnp.stack([jax.nn.relu(x[:, 0] - 0.5) * 100 - x[:, 0], 0 * x[:, 0]], 1)
    x, y = jnp.array([[0.1], [0.9]]), jnp.array([1, 0])
    own, every = bounder(f, x, y=y)(0.3), lipschitz(f, x, 0.3)
    assert own.margins.shape == (2, 1, 2)
    radii = [margin_lipschitz(f, x, y, constant=constant).radius for constant in (own, every)]
    np.testing.assert_allclose(*radii)
    assert radii[0][0] <= 0.1  # f(0) is a tie, which the first class wins


def test_a_local_bound_certifies_its_own_ball_and_its_own_examples():
    f = lambda x: jnp.stack([0.6 + 0 * x[:, 0], 10 * jax.nn.relu(x[:, 0] - 0.5)], 1)
    x, y = jnp.array([[0.3], [0.55]]), jnp.array([0, 0])
    local = lipschitz(f, x[:1], 0.1)
    # Within 0.1 of 0.3 the second logit is 0.
    radius = margin_lipschitz(f, x[:1], y[:1], constant=local).radius
    np.testing.assert_allclose(radius, 0.1, rtol=1e-6)
    with pytest.raises(ValueError, match="constant holds around 1 example; x has 2"):
        margin_lipschitz(f, x, y, constant=local)
    everywhere = margin_lipschitz(f, x, y, constant=lipschitz(f, x[:1])).radius
    np.testing.assert_allclose(everywhere, [0.06, 0.01], rtol=1e-4)


def test_a_declared_function_that_was_transformed_is_not_the_declared_one():
    c = 0.777 + 1e-6 * jnp.arange(9.0)
    member = lambda c: declare(lambda x: jnp.tanh(2000 * (x - c)) / 2000, 1.0, proof="of tanh")
    ensemble = lambda x: jax.vmap(lambda c: member(c)(x))(c)[:, 0, :].reshape(1, -1)
    with pytest.raises(ValueError, match=r"constant 1.0 is transformed, by vmap"):
        lipschitz(ensemble, X)
    slope = lambda x: jax.vmap(jax.grad(lambda v: member(c[0])(v[None])[0, 0]))(x)
    with pytest.raises(ValueError, match="is transformed, by vmap"):
        lipschitz(slope, X)
    each = jax.vmap(lambda v: member(c[0])(v[None])[0])  # over x alone
    assert lipschitz(each, jnp.full((1, 3), 0.5)).output <= 1.0001


def test_an_even_kernel_has_no_middle():
    with pytest.raises(ValueError, match="A kernel of 2 x 2; want odd sides"):
        linear(jnp.ones((1, 4, 4, 1)), aol(jnp.ones((2, 2, 1, 1))), "circular")


def test_images_one_rounding_outside_of_their_box_are_inside():
    mean, std = np.float32(0.2860), np.float32(0.3530)
    x = (jnp.array([[0.0, 1.0]]) - mean) / std
    bounds = ((0 - 0.2860) / 0.3530, (1 - 0.2860) / 0.3530)
    assert lipschitz(lambda x: 3 * x, x, bounds=bounds).output == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_norm_has_slope_one_with_and_without_its_axis(keepdims):
    f = lambda x: jnp.linalg.norm(x, axis=1, keepdims=keepdims).reshape(1, 1)
    bound = lipschitz(f, jnp.full((1, 8), 0.1), bounds=(-2.0, 2.0))
    assert bound.output == pytest.approx(1, rel=1e-5)


def test_a_sort_of_several_arrays_is_refused():
    f = lambda x: lax.sort((x, jnp.arange(3.0)[None]), num_keys=1)[1]
    with pytest.raises(ValueError, match="No bound for a sort of several arrays"):
        lipschitz(f, jnp.full((1, 3), 0.5))


# Look-alikes of what is bounded as one map, or as one branch: each is steeper than that.

OFF = jnp.asarray(False)


def pairs(x):
    return x.reshape(-1, 2, 3)


def constant_output(x):
    branch = lambda c: lambda x: (x, jnp.full((), c, x.dtype))
    y, s = lax.cond(OFF, branch(1.0), branch(10.0), x)
    return y * s


def beside_a_mask(x):
    masked = lambda s: lambda x: jnp.concatenate([s * x, jnp.full((len(x), 1), -1e9, x.dtype)], 1)
    return lax.cond(OFF, masked(1.0), masked(1.9), x)[:, :2]


def shift_added(x):
    s = x.max(1, keepdims=True)
    return jnp.log(jnp.exp(x + s).sum(1, keepdims=True)) + s


def copies_of_a_sum(x):
    most = jnp.broadcast_to(x.max(1, keepdims=True), x.shape)
    return jnp.log(jnp.exp(x - most).sum(1, keepdims=True)) + most


def sum_of_the_other_pair(x):
    z = pairs(x)
    most = z.max(-1)
    log = jnp.log(jnp.exp(z - most[..., None]).sum(-1))
    return (z - (log[:, ::-1] + most[:, ::-1])[..., None]).reshape(len(x), -1)


def length_of_the_other_pair(x):
    lengths = jnp.linalg.norm(pairs(x), axis=-1)[:, ::-1] + 0.01
    return (pairs(x) / lengths[..., None]).reshape(len(x), -1)


def deviation_of_the_other_pair(x):
    w = pairs(x)
    squares, mean = jnp.square(w).mean(-1)[:, ::-1], w.mean(-1)[:, ::-1]
    variance = jnp.maximum(squares - jnp.square(mean), 0)
    centred = w - w.mean(-1, keepdims=True)
    return (centred / jnp.sqrt(variance + 1e-2)[..., None]).reshape(len(x), -1)


def sums_beside_a_constant(x):
    rows = jnp.concatenate([jnp.ones((len(x), 1), x.dtype), x], 1)
    sums = rows.reshape(-1, 2, 2).sum(2)
    return rows + 10 * jnp.concatenate([sums[:, 1:], sums[:, :1], sums[:, 1:], sums[:, 1:]], 1)


def two_conditions_that_switch(x):
    return jnp.where((x > 0.25) == (x < 0.25), 5.0, x)


LOOKALIKES = {
    constant_output: ([0.5, 0.2], 10.0),
    beside_a_mask: ([0.5, 0.2], 1.9),
    shift_added: ([0.5, 0.2, 0.9], 2.5),
    copies_of_a_sum: ([9.0, 0.2, 0.9], 1.731),
    sum_of_the_other_pair: ([9.0, 0.2, 0.9, 8.0, 0.1, 0.3], 2.52),
    length_of_the_other_pair: ([1.0, 0.2, 0.9, 0.02, 0.01, 0.03], 823.0),
    deviation_of_the_other_pair: ([1.0, 0.2, 0.9, 0.50, 0.501, 0.502], 10.21),
    sums_beside_a_constant: ([0.5, 0.2, 0.3], 25.3),
    two_conditions_that_switch: ([0.5, 0.2], np.inf),
}


@pytest.mark.parametrize("f", LOOKALIKES, ids=lambda f: f.__name__)
def test_what_only_looks_like_one_map_is_as_steep_as_it_is(f):
    x, least = LOOKALIKES[f]
    found = lipschitz(f, jnp.asarray([x]), np.inf if least == np.inf else 0.1, bounds=(-10.0, 10.0))
    assert found.output[0] >= least


def test_branches_without_outputs_or_with_conditions_are_what_they_are():
    same = lambda x: 2 * lax.cond(OFF, lambda x: x, lambda x: x, x)
    np.testing.assert_allclose(lipschitz(same, jnp.zeros((1, 2))).output, 2.0, rtol=1e-5)
    empty = lambda x: jnp.einsum("bki,io->bko", x[:, None][:, :0], jnp.ones((2, 3))).sum((1, 2))
    flat = lipschitz(lambda x: empty(x)[:, None] + x, jnp.zeros((1, 2)))
    np.testing.assert_allclose(flat.output, 1.0, rtol=1e-5)


CORNER = jnp.array([[0.5, 0.25]])


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.sqrt(x[:, :1]),
        lambda x: jnp.log(x[:, :1]),
        lambda x: x[:, :1] ** -1.0,
        lambda x: lax.rsqrt(x[:, :1]),
        lambda x: jnp.concatenate([jnp.sqrt(x[:, :1]), x[:, 1:]], 1),
        lambda x: (
            jnp.concatenate([jnp.sqrt(x[:, :1]), x[:, 1:]], 1) @ jnp.diag(jnp.array([1, 3.0]))
        ),
    ],
)
def test_what_is_infinitely_steep_at_a_corner_of_the_box_has_no_bound(f):
    assert lipschitz(f, CORNER).output == jnp.inf


@pytest.mark.parametrize(
    ("f", "eps", "pair"),
    [
        (
            lambda x: (
                jnp.concatenate([x[:, :2], (x[:, 2:] > 0.5).astype(x.dtype)], 1)
                * jnp.array([[3.0, -3.0, 1.0]])
            ),
            jnp.inf,
            (0, 1),
        ),
        (
            lambda x: jnp.sqrt(x) * jnp.eye(3)[2:] + x * jnp.array([[3.0, -3.0, 0.0]]),
            jnp.inf,
            (0, 1),
        ),
        (
            lambda x: (
                jnp.concatenate([jnp.sqrt(x[:, :1]), x[:, 1:]], 1)
                @ jnp.diag(jnp.array([1.0, 3.0, -3.0]))
            ),
            0.1,
            (1, 2),
        ),
    ],
)
def test_margins_between_finite_outputs_are_not_lost_beside_an_infinite_one(f, eps, pair):
    x = jnp.array([[0.05, 0.25, 0.5]])
    margins = lipschitz(f, x, eps).margins[0]
    assert np.sqrt(18) <= margins[pair]
    assert eps < 1 or margins[pair] < 6.1
    (steep,) = {0, 1, 2} - set(pair)
    assert (margins[steep, list(pair)] == jnp.inf).all()


def test_margins_are_not_lost_beside_a_far_larger_one():
    with jax.enable_x64(True):
        x = jnp.array([[0.5, 0.25, 0.5]])
        steep = lambda x: jnp.concatenate([x[:, :1], -x[:, 1:2], jnp.exp(700 * x[:, 2:])], 1)
        assert np.sqrt(2) <= lipschitz(steep, x).margins[0, 0, 1] < 2.1
        dense = lambda x: steep(x) @ jnp.diag(jnp.array([1.0, 1.0, 0.5]))
        for eps in (0.1, jnp.inf):
            assert np.sqrt(2) <= lipschitz(dense, x, eps).margins[0, 0, 1]


def test_a_condition_that_leaves_a_branch_is_refused():
    keep = lambda m: lax.cond(jnp.asarray(True), lambda m: m, lambda m: jnp.ones_like(m), m)
    for f in (
        lambda x: jnp.where(keep(x > 0), 5.0, 1.0),
        lambda x: x + 5 * keep(x > 0).astype(x.dtype),
    ):
        with pytest.raises(ValueError, match="a condition on x that a branch returns"):
            lipschitz(f, CORNER)


def test_platforms_are_not_alike_because_a_constant_is_large():
    beside = lambda s: lambda x: jnp.concatenate([s * x, jnp.full((1, 1), -1e10)], 1)
    added = lambda s: lambda x: s * x + 1e12
    for made in (beside, added):
        f = lambda x, made=made: lax.platform_dependent(x, cpu=made(9.0), default=made(1.0))[:, :2]
        assert lipschitz(f, CORNER).output >= 9.0


def test_another_form_is_not_read_where_vmap_or_grad_has_made_another_function():
    h = read_as(lambda x: jnp.cumsum(x, 0))(lambda x: jnp.cumsum(x, 0))
    x = jnp.array([[0.5, 0.25, 0.1]])
    exact = np.linalg.norm(np.tri(3), 2)
    for f in (lambda x: jax.vmap(h)(x), lambda x: h(x[0])[None]):
        np.testing.assert_allclose(lipschitz(f, x).output, exact, rtol=1e-5)
    pooled = lambda v: l2_pooled(v.reshape(1, 2, 2, 1)).reshape(1)
    x = jnp.array([[0.5, 0.25, 0.1, 0.2]])
    assert lipschitz(lambda x: jax.vmap(pooled)(x), x).output >= 1.0
    slope = jax.grad(lambda v: pooled(v).sum())
    with pytest.raises(ValueError, match="No bound for"):
        lipschitz(lambda x: slope(x[0])[None], x, bounds=(0.1, 1.0))


def test_a_declared_function_of_a_condition_is_refused():
    d = declare(lambda m: jnp.where(m, 1.0, 0.0), 1000.0, proof="of booleans")
    with pytest.raises(ValueError, match="declared function of bool: it takes steps"):
        lipschitz(lambda x: d(x > 0.5), jnp.array([[0.4999, 0.25]]))


def test_a_function_applied_to_entries_is_refused_by_name():
    with pytest.raises(ValueError, match="'scatter' that applies a function"):
        lipschitz(lambda x: x.at[:, 0].apply(jnp.negative, unique_indices=True), CORNER)


def test_a_convolution_of_nothing_and_one_to_nothing_have_bounds():
    window = jnp.ones((2, 1, 3))
    nothing = lambda x: lax.conv_general_dilated(x.reshape(1, 1, 2), window, (1,), [(0, 0)])
    f = lambda x: jnp.concatenate([nothing(x).reshape(1, -1), x], 1)
    np.testing.assert_allclose(lipschitz(f, CORNER).output, 1.0, rtol=1e-5)
    empty = lambda x: lax.conv_general_dilated(x[:, :0].reshape(1, 1, 0), window, (1,), [(2, 2)])
    g = lambda x: jnp.concatenate([empty(x).reshape(1, -1), x], 1)
    np.testing.assert_allclose(lipschitz(g, CORNER).output, 1.0, rtol=1e-5)


def test_a_sum_that_overflows_in_its_middle_says_nothing():
    """`log(exp(709.7 x))` is 709.7 x; the ends of exp's box are finite, and their sum is not."""
    with jax.enable_x64(True):
        f = lambda x: jnp.log(jnp.exp(709.7 * x) @ jnp.ones((1, 1)))
        low, high = interval(f, jnp.full((1, 1), 0.9997), jnp.ones((1, 1)))
        assert low <= 709.7 * 0.9997
        assert high >= 709.7
        far = jnp.full((1, 3), 1e308)
        low, high = interval(lambda x: x @ jnp.array([[1.0], [1.0], [-1.5]]), far, far)
        assert low <= 0.5e308 <= high


def test_a_product_that_underflows_is_not_0():
    """The identity, by way of numbers that float64 does not have."""

    def f(x):
        for factor in (1e-38, 1e38):
            for _ in range(9):
                x = x * factor
        return x

    assert lipschitz(f, jnp.ones((1, 1))).output >= 1
    low, high = interval(f, jnp.zeros((1, 1)), jnp.ones((1, 1)))
    assert low <= 0
    assert high >= 1


@pytest.mark.parametrize(
    ("f", "found"),
    [
        (lambda x: (x, x), r"returned \[1, 2\], \[1, 2\]"),
        (lambda x: (), "returned nothing"),
        (lambda x: x[0], r"returned \[2\]"),
    ],
)
def test_what_is_not_one_array_of_logits_is_refused(f, found):
    with pytest.raises(ValueError, match=f"f must return .*; for one example it {found}"):
        bounder(f, jnp.zeros((1, 2)))


def test_so_many_examples_at_a_time_have_the_bounds_of_all_at_once():
    w = jax.random.normal(jax.random.key(0), (3, 4))
    f = lambda x: jax.nn.relu(x @ w) @ w.T
    x, y = jax.random.uniform(jax.random.key(1), (5, 3)), jnp.arange(5) % 3
    for eps in (0.1, jnp.inf):
        whole, parts = (bounder(f, x, y=y, batch_size=size)(eps) for size in (None, 2))
        np.testing.assert_allclose(parts.margins, whole.margins, rtol=1e-6)
        np.testing.assert_allclose(parts.output, whole.output, rtol=1e-6)
