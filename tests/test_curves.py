"""Distances and curves of linear models, where they are known, and attacks that lie."""

import csv
import io
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipreg import attacks, curves
from lipreg.norms import L1, L2, LINF, expand

KEY = jax.random.key(0)
each_norm = pytest.mark.parametrize("norm", [L1, L2, LINF], ids=lambda norm: norm.name)
BATCH, INPUTS, CLASSES = 8, 6, 4
FAR = (-100.0, 100.0)


def normal(i, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, i), shape)


W, X = normal(1, INPUTS, CLASSES), normal(2, BATCH, INPUTS)
linear = lambda x: x @ W
# Of eight images one is misclassified.
Y = linear(X).argmax(-1).at[3].add(1) % CLASSES


def nearest(norm):
    """The exact distances `min_j (z_y - z_j) / ||w_j - w_y||_*`, and the unit steps to there."""
    gaps = jnp.take_along_axis(linear(X), Y[:, None], 1) - linear(X)
    slopes = W.T[None] - W.T[Y][:, None]
    sizes = jnp.where(jax.nn.one_hot(Y, CLASSES) > 0, 1.0, jax.vmap(norm.dual)(slopes))
    away = jnp.where(jax.nn.one_hot(Y, CLASSES) > 0, jnp.inf, gaps / sizes)
    steps = norm.direction(slopes[jnp.arange(BATCH), away.argmin(1)])
    return jnp.maximum(away.min(1), 0.0), steps


def exact_attack(norm):
    """The whole radius towards the nearest boundary: it succeeds where any attack can."""
    steps = nearest(norm)[1]
    return lambda key, logits_fn, x, y, eps: x + expand(eps, x) * steps


assert_close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)

# One image on the line, misclassified from 0.5 on: y = 0, logits (0, x - 0.5).
POINT, ZERO = jnp.array([[0.2]]), jnp.array([0])
step = lambda x: jnp.concatenate([0 * x, x - 0.5], -1)


@pytest.mark.parametrize(
    ("x", "x_adv", "expected"),
    [
        (0.2, 0.6, 0.4),  # found
        (0.2, 0.4, np.inf),  # still right
        (0.2, 1.01, np.inf),  # wrong, and outside of the box
        (0.2, -0.1, np.inf),
        (0.2, np.nan, np.inf),
        (0.2, np.inf, np.inf),
        (0.7, 0.7, 0.0),  # misclassified from the start, whatever the attack returns
        (0.7, 2.0, 0.0),
        (0.7, np.nan, 0.0),
    ],
)
def test_a_distance_is_that_of_a_wrong_answer_inside_the_box(x, x_adv, expected):
    found = curves.distance(step, jnp.array([[x]]), ZERO, jnp.array([[x_adv]]))
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


@each_norm
def test_a_distance_is_measured_in_its_norm_and_its_box(norm):
    x_adv = X + expand(1.001 * nearest(norm)[0], X) * nearest(norm)[1]
    measure = partial(curves.distance, linear, X, Y, x_adv, norm=norm)
    assert_close(measure(bounds=FAR), 1.001 * nearest(norm)[0])
    outside = (jnp.abs(x_adv) > 1.5).any(1) & (nearest(norm)[0] > 0)
    assert outside.any()
    np.testing.assert_array_equal(jnp.isinf(measure(bounds=(-1.5, 1.5))), outside)


def test_a_distance_between_images_in_half_precision_is_measured_in_single():
    """Their difference cannot be represented exactly in their own type."""
    x, x_adv = (jnp.array([row], jnp.bfloat16) for row in ([0.7, 0.001], [0.3, 0.9]))
    exact = np.abs(np.asarray(x_adv, float) - np.asarray(x, float)).sum()
    found = curves.distance(lambda x: x, x, jnp.array([0]), x_adv, norm=L1)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    search = partial(curves.minimal_distance, KEY, lambda x: x, x, jnp.array([0]))
    least = search(jnp.linspace(0.1, 1.0, 7), attack=attacks.pgd)
    assert 0.99 < least[0] / (0.699 / np.sqrt(2)) < 1.1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_a_wrong_answer(value):
    broken = lambda x: jnp.where(x > 0.5, value, jnp.array([[1.0, 0.0]]))
    assert curves.error(broken, jnp.array([[0.2], [0.7]]), jnp.zeros(2, int)) == 0.5
    assert_close(curves.distance(broken, POINT, ZERO, POINT + 0.5), jnp.array([0.5]))


