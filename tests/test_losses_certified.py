"""The losses that ask for margins, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import losses
from lipreg.runs import build

Z = 2 * jax.random.normal(jax.random.key(0), (6, 4))
Y = jnp.array([0, 1, 2, 3, 0, 1])
ROWS, Z64 = np.arange(6), np.asarray(Z, np.float64)
PAIRS = np.abs(np.arange(4.0)[:, None] - np.arange(4.0)[None])  # constants that differ


def log_sum_exp(z):
    return np.log(np.exp(z).sum(-1))


def cross_entropy(z):
    return log_sum_exp(z) - z[ROWS, Y]


def test_offset_cross_entropy_of_two_classes_is_the_softplus_of_what_lacks_to_the_margin():
    margins = Z64[:, 0] - Z64[:, 1]
    expected = 0.3 * np.log1p(np.exp((1.5 - margins) / 0.3))
    found = losses.offset_cross_entropy(Z[:, :2], 0 * Y, offset=1.5, temperature=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_small_temperature_makes_it_the_hinge_of_the_margin():
    found = losses.offset_cross_entropy(Z, Y, offset=1.5, temperature=1e-4)
    others = np.where(np.eye(4, dtype=bool)[Y], -np.inf, Z64).max(-1)
    expected = np.maximum(1.5 + others - Z64[ROWS, Y], 0)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_without_offset_and_temperature_it_is_cross_entropy_and_so_are_the_others():
    plain = losses.cross_entropy(Z, Y)
    for found in (
        losses.offset_cross_entropy(Z, Y, offset=0.0, temperature=1.0),
        losses.emma(Z, Y, eps=0.0),
        losses.logit_annealing(Z, Y, temperature=1.0, offset=0.0, gamma=0.0, eps=0.0),
        losses.gloro(Z, Y, weight=0.0),
    ):
        np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_hkr_of_two_opposite_logits_is_the_binary_loss():
    f, sign = Z64[:, 0], np.array([1, -1, 1, -1, 1, -1])
    y = jnp.asarray((1 - sign) // 2)
    found = losses.hkr(jnp.stack([Z[:, 0], -Z[:, 0]], -1), y, alpha=0.7, margin=1.2)
    expected = 0.7 * np.maximum(0, 0.6 - sign * f) - 0.3 * 2 * sign * f
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_hkr_over_classes_of_equal_size_is_the_mean_of_one_against_all():
    """`E_+ f - E_- f` of each class, whose expectations are over its own and the other images."""
    y, z = np.repeat(np.arange(3), 2), Z64[:, :3]
    of_class = [z[y == k, k].mean() - z[y != k, k].mean() for k in range(3)]
    found = losses.hkr(Z[:, :3], jnp.asarray(y), alpha=0.0).mean()
    np.testing.assert_allclose(found, -np.mean(of_class), rtol=1e-5)


@pytest.mark.parametrize("margins", [2.0, PAIRS], ids=["one", "of each pair"])
def test_emma_is_the_worst_case_short_of_a_tie_and_its_slope_that_at_fixed_shares(margins):
    reach = 0.5 * np.where(np.eye(4, dtype=bool), 0, margins)[Y]
    gaps = Z64 - Z64[ROWS, Y][:, None]
    share = np.clip(-gaps / np.where(reach > 0, reach, 1), 0.01, 1)
    assert 0 < (share[reach > 0] < 1).mean() < 1
    worst = gaps + share * reach
    margins = jnp.asarray(margins, jnp.float32)
    emma = lambda z: losses.emma(z, Y, eps=0.5, margins=margins)
    np.testing.assert_allclose(emma(Z), cross_entropy(worst), rtol=1e-5)
    p = np.exp(worst - log_sum_exp(worst)[:, None])
    slope = jax.grad(lambda z: emma(z).sum())(Z)
    np.testing.assert_allclose(slope, p - np.eye(4)[Y], atol=1e-5)


def test_logit_annealing_weighs_emma_with_an_offset_by_what_is_left():
    gaps = Z64 - Z64[ROWS, Y][:, None]
    reach = 0.3 * 2**0.5 * (1 - np.eye(4)[Y])
    u = gaps + np.clip(-gaps / np.where(reach > 0, reach, 1), 0.01, 1) * reach
    u = (u - 1.2 * np.eye(4)[Y]) / 0.6
    expected = 0.6 * (1 - np.exp(-cross_entropy(u))) ** 3 * cross_entropy(u)
    found = losses.logit_annealing(Z, Y, temperature=0.6, offset=1.2, gamma=3.0, eps=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("margins", [2.0, PAIRS], ids=["one", "of each pair"])
def test_gloro_takes_the_share_of_the_extra_logit_which_is_largest_unless_certified(margins):
    predicted = Z64.argmax(-1)
    reach = np.where(np.eye(4, dtype=bool), -np.inf, 0.5 * np.asarray(margins))[predicted]
    extra = (Z64 + reach).max(-1)
    share = np.exp(extra) / (np.exp(extra) + np.exp(Z64).sum(-1))
    expected = cross_entropy(Z64) - 0.7 * np.log(1 - share)
    given = jnp.asarray(margins, jnp.float32)
    found = losses.gloro(Z, Y, eps=0.5, margins=given, weight=0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Constants that depend on weights are trained: by eps times the softmax of the extra logit.
    slope = jax.grad(lambda m: losses.gloro(Z, Y, eps=0.5, margins=m, weight=0.7).sum())(given)
    np.testing.assert_allclose(slope.sum(), 0.7 * 0.5 * share.sum(), rtol=1e-4)


def test_a_config_names_them_with_their_options():
    loss = build._loss("emma(eps=0.5, margins=2.0)")
    np.testing.assert_array_equal(loss(Z, Y), losses.emma(Z, Y, eps=0.5, margins=2.0))
    with pytest.raises(ValueError, match="No option 'radius' of emma; it takes eps, margins"):
        build._loss("emma(radius=0.5)")
