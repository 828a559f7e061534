"""LogBarrier against the exact distances of linear models, in the box and at its bounds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from lipreg.attacks.logbarrier import log_barrier
from lipreg.losses import margin
from lipreg.norms import L1, L2, LINF

KEY = jax.random.key(0)
BATCH, PIXELS = 8, 64
KEYS = jax.vmap(partial(jax.random.fold_in, KEY))(jnp.arange(BATCH))
Y = jnp.zeros(BATCH, jnp.int32)
NORMS = [L2, LINF]
EXACT = {L2: jnp.geomspace(0.02, 1.0, BATCH), LINF: jnp.geomspace(0.002, 0.1, BATCH)}
each_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)


def normal(i, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, i), shape)


W = normal(0, PIXELS)


def linear(x, w=W, b=-0.5 * W.sum()):
    return jnp.stack([0 * x[:, 0], x @ w + b], -1)


def at_distance(d, norm):
    """Points near the middle of [0, 1] whose exact distance from the other class is d, [B]."""
    x = 0.5 + 0.05 * normal(1, BATCH, PIXELS)
    level = linear(x)[:, 1] + norm.dual(W[None]) * d
    return x - (level / (W @ W))[:, None] * W[None]


def run(norm, keys, w, b, x, y, start):
    return log_barrier(keys, lambda x: linear(x, w, b), x, y, norm=norm, start=start)


RUN = {norm: jax.jit(partial(run, norm)) for norm in NORMS}  # each is compiled once


def attacked(norm, x, y=Y, w=W, b=None, keys=KEYS, start=None):
    """`b`, one number for each image; without a start noise, as x is none."""
    b = jnp.full(BATCH, -0.5 * W.sum()) if b is None else b
    return RUN[norm](keys, w, b, x, y, x if start is None else start)


@each_norm
def test_the_distance_is_that_of_a_linear_model_and_never_below(norm):
    x = at_distance(EXACT[norm], norm)
    x_adv = attacked(norm, x)
    found = norm.size(x_adv - x)
    assert (margin(linear(x_adv), Y) >= 0).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert (found >= EXACT[norm] * (1 - 1e-4)).all()
    assert (found <= EXACT[norm] * (1.005 if norm is L2 else 1.0005)).all()


@each_norm
def test_an_example_does_not_see_the_others(norm):
    """Wrong ones come back untouched, and no other changes, though rounds are shorter there."""
    x = at_distance(EXACT[norm], norm)
    expected = attacked(norm, x)
    x_adv = attacked(norm, x, jnp.arange(BATCH, dtype=jnp.int32) % 2)
    np.testing.assert_array_equal(x_adv[1::2], x[1::2])
    np.testing.assert_array_equal(x_adv[::2], expected[::2])
    backwards = attacked(norm, x[::-1], keys=KEYS[::-1])
    np.testing.assert_allclose(backwards[::-1], expected, atol=1e-5)


@each_norm
def test_pixels_at_the_bounds_leave_the_exact_distance_to_the_others(norm):
    """Black and white images: half of the pixels can't follow w. The nearest point is `x + l d`,
    d the norm's direction, cut off at the box, with the l that puts it on the boundary. No noise
    gets as far; the corner along w does."""
    x = jnp.round(jax.random.uniform(KEY, (BATCH, PIXELS)))
    levels = jnp.linspace(1.0, 12.0, BATCH)
    b = -(x @ W) - levels
    start = jnp.broadcast_to((W > 0).astype(x.dtype)[None], x.shape)
    x_adv = attacked(norm, x, b=b, start=start)
    w = np.asarray(W, float)
    along = w if norm is L2 else np.sign(w)

    def exact(image, level):
        moved = lambda length: np.clip(length * along, -image, 1 - image)
        found = moved(brentq(lambda length: moved(length) @ w - level, 0, 100))
        return np.linalg.norm(found, norm.p)

    pairs = zip(np.asarray(x), np.asarray(levels), strict=True)
    expected = np.array([exact(*pair) for pair in pairs])
    found = norm.size(x_adv - x)
    assert (margin(linear(x_adv, W, b), Y) >= 0).all()
    assert (found >= expected * (1 - 1e-4)).all()
    assert (found <= expected * 1.01).all()
    with_noise = attacked(norm, x, b=b)
    lost = (with_noise == x).all(1)
    assert lost.any()
    np.testing.assert_allclose(norm.size(with_noise - x)[~lost], expected[~lost], rtol=0.01)


@each_norm
def test_a_constant_classifier_is_not_broken_and_gives_no_nan(norm):
    x = jnp.round(jax.random.uniform(KEY, (BATCH, PIXELS)))
    x_adv = attacked(norm, x, w=0 * W, b=-jnp.ones(BATCH), start=1 - x)
    np.testing.assert_array_equal(x_adv, x)


def test_the_weight_falls_until_the_point_is_the_nearest_of_a_curved_boundary():
    """The other class is above a parabola. A weight that stays ends elsewhere, deep inside."""
    curve = lambda x: 0.5 + 3 * (x - 0.8) ** 2
    model = lambda x: jnp.stack([0 * x[:, 0], 4 * (x[:, 1] - curve(x[:, 0]))], -1)
    x = jnp.array([[0.5, 0.2]])
    along = np.linspace(0, 1, 10001)
    exact = np.hypot(along - 0.5, curve(along) - 0.2)[curve(along) <= 1].min()
    run = jax.jit(lambda shrink: log_barrier(KEY, model, x, Y[:1], shrink=shrink))
    falls, stays = (L2.size(run(shrink) - x)[0] / exact for shrink in (0.75, 1.0))
    assert 1 - 1e-4 < falls < 1.005
    assert stays > 1.01


def test_a_classifier_with_a_cliff_has_no_slope_and_gives_no_nan():
    """Only the pull towards x acts, and halvings find the cliff."""
    cliff = lambda x: jnp.stack([0 * x[:, 0], jnp.sign(x[:, 0] - 0.7)], -1)
    x = jnp.full((BATCH, 1), 0.5)
    x_adv = jax.jit(partial(log_barrier, KEY, cliff, outer=2))(x, Y)
    np.testing.assert_allclose(x_adv, 0.7, atol=1e-3)


def test_another_unit_and_logits_in_half_precision_leave_the_distance():
    exact = jnp.full(BATCH, 0.05)
    x = at_distance(exact, LINF)
    model = lambda x: linear(x / 255).astype(jnp.bfloat16)
    attack = partial(log_barrier, KEY, model, norm=LINF, bounds=(0.0, 255.0), outer=5)
    x_adv = jax.jit(attack)(255 * x, Y)
    assert x_adv.dtype == jnp.float32
    np.testing.assert_allclose(LINF.size(x_adv / 255 - x), exact, rtol=0.02)


def test_what_is_wrong_is_named_with_the_choices():
    x = at_distance(EXACT[L2], L2)
    with pytest.raises(ValueError, match="norm l1; choose one of l2, linf"):
        log_barrier(KEY, linear, x, Y, norm=L1)
    for option in ({"outer": 0}, {"inner": 0}, {"draws": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} = 0; it must be at least 1"):
            partial(log_barrier, **option)(KEY, linear, x, Y)
    with pytest.raises(ValueError, match="outside bounds"):
        log_barrier(KEY, linear, x + 1, Y)