def test_the_error_is_the_share_of_wrong_answers():
    assert curves.error(linear, X, Y) == 1 / 8
    assert curves.error(linear, X, (Y + 1) % CLASSES) >= 7 / 8


def test_the_error_at_a_radius_is_the_share_of_distances_up_to_it():
    distances, expected = jnp.array([0.0, 0.5, jnp.inf, 0.2]), [0.25, 0.25, 0.5, 0.75, 0.75]
    np.testing.assert_array_equal(curves.error_at(distances, [0.0, 0.1, 0.2, 0.5, 9.0]), expected)
    np.testing.assert_array_equal(curves.error_at(distances, 0.2), [0.5])


# Minimal distances and the curves they give.

search = partial(curves.minimal_distance, KEY, linear, X, Y, bounds=FAR)


@pytest.mark.parametrize("refine", [0, 3, 14])
def test_a_minimal_distance_is_exact_up_to_the_grid_halved_refine_times(refine):
    exact, _ = nearest(L1)
    grid = jnp.linspace(0.0, 0.7 * exact.max(), 6)[1:]
    found = search(grid, attack=exact_attack(L1), norm=L1, refine=refine)
    above = jnp.append(grid, jnp.inf)[jnp.searchsorted(grid, exact)]
    assert 0 < jnp.isinf(above).sum() < 5
    assert (found >= exact * (1 - 1e-5)).all()
    assert (found <= exact + above / 2**refine + 1e-5).all()
    # An image that no attack breaks is infinitely far, and one that needs none is at 0.
    np.testing.assert_array_equal(jnp.isinf(found), exact > grid[-1])
    assert found[3] == 0.0
    if refine == 0:
        assert_close(found, jnp.where(exact > 0, above, 0.0))


@each_norm
def test_an_error_curve_is_the_error_of_an_attack_at_every_radius(norm):
    exact, _ = nearest(norm)
    # A point that rounding puts outside of the radius would not count.
    attack = lambda *args: exact_attack(norm)(*args[:-1], (1 - 1e-5) * args[-1])
    curve = partial(curves.error_curve, KEY, linear, X, Y)
    curve = jax.jit(partial(curve, attack=attack, norm=norm, bounds=FAR))
    for largest in (0.2, 0.9, 1.5):
        grid = jnp.linspace(0.0, largest * exact.max(), 12)
        one_by_one = [curves.error(linear, attack(KEY, linear, X, Y, eps), Y) for eps in grid]
        np.testing.assert_array_equal(curve(grid), jnp.stack(one_by_one))
        np.testing.assert_array_equal(curve(grid), curves.error_at(exact, grid))
        assert (jnp.diff(curve(grid)) >= 0).all()
        assert curve(grid)[0] == 1 / 8  # at radius 0, the clean error


@pytest.mark.parametrize(("radii", "calls"), [(1, 1), (3, 2), (4, 3), (16, 5)])
def test_a_curve_of_e_radii_costs_log_e_attacks_each_with_its_own_random_numbers(radii, calls):
    seen = []

    def attack(keys, logits_fn, x, y, eps):
        record = lambda eps, keys: seen.append((np.asarray(eps), np.asarray(keys)))
        jax.debug.callback(record, eps, jax.random.key_data(keys))
        return exact_attack(L2)(keys, logits_fn, x, y, eps)

    grid = jnp.linspace(0.1, 1.2 * nearest(L2)[0].max(), radii)
    found = search(grid, attack=attack, refine=0)
    jax.effects_barrier()
    assert len(seen) == calls
    keys = np.stack([keys for _, keys in seen]).reshape(calls * BATCH, -1)
    assert len(np.unique(keys, axis=0)) == calls * BATCH
    # The radius that is reported was tried, and the one below it too, without success.
    tried = np.stack([eps for eps, _ in seen])
    for row in np.flatnonzero(np.isfinite(found) & (np.asarray(found) > 0)):
        assert np.isclose(tried[:, row], found[row]).any()
        below = grid[grid < found[row] - 1e-4][-1:]
        assert not below.size or np.isclose(tried[:, row], below).any()


