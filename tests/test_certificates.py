"""Certified radii against exact distances, against attacks, and against their own confidence."""

from functools import partial
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, binomtest
from scipy.stats import norm as gauss

from lipreg import attacks, curves, datasets, models
from lipreg.certificates import (
    comparison,
    first_order,
    interval_bound,
    largest_curvature,
    loss_lipschitz,
    margin_last_layer,
    margin_lipschitz,
    margin_local,
    second_order,
    smoothing,
)
from lipreg.lipschitz import Constant, gradient_norms, of_data, of_function, of_linear
from lipreg.lipschitz.bounds import LipschitzBound, lipschitz
from lipreg.losses import cross_entropy, margin
from lipreg.norms import L1, L2, LINF
from lipreg.reports import certified
from lipreg.runs.config import base_config
from lipreg.runs.experiment import Loaded

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
ROOM = 1 + 1e-5  # for float32
EXACT = partial(Constant, kind="exact")


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.normal(size=shape), jnp.float32)


# Linear models. Far from the edges of the box, their distances are known.

W = normal(4, 12)
X = jnp.asarray(RNG.uniform(0.4, 0.6, size=(16, 3, 4)), jnp.float32)
linear = lambda x: x.reshape(len(x), -1) @ W.T
Z = np.asarray(linear(X))
Y = jnp.asarray(np.where(np.arange(16) < 12, Z.argmax(1), Z.argmin(1)))  # the last four are wrong
MARGINS = np.linalg.norm(np.asarray(W[:, None] - W[None]), axis=2)


def distances(norm=L2):
    """`min_{j != y} (z_y - z_j)^+ / ||w_y - w_j||_*`."""
    y = np.asarray(Y)
    gaps = Z[np.arange(16), y][:, None] - Z
    sizes = np.asarray(norm.dual((W[y][:, None] - W[None]).reshape(64, 12))).reshape(16, 4).copy()
    gaps[np.arange(16), y], sizes[np.arange(16), y] = np.inf, 1
    return np.maximum((gaps / sizes).min(1), 0)


def test_a_linear_model_is_certified_up_to_its_exact_distance():
    exact = distances()
    assert (exact[:12] > 0).all()
    assert (exact[12:] == 0).all()
    found = {
        "proved": margin_lipschitz(linear, X, Y, constant=lipschitz(linear, X)),
        "given": margin_lipschitz(  # one table for all images
            linear,
            X,
            Y,
            constant=LipschitzBound(jnp.asarray(jnp.inf), jnp.asarray(MARGINS), "exact"),
        ),
        "curvature": second_order(linear, X, Y, curvature=EXACT(0.0)),
    }
    for name, (radius, kind) in found.items():
        assert kind == "certified"
        np.testing.assert_allclose(radius, exact, rtol=2e-5, atol=1e-6, err_msg=name)


def test_no_certificate_of_a_linear_model_exceeds_its_distance():
    loss = loss_lipschitz(linear, X, Y, constant=EXACT(MARGINS.max()))
    first = first_order(linear, X, Y, constant=EXACT(MARGINS.max()))
    for radius, kind in (loss, first):
        assert kind == "certified"
        assert (radius <= distances() * ROOM).all()
        np.testing.assert_array_equal(radius > 0, distances() > 0)
    assert (loss.radius <= first.radius / 2 * ROOM).all()
    box = interval_bound(linear, X, Y)
    assert (box.radius <= distances(LINF) * ROOM).all()
    assert box.kind == "certified"


def test_the_last_layer_makes_the_radius_of_a_linear_model_exact():
    certificate = margin_last_layer(linear, X, Y, w=W, constant=EXACT(1.0))
    np.testing.assert_allclose(certificate.radius, distances(), rtol=1e-5)
    assert certificate.kind == "certified"
    # Rows that are alike make up for small margins; one constant for all logits does not.
    whole = Constant(float(np.linalg.norm(W, 2)), "exact")
    assert (
        margin_lipschitz(linear, X, Y, constant=whole, label_norm=L2).radius[:12]
        < certificate.radius[:12]
    ).all()
    with pytest.raises(ValueError, match=r"W has shape \[3, 12\]; want a matrix \[4, n\]"):
        margin_last_layer(linear, X, Y, w=W[:3], constant=EXACT(1.0))


@pytest.mark.parametrize(("norm", "label_norm"), [(L2, L2), (L2, LINF), (LINF, LINF), (L1, L1)])
def test_one_constant_of_the_logits_certifies_by_the_dual_norm_of_two_of_them(norm, label_norm):
    rule = partial(margin_lipschitz, label_norm=label_norm)
    radius, _ = rule(linear, X, Y, constant=of_linear(W, norm=norm, label_norm=label_norm))
    assert (radius <= distances(norm) * ROOM).all()
    assert (radius[:12] > 0).all()
    # Of two opposite logits it is all that there is to know.
    w = W[:1]
    opposite = lambda x: jnp.concatenate([x.reshape(len(x), -1) @ s.T for s in (w, -w)], 1)
    constant = of_linear(jnp.concatenate([w, -w]), norm=norm, label_norm=label_norm)
    radius, _ = rule(opposite, X, opposite(X).argmax(1), constant=constant)
    exact = jnp.abs(opposite(X)[:, 0]) / norm.dual(w)
    np.testing.assert_allclose(radius, exact, rtol=1e-5)


