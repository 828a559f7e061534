"""The Square attack against the exact answer on linear models, and its moves one by one."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg.attacks.scores import _bumps, _overwrite, _shift, _sides, square
from lipreg.losses import margin
from lipreg.norms import L1, L2, LINF

KEY = jax.random.key(0)
BATCH, PIXELS = 8, (5, 7, 2)
X = jax.random.uniform(jax.random.fold_in(KEY, 1), (BATCH, *PIXELS), minval=0.3, maxval=0.7)
WEIGHTS = jax.random.normal(jax.random.fold_in(KEY, 2), (5 * 7 * 2,))
KEYS = jax.vmap(partial(jax.random.fold_in, KEY))(jnp.arange(BATCH))
CLEAN = (X.reshape(BATCH, -1) - 0.5) @ WEIGHTS
NEVER = CLEAN + 100  # a bias that no perturbation overcomes: every query is spent
ZERO = jnp.zeros(BATCH, int)
each_norm = pytest.mark.parametrize("norm", [LINF, L2], ids=["linf", "l2"])


def linear(weights, bias, x):
    """Class 1 where `<w, x - 1/2> > bias`."""
    score = (x.reshape(x.shape[0], -1) - 0.5) @ weights - bias
    return jnp.stack([0 * score, score], -1)


@functools.cache
def compiled(norm, queries=2000):
    """One program for all the tests of a norm."""

    def run(keys, bias, x, y, eps):
        return square(keys, partial(linear, WEIGHTS, bias), x, y, eps, norm=norm, queries=queries)

    return jax.jit(run)


def attack(norm, bias=NEVER, eps=0.1, keys=KEYS, x=X, y=ZERO, **options):
    """`eps` as far as a step of that size in every pixel."""
    radius = eps * norm.size(jnp.ones_like(X))
    return compiled(norm, **options)(keys, bias, x, y, radius), radius


@pytest.mark.parametrize(("norm", "share"), [(LINF, 0.97), (L2, 0.5)], ids=["linf", "l2"])
def test_square_gains_nearly_what_is_possible_on_a_linear_model_and_never_more(norm, share):
    """At most `eps ||w||_*`. In l_2 a gradient without structure is unlike bumps, and yet: a random
    point of the sphere has a share of about 1 / sqrt(70) = 0.12."""
    x_adv, radius = attack(norm)
    gain = ((x_adv - X).reshape(BATCH, -1) @ WEIGHTS) / (radius * norm.dual(WEIGHTS[None]))
    assert (gain > share).all()
    assert (gain <= 1 + 1e-5).all()


@each_norm
def test_square_stays_in_the_box_and_in_the_ball(norm):
    for eps in (0.0, 0.02, jnp.where(jnp.arange(BATCH) % 2 == 0, 0.0, 0.3), 2.0):
        x_adv, radius = attack(norm, eps=eps)
        assert ((x_adv >= 0) & (x_adv <= 1)).all()
        assert (norm.size(x_adv - X) <= radius * (1 + 1e-5)).all()
        np.testing.assert_array_equal(x_adv[radius == 0], X[radius == 0])
    assert ((x_adv == 0) | (x_adv == 1)).any()


@each_norm
def test_an_example_keeps_its_result_wherever_it_stands_in_the_batch(norm):
    order = jnp.array([3, 0, 7, 6, 1, 2, 5, 4])
    expected, _ = attack(norm)
    moved, _ = attack(norm, keys=KEYS[order], bias=NEVER[order], x=X[order])
    np.testing.assert_array_equal(moved, expected[order])


@each_norm
def test_a_misclassified_image_comes_back_as_it_was_and_the_others_are_broken(norm):
    y = jnp.arange(BATCH) % 2
    bias = CLEAN + 0.05 * norm.size(jnp.ones_like(X[:1])) * norm.dual(WEIGHTS[None]) / 2
    x_adv, _ = attack(norm, bias, y=y)  # all are of class 0
    np.testing.assert_array_equal(x_adv[y == 1], X[y == 1])
    assert (margin(linear(WEIGHTS, bias, x_adv), y) > 0).all()


def test_the_search_ends_when_every_example_is_misclassified():
    bias = CLEAN + 0.1
    x_adv, _ = attack(LINF, bias, queries=10**9)
    assert (linear(WEIGHTS, bias, x_adv)[:, 1] > 0).all()


def test_square_needs_scores_only_and_takes_vectors():
    """No derivative is asked for; a loss in steps has none worth asking for."""

    @jax.custom_vjp
    def steps(x):
        return jnp.stack([jnp.full(x.shape[0], 3.5), jnp.floor(x).sum(1)], -1)

    def refuse(*_):
        raise AssertionError("a derivative was asked for")

    steps.defvjp(refuse, refuse)
    x, y = jnp.full((2, 6), 0.9), jnp.zeros(2, int)
    x_adv = jax.jit(partial(square, logits_fn=steps, bounds=(0.0, 2.0)))(KEY, x=x, y=y, eps=0.2)
    assert (steps(x_adv)[:, 1] >= 4).all()


def test_the_channels_may_come_first():
    """The same search on images in another layout."""
    first = jnp.moveaxis(X, -1, 1)
    model = lambda x: linear(WEIGHTS, 100.0, jnp.moveaxis(x, 1, -1))
    last = square(KEY, partial(linear, WEIGHTS, 100.0), X, ZERO, 0.1, queries=30)
    x_adv = square(KEY, model, first, ZERO, 0.1, queries=30, channels=1)
    np.testing.assert_allclose(x_adv, jnp.moveaxis(last, -1, 1), atol=1e-6)


def test_more_restarts_are_never_weaker():
    model = partial(linear, WEIGHTS, 100.0)
    run = partial(square, KEY, model, X, ZERO, 0.1, queries=20)
    after = lambda n: model(run(restarts=n))[:, 1]
    one, three = jax.jit(lambda: (after(1), after(3)))()
    assert (three >= one).all()
    assert (three > one).any()


# The moves.


def nested_squares(height, width):
    """Equation 2 of 1912.00049 as it is drawn: squares around the centre, the k-th adds 1/k^2."""
    bump = np.zeros((height, width))
    for k in range(max(height, width) // 2 + 1):
        top, left = height // 2 - k, width // 2 - k
        rows = slice(max(top, 0), top + 2 * k + 1)
        bump[rows, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** 2
    return bump


@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 5), (1, 4)])
def test_a_window_of_two_bumps_is_made_of_nested_squares(height, width):
    def halves(height, width):
        upper = height // 2
        return np.concatenate(
            [nested_squares(upper, width), -nested_squares(height - upper, width)]
        )

    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    bumps = jax.jit(partial(_bumps, dtype=jnp.dtype("float32")))
    upright = bumps(row, column, jnp.int32(height), jnp.int32(width))
    turned = bumps(column, row, jnp.int32(width), jnp.int32(height))
    np.testing.assert_allclose(upright, halves(height, width), rtol=1e-5)
    np.testing.assert_allclose(turned, halves(width, height).T, rtol=1e-5)


def test_windows_shrink_with_the_share_of_the_pixels():
    """The paper's 0.8 of CIFAR-10's pixels, halved nine times; a narrow image's are longer."""
    sides = [_sides(0.8 / 2**n, (32, 32, 3), 1) for n in range(10)]
    assert sides == [(s, s) for s in (29, 20, 14, 10, 7, 5, 4, 3, 2, 1)]
    assert _sides(0.5, (1, 100, 1), 1) == (1, 50)
    assert _sides(0.5, (100, 4, 1), 3) == (50, 4)
    assert _sides(1e-6, (32, 32, 3), 1) == (1, 1)
    assert _sides(1e-6, (32, 2, 3), 3) == (3, 2)