def test_a_point_well_inside_the_ball_saves_the_radii_beyond_it():
    """An attack that knows no radius: after its first success nothing larger is tried."""
    tried = []

    def attack(keys, logits_fn, x, y, eps):
        jax.debug.callback(lambda eps: tried.append(float(eps[0])), eps)
        return jnp.where(expand(eps, x) > 0.35, 0.52, x)

    grid = jnp.linspace(0.1, 1.5, 15)
    found = curves.minimal_distance(KEY, step, POINT, ZERO, grid, attack=attack, refine=0)
    jax.effects_barrier()
    np.testing.assert_allclose(found, [0.32], rtol=1e-6)
    np.testing.assert_allclose(tried[0], 0.8, rtol=1e-6)
    assert max(tried[1:]) <= 0.4 + 1e-6


# What an attack claims and what is measured.


def test_an_attack_that_lies_is_not_believed():
    """A wrong answer outside the ball counts where it was found, not at the radius asked for."""
    claims = {
        "x itself": (0.2, np.inf),
        "still right": (0.45, np.inf),
        "above the box": (1.2, np.inf),
        "below the box": (-0.5, np.inf),
        "no number": (np.nan, np.inf),
        "outside the ball": (0.9, 0.7),
    }
    claimed, expected = np.array(list(claims.values()), np.float32).T
    attack = lambda key, logits_fn, x, y, eps: jnp.array(claimed)[:, None]
    x, y, grid = jnp.tile(POINT, (6, 1)), jnp.tile(ZERO, 6), jnp.array([0.05, 0.1, 0.2])
    run = partial(curves.minimal_distance, KEY, step, x, y, grid, attack=attack)
    np.testing.assert_allclose(run(refine=0), expected, rtol=1e-6)
    # Nor does the way to such a point end below the true distance, 0.3, or within the grid.
    assert (run() >= 0.3 - 1e-6).all()
    np.testing.assert_array_equal(curves.error_at(run(), grid), 0.0)


def test_an_attack_that_fails_after_a_success_does_not_undo_it():
    """Broken at the first radius tried, 0.8; every smaller one gives back NaN."""
    attack = lambda key, logits_fn, x, y, eps: jnp.where(expand(eps, x) > 0.7, 0.6, jnp.nan)
    find = partial(curves.minimal_distance, KEY, step, POINT, ZERO, attack=attack, refine=0)
    np.testing.assert_allclose(find(jnp.linspace(0.1, 1.5, 15)), [0.4], rtol=1e-6)


# However it is run.

mlp = lambda x: jnp.tanh(x @ normal(3, INPUTS, 5)) @ normal(4, 5, CLASSES)
IMAGES = jax.random.uniform(jax.random.fold_in(KEY, 5), (BATCH, INPUTS))
GRIDS = jnp.linspace(0.05, 0.4, 7)[None] * jnp.array([[0.5], [1.0], [2.0], [4.0]])
LABELS = mlp(IMAGES).argmax(-1)


def random_search(key, x, y, grid):
    """FGSM over a random part of the radius."""

    def attack(keys, logits_fn, x, y, eps):
        part = jax.vmap(partial(jax.random.uniform, minval=0.5))(keys)
        return attacks.fgsm(keys, logits_fn, x, y, part * eps, norm=L2)

    distances = curves.minimal_distance(key, mlp, x, y, grid, attack=attack, refine=1)
    return distances, curves.error_at(distances, grid)