def test_the_default_factor_is_sound_for_a_constant_in_any_norm_of_the_labels():
    for label_norm in (L2, LINF):
        constant = of_linear(W, label_norm=label_norm)
        radius = margin_lipschitz(linear, X, Y, constant=constant).radius
        assert (radius <= distances() * ROOM).all()
    opposite = lambda x: jnp.concatenate([linear(x)[:, :1], -linear(x)[:, :1]], 1)
    constant = of_linear(jnp.concatenate([W[:1], -W[:1]]))
    radius = margin_lipschitz(opposite, X, opposite(X).argmax(1), constant=constant).radius
    assert (radius <= jnp.abs(linear(X)[:, 0]) / jnp.linalg.norm(W[0]) * ROOM).all()


def test_the_gradient_of_an_exact_radius_has_norm_one_and_of_a_wrong_image_none():
    bound = lipschitz(linear, X)
    far = lambda x: margin_lipschitz(linear, x, Y, constant=bound).radius.sum()
    near = lambda x: second_order(linear, x, Y, curvature=EXACT(0.1)).radius.sum()
    one = L2.size(jax.jit(jax.grad(far))(X))
    np.testing.assert_allclose(one, distances() > 0, rtol=1e-5)
    curved = L2.size(jax.jit(jax.grad(near))(X))
    assert ((curved > 0) == (distances() > 0)).all()
    assert (curved <= ROOM).all()


def test_a_constant_of_a_ball_certifies_no_more_than_the_ball():
    local = lipschitz(linear, X, 0.01)
    radius = margin_lipschitz(linear, X, Y, constant=local, eps=0.01).radius
    np.testing.assert_allclose(radius, np.minimum(distances(), 0.01), rtol=1e-4, atol=1e-6)
    assert distances().max() > 0.02


# How the rules compare, and what their constants are.


def test_rules_of_loss_and_probability_saturate_where_the_margin_does_not():
    """Oracle: log(2) / ||w||, 2 / ||w|| and m / ||w||, for a logistic model of margin m."""
    m = jnp.asarray([[-1.0], [0.0], [0.5], [8.0], [60.0]])
    slope = 1.8207
    f = lambda x: jnp.concatenate([slope * x, jnp.zeros_like(x)], 1)
    x, y = m / slope, jnp.zeros(5, jnp.int32)
    loss = loss_lipschitz(f, x, y, constant=EXACT(slope)).radius
    likely = first_order(lambda x: jax.nn.softmax(f(x)), x, y, constant=EXACT(slope / 2)).radius
    straight = first_order(f, x, y, constant=EXACT(slope)).radius
    np.testing.assert_allclose(straight, np.maximum(m[:, 0], 0) / slope, rtol=1e-5)
    np.testing.assert_allclose(likely, 2 * np.tanh(np.maximum(m[:, 0], 0) / 2) / slope, rtol=1e-5)
    np.testing.assert_allclose(
        [loss[3], likely[3], straight[3]], [0.3805, 1.0977, 4.394], rtol=1e-3
    )
    np.testing.assert_allclose([loss[4], likely[4]], [np.log(2) / slope, 2 / slope], rtol=1e-5)
    assert (loss[:2] == 0).all()
    assert (loss[2:] < likely[2:]).all()
    assert (likely[2:] < straight[2:]).all()


def test_the_constants_of_cross_entropy_and_of_probabilities_are_bounded_and_approached():
    """sqrt(2) for the loss of logits, 1 / sqrt(2) for the difference of two probabilities."""
    z, y = normal(4000, 3, scale=4.0), jnp.zeros(4000, jnp.int32)
    likely = lambda z: margin(jax.nn.softmax(z), y)
    largest = lambda f: jax.jit(lambda z: gradient_norms(f, z).max())(z)
    loss, likely = largest(lambda z: cross_entropy(z, y)), largest(likely)
    assert 0.99 * 2**0.5 < loss <= 2**0.5 * ROOM
    assert 0.98 / 2**0.5 < likely <= ROOM / 2**0.5


def test_a_certificate_is_worth_what_its_constant_is_worth():
    rules = {
        "constant": (loss_lipschitz, margin_lipschitz, first_order),
        "curvature": (second_order,),
    }
    for name, members in rules.items():
        for rule in members:
            for kind in ("exact", "certified", "estimate"):
                expected = "estimate" if kind == "estimate" else "certified"
                assert rule(linear, X, Y, **{name: Constant(1.0, kind)}).kind == expected
    measured = of_function(lambda x: margin(linear(x), Y), X)
    assert first_order(linear, X, Y, constant=measured).kind == "estimate"


# Curvature.


