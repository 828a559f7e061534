"""Losses against numpy, their gradients against the formulas, and what happens at ties."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import losses

KEY = jax.random.key(0)
Z = 2 * jax.random.normal(KEY, (32, 5))
Y = jax.random.randint(jax.random.fold_in(KEY, 1), (32,), 0, 5)
SOFT = jax.nn.softmax(jax.random.normal(jax.random.fold_in(KEY, 2), (32, 5)))
ONE_HOT = jax.nn.one_hot(Y, 5)
ROWS = np.arange(32)
WITH_DISTRIBUTIONS = [losses.cross_entropy, losses.kl, losses.squared_l2]

every_loss = pytest.mark.parametrize("name", losses.__all__)


def total(loss):
    return lambda z, y: loss(z, y).sum()


def softmax(z):
    e = np.exp(np.asarray(z, np.float64) - np.max(z, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("y", [ONE_HOT, SOFT], ids=["class", "distribution"])
def test_values_are_those_of_numpy(y):
    p, t = softmax(Z), np.asarray(y, np.float64)
    entropy = -(t * np.log(np.where(t > 0, t, 1.0))).sum(-1)
    cross_entropy = -(t * np.log(p)).sum(-1)
    np.testing.assert_allclose(losses.cross_entropy(Z, y), cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(losses.kl(Z, y), cross_entropy - entropy, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses.squared_l2(Z, y), ((p - t) ** 2).sum(-1), rtol=1e-5)


def test_margin_and_dlr_are_those_of_numpy():
    z, y = np.asarray(Z), np.asarray(Y)
    others = np.where(np.asarray(ONE_HOT, bool), -np.inf, z)
    expected = others.max(-1) - z[ROWS, y]
    ranked = np.sort(z)[:, ::-1]
    np.testing.assert_allclose(losses.margin(Z, Y), expected, rtol=1e-6)
    np.testing.assert_allclose(
        losses.dlr(Z, Y), expected / (ranked[:, 0] - ranked[:, 2]), rtol=1e-5
    )


def test_kl_is_cross_entropy_minus_the_entropy_in_value_and_gradient():
    entropy = losses.cross_entropy(jnp.log(SOFT), SOFT)
    np.testing.assert_allclose(
        losses.kl(Z, SOFT), losses.cross_entropy(Z, SOFT) - entropy, rtol=1e-4, atol=1e-6
    )
    of_kl, of_cross_entropy = (
        jax.grad(total(loss))(Z, SOFT) for loss in (losses.kl, losses.cross_entropy)
    )
    np.testing.assert_allclose(of_kl, of_cross_entropy, atol=1e-6)


def test_kl_is_zero_only_at_the_target():
    np.testing.assert_allclose(losses.kl(jnp.log(SOFT), SOFT), np.zeros(32), atol=1e-6)
    assert (losses.kl(Z, SOFT) > 1e-3).all()


def test_the_gradient_of_cross_entropy_is_the_softmax_minus_the_target():
    expected = softmax(Z) - np.asarray(SOFT)
    np.testing.assert_allclose(jax.grad(total(losses.cross_entropy))(Z, SOFT), expected, atol=1e-6)


def test_the_gradient_of_squared_l2_goes_through_the_softmax():
    p = softmax(Z)
    rest = 2 * (p - np.asarray(SOFT))
    expected = p * (rest - (p * rest).sum(-1, keepdims=True))
    np.testing.assert_allclose(jax.grad(total(losses.squared_l2))(Z, SOFT), expected, atol=1e-6)


@pytest.mark.parametrize("loss", WITH_DISTRIBUTIONS, ids=lambda loss: loss.__name__)
def test_a_class_is_its_one_hot_distribution(loss):
    for y in (Y, Y.astype(jnp.uint8), np.asarray(Y, np.int64)):
        np.testing.assert_array_equal(loss(Z, y), loss(Z, ONE_HOT))
    of_class, of_distribution = (jax.grad(total(loss))(Z, y) for y in (Y, ONE_HOT))
    np.testing.assert_array_equal(of_class, of_distribution)


def test_the_margin_is_positive_where_misclassified_and_only_there():
    wrong = jnp.argmax(Z, -1) != Y
    assert 0 < wrong.mean() < 1
    np.testing.assert_array_equal(losses.margin(Z, Y) > 0, wrong)
    np.testing.assert_array_equal(losses.dlr(Z, Y) > 0, wrong)


def test_dlr_is_blind_to_the_scale_and_the_shift_of_the_logits():
    expected = losses.dlr(Z, Y)
    np.testing.assert_allclose(losses.dlr(1000 * Z, Y), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.dlr(Z + 7.0, Y), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses.dlr(1e-3 * Z - 7e-3, Y), expected, rtol=1e-4, atol=1e-6)


def test_dlr_of_two_classes_is_the_margin_and_says_so():
    with pytest.warns(UserWarning, match="dlr needs 3 classes and has 2"):
        value = losses.dlr(Z[:, :2], Y % 2)
    np.testing.assert_array_equal(value, losses.margin(Z[:, :2], Y % 2))


def test_dlr_of_three_classes_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.dlr(Z[:, :3], Y % 3)


def test_a_tie_has_margin_zero():
    z, y = jnp.array([[2.0, 2.0, -1.0], [1.0, 1.0, 1.0]]), jnp.array([0, 1])
    np.testing.assert_array_equal(losses.margin(z, y), [0.0, 0.0])
    np.testing.assert_array_equal(losses.dlr(z, y), [0.0, 0.0])


def test_three_equal_logits_above_the_true_class_stay_a_finite_mistake():
    z, y = jnp.array([[2.0, 2.0, 2.0, 0.0]]), jnp.array([3])
    assert losses.dlr(z, y)[0] > 0
    assert jnp.isfinite(losses.dlr(z, y)).all()


@every_loss
def test_every_loss_has_one_value_per_example_whatever_runs_it(name):
    loss = getattr(losses, name)
    first, second, *options = inspect.signature(loss).parameters.values()
    assert (first.name, second.name) == ("logits", "y")
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)
    value = loss(Z, Y)
    assert value.shape == (32,)
    assert value.dtype == Z.dtype
    np.testing.assert_allclose(jax.jit(loss)(Z, Y), value, rtol=1e-6, atol=1e-6)
    for row in range(3):
        np.testing.assert_allclose(loss(Z[row, None], Y[row, None])[0], value[row], rtol=1e-6)
    batches = jax.vmap(loss)(Z.reshape(4, 8, 5), Y.reshape(4, 8))
    np.testing.assert_allclose(batches.reshape(-1), value, rtol=1e-6, atol=1e-6)


@every_loss
def test_every_loss_and_its_gradient_are_finite_at_ties_and_at_extreme_logits(name):
    loss = getattr(losses, name)
    ties = jnp.array([[0.0] * 5, [1.0, 1.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0, 0.0]])
    z = jnp.concatenate([ties, 1e4 * ties, -1e4 * ties])
    for y in (jnp.zeros(9, jnp.int32), jnp.full(9, 4, jnp.int32)):
        value, slope = jax.value_and_grad(total(loss))(z, y)
        assert jnp.isfinite(value)
        assert jnp.isfinite(slope).all()


@every_loss
def test_every_loss_falls_as_the_true_logit_rises(name):
    """Otherwise an attack that ascends it would go the wrong way: as beyond a smoothed label."""
    loss = getattr(losses, name)
    slope = jax.grad(total(loss))(Z, Y)[ROWS, Y]
    surer = softmax(Z)[ROWS, Y] > (0.92 if name == "smoothed_cross_entropy" else 1.0)
    np.testing.assert_array_equal(slope > 1e-6, surer)
    assert slope.min() < -1e-2


def test_a_masked_class_is_legal_and_the_rest_is_as_without_it():
    """A logit of -inf, in the value and in the gradient; labels of any integer type."""
    masked, y = jnp.array([[4.0, 0.0, 1.0, -jnp.inf]]), jnp.array([0], jnp.uint8)
    plain = masked[:, :3]
    p, shorter = jnp.array([[0.9, 0.1, 0.0, 0.0]]), jnp.array([[0.9, 0.1, 0.0]])
    named = ("cross_entropy", "kl", "squared_l2", "margin", "dlr", "smoothed_cross_entropy", "hkr")
    for loss in (getattr(losses, name) for name in named):
        np.testing.assert_allclose(loss(masked, y), loss(plain, y), rtol=1e-6)
        slope = jax.grad(lambda z, loss=loss: loss(z, y).sum())
        np.testing.assert_allclose(slope(masked)[:, :3], slope(plain), atol=1e-6)
    for loss in (losses.cross_entropy, losses.kl):
        np.testing.assert_allclose(loss(masked, p), loss(plain, shorter), rtol=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "squared_l2", "margin", "dlr", "hkr", "emma"])
@pytest.mark.parametrize("y", [[0.0, 1.0, 2.0], [True, False, True]], ids=["floats", "bools"])
def test_classes_that_are_no_integers_are_refused_also_where_there_are_as_many_as_images(name, y):
    with pytest.raises(ValueError, match=r"y of shape \[3\] has dtype \w+; classes are integers"):
        getattr(losses, name)(jnp.zeros((3, 3)), jnp.array(y))


@pytest.mark.parametrize("name", ["margin", "dlr", "emma", "logit_annealing"])
def test_a_loss_of_classes_alone_refuses_a_distribution(name):
    with pytest.raises(ValueError, match=r"y of shape \[1, 3\]: want \[B, K\] and classes \[B\]\."):
        getattr(losses, name)(jnp.zeros((1, 3)), jnp.array([[0.5, 0.5, 0.0]]))


def test_whole_numbers_may_be_a_distribution():
    z, y = jnp.array([[2.0, 0.0], [1.0, 3.0]]), jnp.array([0, 1])
    found = losses.cross_entropy(z, jnp.eye(2, dtype=jnp.int32)[y])
    np.testing.assert_allclose(found, losses.cross_entropy(z, y), rtol=1e-6)


def test_the_targeted_dlr_divides_by_the_gap_between_the_first_and_the_third_and_fourth():
    """`(z_t - z_y) / (z_1 - (z_3 + z_4) / 2)` (2003.01690, equation 8)."""
    z = np.array([[3.0, 1.0, 0.5, -1.0, -4.0], [0.0, 2.0, 5.0, 4.0, 1.0]], np.float32)
    y, target = jnp.array([0, 3]), jnp.array([1, 0])
    expected = [(1.0 - 3.0) / (3.0 + 0.25), (0.0 - 4.0) / (5.0 - 1.5)]
    np.testing.assert_allclose(losses.targeted_dlr(z, y, target), expected, rtol=1e-6)