def test_a_minimal_distance_is_the_same_however_it_is_run():
    """Eager, jit (one trace for all radii), vmap over them, a sharded batch, two half batches with
    a key per example."""
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(random_search, 1))
    expected = [once(KEY, IMAGES, LABELS, grid) for grid in GRIDS]
    results = jax.tree.map(lambda *rows: jnp.stack(rows), *expected)
    assert jnp.isfinite(results[0]).any()
    assert jnp.isinf(results[0]).any()
    another, _ = once(jax.random.key(1), IMAGES, LABELS, GRIDS[2])
    assert (another != expected[2][0]).sum() > 2  # the key matters

    assert_close(random_search(KEY, IMAGES, LABELS, GRIDS[2]), expected[2])
    over = (None, None, None, 0)
    assert_close(jax.jit(jax.vmap(random_search, over))(KEY, IMAGES, LABELS, GRIDS), results)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, y = jax.device_put((IMAGES, LABELS), NamedSharding(mesh, PartitionSpec("data")))
    assert_close(jax.jit(random_search)(KEY, x, y, GRIDS[2]), expected[2])

    keys = jax.vmap(lambda row: jax.random.fold_in(KEY, row))(jnp.arange(BATCH))
    half = jax.jit(lambda *inputs: random_search(*inputs, GRIDS[2])[0])
    halves = [half(keys[r], IMAGES[r], LABELS[r]) for r in (slice(0, 4), slice(4, 8))]
    assert_close(jnp.concatenate(halves), expected[2][0])


def test_an_unrolled_search_is_the_same_search():
    grid = jnp.linspace(0.1, 2.0, 7)
    assert_close(*(search(grid, attack=exact_attack(L2), unroll=unroll) for unroll in (1, True)))


def test_pgd_finds_the_exact_distances_of_a_linear_model():
    exact, _ = nearest(L2)
    grid = jnp.linspace(0.0, 1.5 * exact.max(), 16)[1:]
    attack = partial(attacks.pgd, targets=CLASSES - 1, random_start=False, bounds=FAR)
    found = jax.jit(partial(search, attack=attack))(grid)
    assert (found >= exact * (1 - 1e-5)).all()
    assert (found <= 1.05 * exact).all()


# Medians and tables.


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ([0.3], 0.3),
        ([0.5, 0.0, np.inf], 0.5),
        ([0.4, 0.1, 0.3, 0.2], 0.2),  # even: the lower of the two, not their mean
        ([0.5, np.inf], 0.5),
        ([0.1, np.inf, np.inf], np.inf),
        ([np.inf, np.inf], np.inf),
    ],
)
def test_a_median_counts_errors_as_zero_and_failures_as_infinite(distances, expected):
    np.testing.assert_allclose(curves.median_distance(jnp.array(distances)), expected)


def test_a_median_of_nothing_or_of_nan_is_refused():
    for distances in ([], [0.0, float("nan")]):
        with pytest.raises(ValueError, match="median of no distances, or of nan"):
            curves.median_distance(jnp.array(distances))


@pytest.mark.parametrize("refine", [0, 8])
def test_what_an_attack_breaks_at_a_radius_counts_there_however_its_length_is_rounded(refine):
    ends = np.linspace(0.097, 0.0999, 40, dtype=np.float32)
    x, y = jnp.repeat(0.75 - ends[:, None], 8, 1), jnp.zeros(40, int)
    model = lambda x: jnp.stack([0 * x[:, 0], (x - 0.75).sum(1)], 1)
    attack, grid = partial(attacks.fgsm, norm="linf"), jnp.array([0.05, 0.1, 0.2])
    assert curves.error(model, attack(KEY, model, x, y, 0.1), y) == 1.0
    curve = curves.error_curve(KEY, model, x, y, grid, attack=attack, refine=refine)
    assert curve.tolist() == [0.0, 1.0, 1.0]


def test_a_box_that_is_not_the_attacks_is_refused():
    with pytest.raises(
        ValueError, match=r"bounds = \(-1.0, 1.0\), and pgd attacks in \(0.0, 1.0\)"
    ):
        curves.minimal_distance(
            KEY, linear, X, Y, jnp.array([0.1, 0.2]), attack=attacks.pgd, bounds=(-1.0, 1.0)
        )
    with pytest.raises(ValueError, match="give two numbers, which jit does not trace"):
        attacks.fgsm(KEY, linear, X, Y, 0.1, bounds=(np.zeros(2), np.ones(2)))


def test_labels_of_another_shape_or_of_no_class_are_refused():
    for y, said in ((Y[:, None], "want"), (Y[:1], "want"), (Y - 9, "y has values")):
        with pytest.raises(ValueError, match=said):
            curves.error(linear, X, y)