def test_the_second_order_radius_is_where_a_quadratic_crosses():
    """`l = g.x + C |x|^2 / 2` along g; exact for gap, slope and curvature of any size, and 0."""
    way, gap, centre = normal(12)[None], 0.4, X[:1].reshape(1, -1)
    way = way / jnp.linalg.norm(way)

    def f(x, g, c):
        u = x - centre
        other = g * (u * way).sum(1, keepdims=True) + c / 2 * (u**2).sum(1, keepdims=True)
        return jnp.concatenate([jnp.full_like(other, gap), other], 1)

    y = jnp.zeros(1, jnp.int32)
    rule = lambda g, c: second_order(partial(f, g=g, c=c), centre, y, curvature=EXACT(c)).radius
    rule = jax.jit(rule)
    for g, c in ((3.0, 2.0), (3.0, 0.0), (3.0, 1e-6), (1e-6, 2.0), (0.0, 2.0)):
        radius = rule(g, c)
        assert radius > 0
        crossed = f(centre + radius[0] * way, g, c)[0, 1]
        np.testing.assert_allclose(crossed, gap, rtol=1e-5)
    np.testing.assert_allclose(radius, gap**0.5, rtol=1e-5)


def test_a_slope_that_is_no_number_certifies_nothing():
    """A square root's at 0, which brings the boundary nearer, by `sqrt(2)` here."""
    f = lambda x: jnp.stack([1 - x[:, 0] - jnp.sqrt(jnp.square(x[:, 1])), 0 * x[:, 0]], 1)
    x, y = jnp.array([[0.5, 0.0], [0.5, 0.1]]), jnp.zeros(2, int)
    found = second_order(f, x, y, curvature=EXACT(0.0)).radius
    np.testing.assert_allclose(found, [0.0, 0.4 / np.sqrt(2)], rtol=1e-5)


def test_the_second_order_radius_minds_all_classes_and_not_only_the_runner_up():
    steep = jnp.asarray([[0.0, 1.0, 50.0]])
    f = lambda x: x @ steep + jnp.asarray([[1.0, 0.5, 0.0]])
    x, y = jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32)
    rule = jax.jit(lambda x: second_order(f, x, y, curvature=EXACT(0.0)).radius)
    np.testing.assert_allclose(rule(x), 1 / 50, rtol=1e-6)
    np.testing.assert_allclose(
        margin_lipschitz(f, x, y, constant=lipschitz(f, x)).radius, 1 / 50, rtol=1e-5
    )


SPECTRA = {
    "mixed": np.linspace(-9.0, 5.0, 40),
    "all negative": np.linspace(-9.0, -1.0, 40),
    "equal": np.full(40, -2.0),
    "twice": np.repeat([-3.0, 1.0], 20),
    "zero": np.zeros(40),
    "tiny": 1e-20 * np.linspace(-9.0, 5.0, 40),
}


def test_lanczos_finds_the_largest_eigenvalue_and_not_the_largest_in_size():
    spectra = np.stack(list(SPECTRA.values()))
    # The Hessian at x is diag(s x): at 1, the spectrum.
    f = lambda x: (jnp.asarray(spectra, x.dtype) * x**3).sum(1) / 6
    x = jnp.ones(spectra.shape)
    find = lambda steps: jax.jit(lambda x: largest_curvature(KEY, f, x, steps=steps))(x)
    np.testing.assert_allclose(find(50), spectra.max(1), rtol=2e-5, atol=1e-30)
    # With fewer products, from below.
    fewer = find(4)
    assert (fewer <= spectra.max(1) + 1e-5).all()
    assert fewer[0] < 4.99


def test_lanczos_vectors_stay_orthogonal_when_one_eigenvalue_is_far_from_the_rest():
    """Else rounding brings copies of -1e4, and never a vector for the last of the others."""
    spectrum = jnp.asarray(np.append(-np.geomspace(1e-3, 1.0, 39), -1e4), jnp.float32)[None]
    f = lambda x: (spectrum * x**2).sum(1) / 2
    found = jax.jit(lambda x: largest_curvature(KEY, f, x))(jnp.zeros((1, 40)))
    np.testing.assert_allclose(found, -1e-3, atol=2e-3)


# Networks.


@pytest.fixture(scope="module")
def digits():
    found = datasets.load("digits", "train")
    return datasets.to_unit(found.x[:256]), jnp.asarray(found.y[:256])


@pytest.fixture(scope="module")
def mlp(digits):
    """Smooth, and trained until it is right about nine images in ten."""
    images, labels = digits

    def apply(params, x):
        first, last = params
        return jnp.tanh(x.reshape(len(x), -1) @ first) @ last

    loss = lambda params: cross_entropy(apply(params, images), labels).mean()
    descend = lambda p, g: p - 0.3 * g
    step = lambda _, params: jax.tree.map(descend, params, jax.grad(loss)(params))
    start = normal(64, 16, scale=0.1), normal(16, 10, scale=0.2)
    f = partial(apply, jax.jit(lambda p: jax.lax.fori_loop(0, 100, step, p))(start))
    return f, *attacked(f, images[:16], labels[:16])