def extent(changed):
    """Rows and columns from the first to the last that changed."""
    return [np.ptp(np.nonzero(changed)[axis]) + 1 for axis in (0, 1)]


FAR, SIDE = (-9.0, 9.0), jnp.array([3, 3])
chances = lambda n, channels: jax.random.uniform(jax.random.fold_in(KEY, n), (5 + channels,))


def test_a_move_in_linf_overwrites_one_square_and_always_changes_something():
    x, eps = X[0], 0.25
    move = jax.jit(partial(_overwrite, side=SIDE, bounds=FAR))
    corners = set()
    for n in range(20):
        for sign in (-1, 1):
            tried = move(chances(n, 2), x, x + sign * eps, eps)
            changed = (tried != x + sign * eps).any(-1)
            assert extent(changed) == [3, 3]
            assert changed.sum() == 9
            np.testing.assert_allclose(jnp.abs(tried - x), eps, rtol=1e-5)
        corners.add(tuple(np.argwhere(changed)[0].tolist()))
    assert len(corners) > 8  # of 3 x 5


def test_a_move_in_l2_empties_one_window_and_keeps_the_size():
    x, eps = X[0], 0.7
    old = 0.8 * eps * L2.direction(X[1:2] - 0.5)[0]
    move = jax.jit(partial(_shift, side=SIDE, bounds=FAR))
    emptied = 0
    for n in range(20):
        new = move(chances(n, 2), x, x + old, eps) - x
        np.testing.assert_allclose(L2.size(new[None]), eps, rtol=1e-5)
        moved = (jnp.abs(new - old) > 1e-6).any(-1)
        empty = (jnp.abs(new) < 1e-6).all(-1)
        assert 9 <= moved.sum() <= 18
        assert not (empty & ~moved).any()
        emptied += empty.sum()
    assert emptied > 20 * 4  # 9 in each, less where the windows overlap


# What users get wrong.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"norm": L1}, "square: no form for the norm l1; choose one of linf, l2"),
        ({"queries": 0}, "square: queries = 0; it must be at least 1"),
        ({"initial": 0.0}, r"initial = 0.0; it is a share of the image, in \(0, 1\]"),
        ({"restarts": 0}, "restarts = 0; it must be at least 1"),
        ({"channels": 0}, r"channels = 0 of images \[8, 5, 7, 2\]; choose one of the axes from 1"),
        ({"channels": -1}, "channels = -1 of images"),
        ({"x": X[..., 0], "channels": 1}, r"channels = 1 of images \[8, 5, 7\]; .* a height and a"),
    ],
)
def test_what_is_wrong_is_named_with_the_choices(given, said):
    inputs = {"x": X, "y": ZERO, "eps": 0.1, **given}
    weights = WEIGHTS if inputs["x"].ndim == 4 else WEIGHTS[:35]
    with pytest.raises(ValueError, match=said):
        square(KEY, partial(linear, weights, 0.0), **inputs)