def test_a_summary_has_the_columns_of_the_paper_in_percent():
    expected = {
        "% clean error": 25.0,
        "l2 median": 0.05,
        "% error at l2 0.1": 50.0,
        "linf median": 0.01,
        "% error at linf 0.0625": 100.0,
    }
    found = jnp.array([[0.0, 0.05, 0.3, np.inf], [0.0, 0.01, 0.02, 0.0625]])
    row = curves.summary(*found)
    assert list(row) == list(expected)
    assert all(type(value) is float for value in row.values())
    np.testing.assert_allclose(list(row.values()), list(expected.values()), rtol=1e-6)

    other = curves.summary(*found, eps_l2=0.5, eps_linf=0.015)
    assert other["% error at l2 0.5"] == 75.0
    assert other["% error at linf 0.015"] == 50.0


TABLE = {
    "J0, plain": {"l2 median": 0.0123456789, "linf median": np.inf, "seeds": "3"},
    "J2": {"seeds": "0.1 ± 0.02", "linf median": 0.0, "l2 median": 100.0},  # in another order
}


def test_a_table_in_markdown_has_four_digits_and_the_columns_of_the_first_row():
    assert curves.to_markdown(TABLE).split("\n") == [
        "|  | l2 median | linf median | seeds |",
        "|---|---|---|---|",
        "| J0, plain | 0.01235 | ∞ | 3 |",
        "| J2 | 100 | 0 | 0.1 ± 0.02 |",
    ]


def test_a_table_in_csv_reads_back_in_full_precision():
    rows = list(csv.DictReader(io.StringIO(curves.to_csv(TABLE))))
    assert list(rows[0]) == ["run", "l2 median", "linf median", "seeds"]
    assert [row.pop("run") for row in rows] == list(TABLE)
    for row, expected in zip(rows, TABLE.values(), strict=True):
        for column, value in expected.items():
            assert type(value)(row[column]) == value


# What users get wrong.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epsilons": []}, r"epsilons has shape \[0\]; want a list of radii \[E\]"),
        ({"epsilons": [[0.1, 0.2]]}, r"epsilons has shape \[1, 2\]"),
        ({"epsilons": 0.1}, r"epsilons has shape \[\]"),
        ({"epsilons": [0.5, 0.25]}, r"epsilons must increase; got \[0.5, 0.25\]"),
        ({"epsilons": [0.25, 0.25]}, r"epsilons must increase; got \[0.25, 0.25\]"),
        ({"epsilons": [0.25, np.nan]}, r"epsilons must increase; got \[0.25, nan\]"),
        ({"key": jax.random.PRNGKey(0)}, r"dtype uint32; make it with jax.random.key\(seed\)"),
    ],
)
def test_a_grid_that_does_not_increase_and_an_old_key_are_refused(given, said):
    inputs = {"key": KEY, "logits_fn": linear, "x": X, "y": Y, "epsilons": [0.1], **given}
    for function in (curves.minimal_distance, curves.error_curve):
        with pytest.raises(ValueError, match=said):
            function(**inputs, attack=exact_attack(L2))


def test_labels_of_a_narrow_type_and_masked_classes_are_what_they_say():
    assert curves.error(lambda x: x, jnp.eye(300)[256:257], np.uint8([0])) == 1
    assert curves.error(lambda x: x, jnp.array([[4.0, -jnp.inf]]), jnp.array([0])) == 0
    assert curves.error(lambda x: x, jnp.full((1, 2), -jnp.inf), jnp.array([0])) == 1
    with pytest.raises(ValueError, match="dtype float32; want classes"):
        curves.error(lambda x: x, jnp.eye(2), jnp.array([0.9, 0.0]))


def test_pixels_one_rounding_outside_are_inside_and_a_refusal_shows_how_far_others_are():
    x, y = jnp.array([[np.nextafter(np.float32(0.7), np.float32(1)), 0.1]]), jnp.array([1])
    found = attacks.pgd(KEY, lambda x: x, x, y, 0.1, bounds=(0.0, 0.7))
    assert (found <= np.float32(0.7)).all()
    with pytest.raises(ValueError, match=r"from 0.100000001 to 0.700010002, outside"):
        attacks.pgd(KEY, lambda x: x, x.at[0, 0].set(0.70001), y, 0.1, bounds=(0.0, 0.7))