@pytest.fixture(scope="module")
def cnn(digits):
    """As it is drawn, with labels of its own."""
    x = digits[0][:16]
    module = models.build("CNN", classes=10, channels=(4,), hidden=8)
    f: Any = partial(module.apply, jax.jit(module.init)(KEY, x[:1]))
    return f, *attacked(f, x, f(x).argmax(1), norms=(L2,))


def attacked(f, x, y, norms=(L2, LINF)):
    """Images and labels, the first one wrong, and the distances at which they were fooled."""
    y = y.at[0].set((f(x[:1]).argmax() + 1) % 10)
    attack = {L2: attacks.ddn, LINF: attacks.fmn}
    points = {norm: attack[norm](KEY, f, x, y, norm=norm) for norm in norms}
    return x, y, {norm: curves.distance(f, x, y, points[norm], norm=norm) for norm in norms}


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_no_attack_on_a_network_comes_closer_than_a_certificate(name, request):
    f, x, y, found = request.getfixturevalue(name)
    bound = lipschitz(f, x)
    globally = margin_lipschitz(f, x, y, constant=bound)
    largest = Constant(float(bound.margins.max()), bound.kind)
    loss = loss_lipschitz(f, x, y, constant=largest)
    box = interval_bound(f, x, y)
    rules = {"global": (globally, L2), "loss": (loss, L2), "box in l2": (box, L2)}
    if name == "mlp":
        rules["box"] = box, LINF
        local = margin_local(f, x, y, steps=1)
        assert (local.radius >= globally.radius).all()
        assert local.radius.mean() > 1.05 * globally.radius.mean()
        rules["local"] = local, L2
    right = np.asarray(f(x).argmax(1) == y)
    assert not right[0]
    assert right.mean() > 0.8
    for rule, (certificate, norm) in rules.items():
        assert certificate.kind == "certified"
        assert (certificate.radius <= found[norm] * ROOM).all(), rule
        assert (certificate.radius[~right] == 0).all(), rule
        if rule != "loss":  # which asks for a probability of 1/2
            assert (certificate.radius[right] > 0).all(), rule
    assert (2 * loss.radius <= globally.radius * ROOM).all()


def test_a_network_that_is_1_lipschitz_by_construction_is_certified_by_its_margins(digits):
    """MaxMin between orthogonal layers: no attack gets below, and it gets within a factor of 3."""
    x = digits[0][:16]
    first, last = (np.linalg.qr(RNG.normal(size=shape))[0] for shape in ((64, 16), (16, 10)))
    w, v = jnp.asarray(first, jnp.float32), jnp.asarray(last, jnp.float32)

    def f(x):
        h = (x.reshape(len(x), -1) @ w).reshape(len(x), 8, 2)
        return jnp.concatenate([h.max(-1), h.min(-1)], 1) @ v

    x, y, found = attacked(f, x, f(x).argmax(1), norms=(L2,))
    certificate = margin_lipschitz(f, x, y, constant=lipschitz(f, x))
    known = margin_last_layer(f, x, y, w=v.T, constant=Constant(1.0, "certified"))
    np.testing.assert_allclose(certificate.radius, known.radius, rtol=1e-5)
    assert (certificate.radius <= found[L2] * ROOM).all()
    assert (certificate.radius[1:] > 0.3 * found[L2][1:]).all()


def test_estimates_of_a_smooth_network_are_near_what_an_attack_finds(mlp):
    f, x, y, found = mlp
    distance = found[L2]
    towards = lambda x: margin(f(x), y)
    curvature = jax.jit(lambda x: largest_curvature(KEY, towards, x, steps=30))(x)
    assert (curvature > 0).all()
    second = second_order(f, x, y, curvature=Constant(float(curvature.max()), "estimate"))
    first = first_order(f, x, y, constant=of_function(towards, x))
    for radius, kind in (first, second):
        assert kind == "estimate"
        assert (radius <= distance * ROOM).all()
        assert (radius >= 0.1 * distance).all()


# Bounds on a ball.


def test_the_local_radius_grows_until_the_ball_meets_a_kink():
    """z_0 - z_1 = 0.2 - u - 9 relu(u - 0.1), u = x - 1/2: 0.02 without, and at most 0.1 here."""
    x, y = jnp.full((2, 1), 0.5), jnp.asarray([0, 1])
    bend = lambda x: x - 0.5 + 9 * jax.nn.relu(x - 0.6)
    f = lambda x: jnp.concatenate([jnp.full_like(x, 0.2), bend(x)], 1)
    # From 0.02, 0.2 is too far and half the way, 0.11, as well; half the way again is not.
    np.testing.assert_allclose(margin_local(f, x, y, steps=2).radius, [0.065, 0.0], rtol=1e-4)


def test_intervals_are_exact_for_two_opposite_logits_and_stay_in_the_box():
    w = W[:1]
    opposite = lambda x: jnp.concatenate([x.reshape(len(x), -1) @ s.T for s in (w, -w)], 1)
    y = opposite(X).argmax(1)
    exact = jnp.abs(opposite(X)[:, 0]) / jnp.abs(w).sum()
    np.testing.assert_allclose(interval_bound(opposite, X, y).radius, exact, atol=2e-6)
    # The class changes at x = -0.1 only: outside of the box.
    f = lambda x: jnp.concatenate([x + 0.1, -x - 0.1], 1)
    x, y = jnp.full((1, 1), 0.3), jnp.zeros(1, jnp.int32)
    np.testing.assert_allclose(interval_bound(f, x, y).radius, 1.0, rtol=1e-5)
    np.testing.assert_allclose(interval_bound(f, x, y, bounds=(-1, 1)).radius, 0.4, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: interval_bound(f, x, y).radius)(x), 1.0, rtol=1e-5)


# What has no slope, no gap or no number.

RULES = {
    "loss": partial(loss_lipschitz, constant=EXACT(0.0)),
    "margin": partial(margin_lipschitz, constant=EXACT(0.0)),
    "first": partial(first_order, constant=EXACT(0.0)),
    "second": partial(second_order, curvature=EXACT(0.0)),
    "local": partial(margin_local, steps=1),
    "box": interval_bound,
}


def radii(name, f, x, y):
    rule = lambda x: RULES[name](f, x, jnp.asarray(y)).radius
    return rule(x) if name == "local" else jax.jit(rule)(x)


@pytest.mark.parametrize("name", RULES)
def test_a_constant_answer_holds_everywhere_a_wrong_one_and_a_tie_nowhere(name):
    x = jnp.full((3, 2), 0.5)
    found = radii(name, lambda x: 0 * x + jnp.asarray([[1.0, 0.0]]), x, [0, 1, 0])
    assert (found[::2] > 0.99).all()
    assert found[1] == 0
    if name != "local":  # it divides as the rule of the margin does
        np.testing.assert_array_equal(radii(name, lambda x: 0 * x, x, [0, 1, 0]), 0)


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("local", "box")])
def test_logits_that_are_not_numbers_certify_nothing(name):
    """Whether they are of class y or not; the first row has numbers, and is right for class 0."""
    first = jnp.asarray([[2.0], [jnp.nan], [jnp.inf], [-jnp.inf]])
    f = lambda x: 0 * x + jnp.eye(3)[1:2] + jnp.pad(first, ((0, 0), (0, 2)))
    for y, expected in ((0, jnp.inf), (1, 0.0)):
        found = radii(name, f, jnp.zeros((4, 3)), [y] * 4)
        np.testing.assert_array_equal(found, [expected, 0, 0, 0])


# Smoothing.

w = jnp.asarray([[3.0, 4.0]])
two = lambda x: jnp.concatenate([(x * w).sum(1, keepdims=True), jnp.zeros((len(x), 1))], 1)
at = lambda r: r * w / 5  # the distance to the decision is |r|, the class is r < 0


def certify(x, sigma=0.5, **options):
    run = lambda x, sigma: smoothing.certify(KEY, two, x, sigma=sigma, **options)[:2]
    return jax.jit(run)(x, jnp.asarray(sigma))


def test_the_smoothed_radius_of_a_linear_model_is_approached_from_below():
    """Oracle: sigma Phi^-1(p) = |w.x| / ||w||, for any sigma; with all draws right, that of n."""
    n = 20_000
    x = jnp.concatenate([at(0.3), at(-0.5), at(0.0), at(9.0)])
    x, sigma, exact = jnp.tile(x, (2, 1)), np.repeat([0.25, 0.5], 4), [0.3, 0.5, 0.0]
    # An image scaled is noise scaled.
    classes, radius = certify(x / sigma[:, None].astype(np.float32), 1.0, n=n)
    radius = radius * sigma
    np.testing.assert_array_equal(classes, [0, 1, -1, 0] * 2)
    for i in (0, 4):
        assert (radius[i : i + 3] <= np.asarray(exact)).all()
        assert (radius[i : i + 3] >= np.asarray(exact) - 0.03).all()
        best = sigma[i] * gauss.ppf(1e-3 ** (1 / n))
        np.testing.assert_allclose(radius[i + 3], best, rtol=1e-5)


def test_an_images_noise_is_its_own_and_the_size_of_a_batch_changes_nothing():
    """sigma scales the noise, too."""
    x = jnp.repeat(at(0.3), 3, 0)
    classes, radius = certify(x, n=333, batch=1000)
    assert len(set(radius.tolist())) > 1
    in_turn = certify(2 * x[:2], 1.0, n=333, batch=50)
    np.testing.assert_array_equal(in_turn[0], classes[:2])
    np.testing.assert_allclose(in_turn[1], 2 * radius[:2], rtol=1e-6)


def test_a_smoothed_radius_is_too_large_as_often_as_stated():
    trials, alpha = 4000, 0.1
    _, radius = certify(jnp.repeat(at(0.3), trials, 0), n=500, alpha=alpha)
    too_large = float((radius > 0.3).mean())
    # The bound is a little careful, since counts are whole numbers.
    assert 0.7 * alpha < too_large < alpha + 3 * (alpha * (1 - alpha) / trials) ** 0.5


def test_the_draws_that_choose_a_class_do_not_count_it():
    """One draw chooses and another counts: they agree as often as two independent draws."""
    classes, radius = certify(jnp.repeat(at(0.1), 4000, 0), n0=1, n=1, alpha=0.7)
    p = gauss.cdf(0.2)
    for c, share in enumerate((p**2, (1 - p) ** 2)):
        assert abs(float((classes == c).mean()) - share) < 0.03
    np.testing.assert_allclose(radius, np.where(classes >= 0, 0.5 * gauss.ppf(0.7), 0.0), rtol=1e-5)


def test_a_prediction_is_as_frequent_as_the_binomial_test_says():
    trials, n, alpha = 2000, 100, 0.05
    x = jnp.concatenate([jnp.repeat(at(r), trials, 0) for r in (0.0, -0.1)])
    predict = jax.jit(lambda x: smoothing.predict(KEY, two, x, sigma=0.5, n=n, alpha=alpha))
    found = np.asarray(predict(x)).reshape(2, trials)
    sure = np.array([binomtest(k, n).pvalue <= alpha for k in range(n + 1)])
    for classes, p in zip(found, (0.5, gauss.cdf(0.2)), strict=True):
        odds = np.where(sure, binom.pmf(np.arange(n + 1), n, p), 0)
        for c, share in enumerate((odds[: n // 2].sum(), odds[n // 2 :].sum())):
            assert abs((classes == c).mean() - share) < 4 * (share * (1 - share) / trials) ** 0.5
    assert set(found.ravel().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("n", [10, 1000, 10**6])
def test_a_prediction_needs_as_many_draws_as_the_exact_test_says(n, monkeypatch):
    alpha, first = 0.05, int((n + 1.9 * n**0.5) / 2)
    least = next(k for k in range(first, n + 1) if binomtest(k, n).pvalue <= alpha)
    assert binomtest(least - 1, n).pvalue > alpha
    counts = jnp.array([[least, n - least], [least - 1, n - least + 1]])
    monkeypatch.setattr(smoothing, "compiled", lambda *_: lambda *_: (0 * counts, counts))
    found = smoothing.predict(KEY, two, jnp.tile(at(0.0), (2, 1)), sigma=1.0, n=n, alpha=alpha)
    np.testing.assert_array_equal(found, [0, -1])


def test_images_in_half_precision_have_radii_of_logits_in_single():
    """In bfloat16 these logits, 0.2 apart, would be 0.5 apart."""
    logits_fn = lambda x: jnp.tile(jnp.array([[100.3, 100.1]]), (len(x), 1))
    x, y = jnp.ones((1, 2), jnp.bfloat16), jnp.array([0])
    for constant in (EXACT(1.0), LipschitzBound(jnp.zeros(()), jnp.ones((2, 2)), "certified")):
        radius = margin_lipschitz(logits_fn, x, y, constant=constant, label_norm=L2).radius
        assert 0 < radius[0] <= 0.2001
    sure = smoothing.certify(
        KEY, lambda x: x.astype(jnp.float32), x - jnp.array([[0, 1]], x.dtype), sigma=0.5
    )
    assert sure.radius.dtype == jnp.float32


def test_noise_that_breaks_the_network_is_of_no_class():
    """Half of the draws of the first image, all of the second, none of the third."""
    broken = lambda x: jnp.where(x[:, :1] > 0, jnp.nan, jnp.asarray([[0.0, 1.0]]))
    x = jnp.asarray([[0.0], [9.0], [-9.0]])
    found = smoothing.certify(KEY, broken, x, sigma=0.5, n=1000)
    np.testing.assert_array_equal(found.classes, [-1, -1, 1])
    assert found.kind == "probabilistic"


# What is refused.

BOUND = LipschitzBound(jnp.ones(3), jnp.ones((3, 4, 4)))


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        (loss_lipschitz, {"constant": 2.0}, "constant is a float; want a Constant"),
        (loss_lipschitz, {"constant": BOUND}, "is a LipschitzBound; want a Constant"),
        (margin_lipschitz, {"constant": 2.0}, "want a Constant or LipschitzBound"),
        (margin_lipschitz, {"constant": BOUND}, r"have shape \[3, 4, 4\]; want \[4, 4\] or \[16"),
        (margin_lipschitz, {"constant": Constant(-1.0, "exact")}, "is -1; it must be at least 0"),
        (first_order, {"constant": Constant(jnp.nan, "exact")}, "is nan; it must be"),
        (second_order, {"curvature": Constant(1.0, "sure")}, "No kind 'sure' of constant; choose"),
        (margin_local, {"steps": 0}, "margin_local: steps = 0"),
        (interval_bound, {"steps": 0}, "interval_bound: steps = 0"),
        (margin_local, {"bounds": (0.0, 0.1)}, r"outside bounds \(0.0, 0.1\)"),
        (interval_bound, {"bounds": (0.0, 0.1)}, r"outside bounds \(0.0, 0.1\)"),
    ],
)
def test_wrong_options_of_a_rule_are_named(rule, options, said):
    with pytest.raises(ValueError, match=said):
        rule(linear, X, Y, **options)


def test_the_constant_of_a_data_set_certifies_nothing():
    constant: Any = of_data(np.asarray(X), np.asarray(Y))
    with pytest.raises(ValueError, match="constant is a DataConstant; want a Constant"):
        margin_lipschitz(linear, X, Y, constant=constant)


@pytest.mark.parametrize("name", RULES)
def test_wrong_inputs_of_a_rule_are_named(name):
    for x, y, said in [
        (X * jnp.nan, Y, "x has values of nan"),
        (X, Y[:3], r"want classes \[16\]"),
        (X, Y + 4, "logits_fn has 0 to 3"),
    ]:
        with pytest.raises(ValueError, match=said):
            RULES[name](linear, x, y)
    with pytest.raises(ValueError, match="returned one logit per image"):
        RULES[name](lambda x: linear(x)[:, :1], X, 0 * Y)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sigma": 0.0}, "sigma = 0.0; want a number above 0"),
        ({"sigma": jnp.ones(16)}, "want a number above 0"),
        ({"sigma": jnp.nan}, "sigma = nan"),
        ({"alpha": 1.0}, "alpha = 1.0; want a number between 0 and 1"),
        ({"n": 0}, "n = 0; it must be at least 1"),
        ({"batch": 0}, "batch = 0; it must be"),
    ],
)
def test_wrong_options_of_smoothing_are_named(options, said):
    for name in ("certify", "predict"):
        with pytest.raises(ValueError, match=f"{name}: .*{said}"):
            getattr(smoothing, name)(KEY, linear, X, **{"sigma": 0.5, **options})


def test_wrong_inputs_of_lanczos_are_named():
    with pytest.raises(ValueError, match=r"f must return \[16\]; it returned \[16, 4\]"):
        largest_curvature(KEY, linear, X)
    with pytest.raises(ValueError, match="steps = 0"):
        largest_curvature(KEY, lambda x: x.sum((1, 2)), X, steps=0)
    with pytest.raises(ValueError, match=r"make it with jax.random.key"):
        largest_curvature(jnp.zeros(2, jnp.uint32), lambda x: x.sum((1, 2)), X)


# All rules side by side.


def test_an_estimate_that_says_too_much_is_counted_and_a_proof_never_does():
    """Two units that turn on only away from the images: gradients there see half of the slope."""
    unit = lambda x: jnp.concatenate([0.5 - x, 0.5 * x + 4 * jax.nn.relu(x - 0.25)], 1)
    f, x = lambda x: unit(x / 6 + 0.5), 6 * jnp.array([[0.0], [0.125], [0.2]]) - 3
    found = comparison.compare(KEY, f, x, jnp.zeros(3, jnp.int32), bounds=(-3.0, 3.0))
    exact = 6 * (1.5 / 5.5 - 0.5) - x[:, 0]  # 0.5 - x = 0.5 x + 4 (x - 0.25)
    np.testing.assert_allclose(found.distance, exact, rtol=2e-3)
    assert found.violations["first order"] == 3
    for name, (radius, kind) in found.certificates.items():
        if kind == "certified":
            assert found.violations[name] == 0
            assert (radius > 0).all()
    table = comparison.to_markdown(found, 0.1)
    assert table.count("certified") == 4
    assert "| first order | estimate |" in table
    assert "| 3 |" in table


def test_the_size_of_a_batch_changes_no_radius():
    first, last = normal(4, 6), normal(6, 3)
    f = lambda x: jnp.tanh(x @ first) @ last
    x = jax.random.uniform(KEY, (5, 4))
    y = f(x).argmax(1)
    whole, parts = (
        comparison.compare(KEY, f, x, y, smooth=True, batch_size=size) for size in (5, 2)
    )
    assert whole.certificates.keys() == parts.certificates.keys()
    for name, (radius, kind) in whole.certificates.items():
        assert parts.certificates[name].kind == kind
        np.testing.assert_allclose(parts.certificates[name].radius, radius, rtol=1e-4)
    np.testing.assert_allclose(parts.distance, whole.distance, rtol=1e-3)


def test_a_bound_of_one_example_holds_for_all():
    weight = jnp.array([[3.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
    f, x = lambda x: jnp.tanh(x @ weight), jax.random.uniform(jax.random.key(0), (5, 2))
    y = jnp.argmax(f(x), 1)
    radii = [margin_lipschitz(f, x, y, constant=lipschitz(f, given)).radius for given in (x, x[:1])]
    np.testing.assert_array_equal(radii[0], radii[1])
    assert (radii[0] > 0).all()


@pytest.mark.parametrize(
    ("activation", "smooth"), [("silu", True), ("relu", False), ("own", False), ("maxmin", False)]
)
def test_curvature_is_looked_at_where_an_activation_has_no_kinks(
    activation, smooth, tmp_path, monkeypatch
):
    config = base_config("j0", {"j0": {}})
    config.model.activation = activation
    dataset = datasets.Dataset(np.zeros((1, 2), np.float32), np.zeros(1, np.int32), 2)
    compared = Mock(side_effect=StopIteration)
    monkeypatch.setattr(certified.comparison, "compare", compared)
    loaded = Loaded(config, jax.tree_util.Partial(lambda x: x), dataset, 1, 1)
    with pytest.raises(StopIteration):
        certified.certify(loaded, tmp_path, examples=1)
    assert compared.call_args.kwargs["smooth"] == smooth


BATCHED = [(certified.comparison, "compare"), (smoothing, "certify")]


def test_the_smoothed_radius_of_an_image_of_another_class_is_0_and_the_table_says_the_share(
    tmp_path, monkeypatch
):
    config = base_config("j0", {"j0": {}})
    config.evaluation.l2.table = 0.2
    x = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.5, 0.5]], np.float32)
    dataset = datasets.Dataset(x, np.array([0, 1, 1, 0], np.int32), 2)
    config.evaluation.batch_size = 2
    loaded = Loaded(config, jax.tree_util.Partial(lambda x: x), dataset, 1, 1)
    spied = {module: Mock(wraps=getattr(module, name)) for module, name in BATCHED}
    with monkeypatch.context() as patch:
        for module, name in BATCHED:
            patch.setattr(module, name, spied[module])
        text = certified.certify(loaded, tmp_path, examples=4, sigma=0.3)
    assert spied[certified.comparison].call_args.kwargs["batch_size"] == 2
    assert [len(call.kwargs["x"]) for call in spied[smoothing].call_args_list] == [2, 2]
    assert spied[smoothing].call_args.kwargs["batch"] == 1
    exact = np.abs(x[:, 0] - x[:, 1]) / 2**0.5
    with np.load(tmp_path / "certificates.npz") as arrays:
        radius = arrays["smoothed"]
    assert radius[1] == radius[3] == 0  # wrong, and on the boundary
    for i in (0, 2):
        assert 0.8 * exact[i] < radius[i] <= exact[i]
    assert "at least 0.2 for 50.0 % of the images" in text
    proved = certified.proved(tmp_path, "test", 4, 1)
    np.testing.assert_allclose(proved, exact * [1, 0, 1, 1], atol=1e-5)
    # What was made of other images is not read with these, wherever a kill comes between.
    with monkeypatch.context() as killed:
        killed.setattr(certified.files, "write", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            certified.certify(loaded, tmp_path, examples=4, split="validation")
    assert certified.proved(tmp_path, "test", 4, 1) is None
    certified.certify(loaded, tmp_path, examples=4)
    np.savez(tmp_path / "certificates.npz", **{name: np.ones(3) for name in arrays})
    assert certified.proved(tmp_path, "test", 4, 1) is None


def test_a_box_is_rounded_outwards_in_half_precision():
    f = lambda x: jnp.concatenate(
        [1000 * (x.astype(jnp.float32) - 0.75), jnp.full_like(x, 3.8, jnp.float32)], 1
    )
    x, y = jnp.full((1, 1), 0.75390625, jnp.bfloat16), jnp.array([0])
    exact = 0.75390625 - 0.7538
    assert 0 <= interval_bound(f, x, y).radius[0] <= exact * 1.001


def test_a_box_of_many_halvings_is_no_larger_than_the_distance():
    x = np.full((1, 1), 0.7539, np.float32)
    rise = 1000 * (float(x[0, 0]) - 0.75)
    level = np.float32(rise - 1e-5)  # reached nearer to x than half of its last digit
    f = lambda x: jnp.concatenate([1000 * (x - 0.75), jnp.full_like(x, level)], 1)
    exact = (rise - float(level)) / 1000
    assert 0 < exact < 1.1e-8
    found = interval_bound(f, jnp.asarray(x), jnp.array([0]), steps=40)
    assert 0 <= found.radius[0] <= exact


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1.0, 1e18, 1e30])
def test_a_radius_of_second_order_does_not_depend_on_the_logits_scale(scale):
    f = lambda x: scale * jnp.concatenate([1 - 10 * x + x**2, jnp.zeros_like(x)], 1)
    x, y = jnp.zeros((2, 1)), jnp.array([0, 1])
    found = second_order(f, x, y, curvature=Constant(2 * scale, "exact"))
    np.testing.assert_allclose(found.radius, [(-10 + 104**0.5) / 2, 0], rtol=1e-4)
    flat = second_order(f, x, y, curvature=Constant(0.0, "exact"))
    np.testing.assert_allclose(flat.radius, [0.1, 0], rtol=1e-5)


def test_a_gap_beyond_the_largest_float_is_not_infinite():
    f = lambda x: jnp.array([[3e38, -3e38]]) + 0 * x
    x, y, constant = jnp.zeros((1, 2)), jnp.array([0]), Constant(1e3, "exact")
    for rule in (margin_lipschitz, first_order):
        assert 0 < rule(f, x, y, constant=constant).radius[0] < 1e36


def test_a_norm_of_labels_has_a_name():
    options = {"constant": Constant(1.0, "exact")}
    f, x, y = lambda x: 2 * x, jnp.eye(2), jnp.array([0, 1])
    named = margin_lipschitz(f, x, y, label_norm="l2", **options)
    np.testing.assert_array_equal(
        named.radius, margin_lipschitz(f, x, y, label_norm=L2, **options).radius
    )
