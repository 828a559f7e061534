"""Survivors packed, AutoAttack against exact errors, what goes on, and what is refused."""

import importlib
import inspect
import json
from contextlib import nullcontext
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import attacks, evaluation
from lipreg.attacks.expectation import expectation
from lipreg.batching import packed
from lipreg.evaluation import measure, protocols
from lipreg.evaluation.autoattack import stages
from lipreg.evaluation.cascade import Stage
from lipreg.keys import example_keys, fold_in
from lipreg.norms import L1, L2, LINF

KEY = jax.random.key(0)
label = lambda value: getattr(value, "name", None)
N, D = 16, 6


def linear(classes):
    """A linear model, images well inside the box, their labels (the last two wrong), distances."""
    weights = jax.random.normal(jax.random.key(classes), (D, classes))
    model = lambda x: x @ weights
    x = jax.random.uniform(KEY, (N, D), minval=0.4, maxval=0.6)
    y = model(x).argmax(-1)
    gaps = model(x)[jnp.arange(N), y][:, None] - model(x)

    def distances(norm):
        slopes = jax.vmap(norm.dual)(weights.T[None] - weights.T[y][:, None])
        return jnp.where(jax.nn.one_hot(y, classes) > 0, jnp.inf, gaps / slopes).min(1)

    return model, np.asarray(x), np.asarray(y), distances


def short_stages(classes, norm):
    """AutoAttack's, with few steps."""
    fewer = {"apgd-ce": {"steps": 25}, "apgd-t": {"steps": 25}, "fab-t": {"steps": 10}}
    named = stages("standard", classes, norm)
    return [
        s._replace(attack=partial(s.attack, **fewer.get(s.name, {"queries": 20}))) for s in named
    ]


def test_survivors_are_packed_into_full_batches_and_quarters():
    found = [(list(rows), n) for rows, n in packed(np.arange(10, 21), 8, parts=4)]
    assert [(len(rows), n) for rows, n in found] == [(8, 8), (2, 2), (2, 1)]
    assert [row for rows, n in found for row in rows[:n]] == list(range(10, 21))
    assert found[-1][0] == [20, 20]  # filled up
    assert not list(packed(np.arange(0), 8))


@pytest.mark.parametrize(
    ("classes", "norm"), [(2, LINF), (3, L2), (5, L1), (5, L2), (5, LINF)], ids=label
)
def test_autoattack_finds_the_exact_error_of_a_linear_model(classes, norm):
    """Below four classes DLR has no targeted form, and says so."""
    model, x, y, distances = linear(classes)
    exact = np.asarray(distances(norm))
    eps = float(np.quantile(exact, 0.5))
    said = pytest.warns(UserWarning, match="targeted_dlr needs 4") if classes < 4 else nullcontext()
    with said:
        attacks = short_stages(classes, norm)
        outcome = evaluation.cascade(KEY, model, x, y, eps, attacks, norm=norm)
    clear = np.abs(exact / eps - 1) > 0.02  # the rest is within what an attack may miss
    np.testing.assert_array_equal((outcome.broken_by >= 0)[clear], (exact < eps)[clear])
    broken = outcome.broken_by >= 0
    assert (np.asarray(norm.size(outcome.x_adv - x)) <= eps * (1 + 1e-5)).all()
    assert (np.asarray(model(outcome.x_adv).argmax(-1)) != y)[broken].all()
    np.testing.assert_array_equal(outcome.x_adv[~broken], x[~broken])


def test_each_attack_sees_only_what_is_left_and_is_traced_once_per_shape_at_each_radius():
    """A stage that breaks the odd rows of what it gets; the second must never see those."""
    model, x, y, _ = linear(3)
    seen = []

    def breaks_some(key, logits_fn, x, y, eps, round_):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return jnp.where((jnp.arange(len(x)) % 2 == 1)[:, None], 1 - x, x)

    traced = chex.assert_max_traces(breaks_some, n=2)  # a full batch and a quarter
    half = Stage("half", traced)
    flip = lambda x: model(jnp.where(x > 0.5, x, x))
    for eps in (0.3, 0.9):
        chex.clear_trace_counter()
        seen.clear()
        outcome = evaluation.cascade(
            KEY, flip, x, y, eps, [half, half._replace(name="again")], norm=LINF, batch_size=12
        )
        assert outcome.names == ("clean", "half", "again")
        assert list(outcome.breakdown()) == ["clean", "half", "again"]
        jax.effects_barrier()
        assert {len(batch) for batch in seen} == {3, 12}
        # Rows that fill up a batch are there twice.
        batches = [{row.tobytes() for row in batch} for batch in seen]
        times = [sum(row.tobytes() in batch for batch in batches) for row in x]
        once = np.where(outcome.broken_by == 1, 1, 2)
        np.testing.assert_array_equal(times, np.where(outcome.broken_by == 0, 0, once))
        assert (outcome.broken_by == 1).any()


def test_each_round_of_a_stage_draws_anew():
    def coin(key, logits_fn, x, y, eps, round_):
        return jnp.where(jax.vmap(jax.random.uniform)(key)[:, None] < 0.2, 1 - x, x)

    model = lambda x: jnp.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1)
    x, y = np.full((64, 2), 0.8, np.float32), np.zeros(64, int)
    outcome = evaluation.cascade(KEY, model, x, y, 1.0, [Stage("coin", coin, 4)])
    keys = example_keys(KEY, 64)
    drawn = [jax.vmap(jax.random.uniform)(fold_in(keys, round_)) < 0.2 for round_ in range(4)]
    np.testing.assert_array_equal(outcome.broken_by >= 0, np.any(drawn, 0))
    assert 0 < drawn[0].sum() < np.any(drawn, 0).sum() < 64


@pytest.mark.parametrize("stage", ["apgd-t", "fab-t"])
def test_each_attack_on_targets_finds_the_exact_error_by_itself(stage):
    model, x, y, distances = linear(5)
    exact = np.asarray(distances(LINF))
    eps = float(np.quantile(exact, 0.5))
    alone = [s for s in short_stages(5, LINF) if s.name == stage]
    broken = evaluation.cascade(KEY, model, x, y, eps, alone).broken_by >= 0
    clear = np.abs(exact / eps - 1) > 0.02
    np.testing.assert_array_equal(broken[clear], (exact < eps)[clear])


def test_a_cascade_does_not_believe_an_attack():
    """Points outside the ball, outside the box, or classified right are not counted."""
    model, x, y, _ = linear(3)
    far = Stage("far", lambda key, f, x, y, eps, r: x + 2 * eps)
    outside = Stage("outside", lambda key, f, x, y, eps, r: x + 0.999 * eps)
    right = Stage("right", lambda key, f, x, y, eps, r: x)
    outcome = evaluation.cascade(KEY, model, x, y, 1.0, [far, outside, right])
    assert outcome.error == 0


@pytest.mark.parametrize("eps", [5e-4, 1e-4])
def test_the_rounding_of_an_image_is_none_of_the_radius(eps):
    """`x - eps` is on the grid of float32, which near 1 is coarse against eps."""
    x = jnp.asarray(np.arange(784)[None] % 64 + 160, jnp.float32) / 255
    edge = x.sum() - 0.9 * 784 * eps
    model = lambda x: jnp.stack([x.sum(1), jnp.full(len(x), edge)], 1)
    by = lambda share: Stage("step", lambda key, f, x, y, eps, r: x - share * eps)
    assert float((x - (x - eps)).max()) > eps * (1 + 1e-5)
    for share, error in ((1.0, 1.0), (1.001, 0.0)):
        outcome = evaluation.cascade(KEY, model, x, np.array([0]), eps, [by(share)])
        assert outcome.error == error


def test_what_is_wrong_to_begin_with_is_clean_and_untouched_and_known_points_are_used():
    model, x, y, distances = linear(5)
    y = np.where(np.arange(N) < 3, (y + 1) % 5, y)
    eps = float(distances(LINF).max() * 1.1)
    attack = Stage("pgd", lambda key, f, x, y, eps, r: attacks.pgd(key, f, x, y, eps, norm=LINF))
    first = evaluation.cascade(KEY, model, x, y, eps, [attack], norm=LINF)
    assert (first.broken_by[:3] == 0).all()
    np.testing.assert_array_equal(first.x_adv[:3], x[:3])
    again = evaluation.cascade(KEY, model, x, y, 2 * eps, [attack], norm=LINF, known=first.x_adv)
    assert again.names == ("clean", "known", "pgd")
    assert again.breakdown()["known"] == first.error


def test_images_that_are_wrong_are_not_attacked():
    x = jax.random.uniform(jax.random.key(0), (8, 4))
    logits_fn, right = lambda x: 9 * x, jnp.arange(8) % 3 > 0  # 5 of 8
    for y in (jnp.where(right, x.argmax(1), x.argmin(1)), x.argmin(1)):
        said: list[str] = []
        options = {"radii": {"l2": (0.1,)}, "keep": True, "progress": said.append}
        found = evaluation.evaluate(logits_fn, x, y, protocol="deck", **options)
        wrong = np.asarray(x.argmax(1) != y)
        attacked = [line for line in said if line.startswith("l2-basic_iterative")]
        assert attacked == ["l2-basic_iterative-kept: 5 of 5 images"] * bool((~wrong).any())
        np.testing.assert_array_equal(found.distances["l2"]["basic_iterative"] == 0, wrong)
        np.testing.assert_array_equal(found.nearest_points["l2"][wrong], x[wrong])
        assert (found.nearest_points["l2"][~wrong] != x[~wrong]).any(1).all()


def test_a_cascade_that_was_killed_goes_on_and_one_of_something_else_is_refused(tmp_path):
    model, x, y, distances = linear(5)
    eps, calls = float(jnp.median(distances(L2))), []

    def attack(key, logits_fn, x, y, eps, round_):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return attacks.pgd(key, logits_fn, x, y, eps, norm=L2)

    def run(stop=None):
        def progress(message):
            if stop and len(calls) >= stop:
                raise KeyboardInterrupt

        store = evaluation.Store(tmp_path, {"seed": 0})
        return evaluation.cascade(
            KEY, model, x, y, eps, [Stage("pgd", attack, 2)], norm=L2, batch_size=4, store=store,
            progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(stop=2)
    run()
    total = len(calls)
    calls.clear()
    whole = evaluation.cascade(
        KEY, model, x, y, eps, [Stage("pgd", attack, 2)], norm=L2, batch_size=4
    )
    jax.effects_barrier()
    assert total - len(calls) <= 1  # the batch that was killed before it was kept
    kept = run()
    np.testing.assert_array_equal(kept.broken_by, whole.broken_by)
    np.testing.assert_array_equal(kept.x_adv, whole.x_adv)
    with pytest.raises(ValueError, match=r"another seed.*seed 0 there, 1 asked"):
        evaluation.Store(tmp_path, {"seed": 1})


def test_a_damaged_result_is_computed_again(tmp_path):
    store = evaluation.Store(tmp_path, {"seed": 0})
    store.put("a", found=np.arange(3))
    np.testing.assert_array_equal(store.get("a")["found"], np.arange(3))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:40])
    assert store.get("a") is None
    assert store.get("b") is None
    store.put("a", found=np.arange(3))
    whole = (tmp_path / "a.npz").read_bytes()
    local, central = 6, whole.index(b"PK\1\2") + 8
    for flag in (1, 1 << 5):  # encrypted; patched data
        bits = bytearray(whole)
        bits[local] |= flag
        bits[central] |= flag
        (tmp_path / "a.npz").write_bytes(bits)
        assert store.get("a") is None


def test_a_store_keeps_every_radius_of_a_cascade_apart(tmp_path):
    x, y = np.array([[0.6, 0.4], [0.8, 0.2], [0.9, 0.1]], np.float32), np.zeros(3, int)
    step = Stage("fgsm", lambda key, f, x, y, eps, _: attacks.fgsm(key, f, x, y, eps))
    store = evaluation.Store(tmp_path, {"model": 1})
    cascade = partial(evaluation.cascade, KEY, lambda x: x, x, y, attacks=[step], store=store)
    errors = [cascade(eps).error for eps in (0.45, 0.15, 0.35)]
    np.testing.assert_allclose(errors, [1, 1 / 3, 2 / 3])


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0)])
def test_the_pgd_curve_reaches_the_radii_that_are_asked_for_in_every_box(bounds):
    ends, width = np.linspace(0.05, 0.45, 16, dtype=np.float32), bounds[1]
    x, y = width * np.repeat(0.95 - ends[:, None], 4, 1), np.zeros(16, int)
    model = lambda x: jnp.stack([0 * x[:, 0], (x / width - 0.95).sum(1)], 1)
    radii = {"linf": tuple(width * eps for eps in (0.1, 0.3, 0.5))}
    options = {"protocol": "pgd", "radii": radii, "bounds": bounds, "progress": None}
    found = evaluation.evaluate(model, x, y, **options)
    errors = [found.error("linf", eps) for eps in radii["linf"]]
    assert errors == [(ends <= eps).mean() for eps in (0.1, 0.3, 0.5)]
    few = evaluation.pgd(grids={"linf": (0.1 * width, 0.2 * width)})
    with pytest.raises(ValueError, match=r"pgd looks as far as .*: give it a grid"):
        evaluation.evaluate(model, x, y, **options | {"protocol": few})


@pytest.mark.parametrize("name", ["square", "clean", "all attacks", "all together"])
def test_a_strangers_attack_has_a_name_of_its_own(name):
    with pytest.raises(ValueError, match=f"has an attack '{name}': rename yours"):
        measure._plan("autoattack", {name: attacks.fgsm})


def test_the_versions_of_autoattack_have_their_attacks():
    names = lambda *args: [(stage.name, stage.rounds) for stage in stages(*args)]
    assert names("standard", 10) == [("apgd-ce", 1), ("apgd-t", 9), ("fab-t", 9), ("square", 1)]
    # In l_1 five starts, and targets, from larger radii.
    assert names("standard", 10, L1) == [("apgd-ce", 5), ("apgd-t", 5), ("fab-t", 9)]
    assert names("standard", 3, L1) == [("apgd-ce", 5), ("apgd-t", 2), ("fab-t", 2)]
    larger = lambda *args: [stage.attack.keywords.get("from_larger") for stage in stages(*args)]
    assert larger("standard", 10, L1) == [True, True, None]
    assert not any(larger("plus", 10, L1) + larger("standard", 10))
    assert stages("standard", 10, channels=1)[-1].attack.keywords["channels"] == 1
    assert [name for name, _ in names("plus", 10)] == [
        *("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    ]
    assert names("rand", 10) == [("apgd-ce", 1), ("apgd-dlr", 1)]
    with pytest.raises(ValueError, match="No version 'fast'; choose one of standard, plus, rand"):
        stages("fast", 10)


def test_the_starts_of_fab_in_the_plus_version_differ():
    model, x, _, _ = linear(5)
    bent = lambda x: jnp.tanh(3 * model(x)) + x[:, :5] ** 2
    y, eps = bent(jnp.asarray(x)).argmax(1), 0.2
    (stage,) = [s for s in stages("plus", 5, LINF) if s.name == "fab"]
    points = [stage.attack(KEY, bent, jnp.asarray(x), y, eps, r, steps=3) for r in (0, 1)]
    at_image = attacks.fab(KEY, bent, jnp.asarray(x), y, eps, steps=3)
    np.testing.assert_array_equal(points[0], at_image)
    assert (points[1] != at_image).any()


def test_a_random_model_is_attacked_by_its_expectation():
    """Logits with noise ten times their size: the expected model is linear, and so is its error."""
    model, x, y, distances = linear(5)
    noisy = lambda key, x: model(x) + 0.05 * jax.random.normal(key, (len(x), 5))
    logits_fn = expectation(noisy, KEY, samples=8)
    np.testing.assert_array_equal(logits_fn(x), logits_fn(x))
    assert np.abs(np.asarray(logits_fn(x) - logits_fn(x + 1e-6))).max() > 1e-3
    exact, eps = np.asarray(distances(L2)), float(jnp.median(distances(L2)))
    rand = [s._replace(attack=partial(s.attack, steps=25)) for s in stages("rand", 5, L2)]
    # An image's noise does not depend on its batch.
    np.testing.assert_allclose(logits_fn(x[:1]), logits_fn(x)[:1], rtol=1e-5, atol=1e-6)
    outcome = evaluation.cascade(KEY, logits_fn, x, y, eps, rand, norm=L2)
    broken = outcome.broken_by >= 0
    assert broken[exact < 0.5 * eps].all()
    assert not broken[exact > 2 * eps].any()


@pytest.fixture(scope="module")
def model():
    return linear(4)


@pytest.mark.parametrize("protocol", ["pgd", "deck", "autoattack"])
def test_an_evaluation_has_distances_errors_and_the_masking_report(model, protocol, tmp_path):
    logits_fn, x, y, distances = model
    radii = {"linf": (float(jnp.median(distances(LINF))), 0.2)}
    run = partial(
        evaluation.evaluate, logits_fn, x, y, protocol=protocol, radii=radii, checked=16,
        folder=tmp_path,
    )  # fmt: skip
    found = run()
    exact = np.asarray(distances(LINF))
    if protocol != "autoattack":
        nearest = found.nearest("linf")
        assert (nearest >= exact * (1 - 1e-4)).all()
        assert np.median(nearest / exact) < (1.3 if protocol == "deck" else 1.05)
        assert found.outcomes["linf"] == {}
    else:
        assert found.error("linf", radii["linf"][0]) == pytest.approx(0.5, abs=0.03)
        assert [*found.outcomes["linf"][0.2].names][:2] == ["clean", "known"]
        with pytest.raises(ValueError, match="measures no distances; choose full"):
            found.nearest("linf")
    statuses = {check.status for check in found.checks["linf"]}
    assert statuses <= {"pass", "warn", "fail"}
    assert bool(statuses) == (protocol != "pgd")
    text = evaluation.to_markdown(found)
    assert ("masking check" in text) == (protocol != "pgd")
    numbers = evaluation.to_json(found)
    assert numbers["n"] == N
    # The same again comes from the folder; another seed is refused.
    assert evaluation.to_json(run()) == numbers
    with pytest.raises(ValueError, match=r"another seed: seed 0 there, 1 asked"):
        run(seed=1)


def test_the_pgd_curve_has_settings_of_its_own_and_keeps_the_nearest_images(model, tmp_path):
    logits_fn, x, y, distances = model
    exact = np.asarray(distances(L2))
    run = partial(evaluation.evaluate, logits_fn, x, y, radii={"l2": (0.1,)}, folder=tmp_path)
    few = evaluation.pgd(steps=3, grids={"l2": protocols.grid(1.5 * exact.max(), 5)})
    found = run(protocol=few, keep=True)
    assert (found.nearest("l2") >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(found.nearest("l2"), exact, rtol=0.3)
    points = found.nearest_points["l2"]
    np.testing.assert_allclose(L2.size(points - x), found.nearest("l2"), rtol=1e-5)
    assert (np.asarray(logits_fn(points).argmax(1)) != y)[exact > 0].all()
    with pytest.raises(ValueError, match="another steps: steps 3 there, 9 asked"):
        run(protocol=evaluation.pgd(steps=9, grids={"l2": few.settings["grids"]["l2"]}))
    with pytest.raises(ValueError, match="No attack of the protocol pgd serves l1; choose l2"):
        run(protocol=few, radii={"l1": (1.0,)})
    with pytest.raises(ValueError, match="pgd: steps = 0; it must be at least 1"):
        evaluation.pgd(steps=0)


def test_images_in_half_precision_are_measured_in_it_and_so_they_are_after_a_kill(tmp_path):
    x = jax.random.uniform(jax.random.key(1), (6, 4)).astype(jnp.bfloat16)
    seen = []

    def logits_fn(x):
        seen.append(x.dtype)
        return 9.0 * x.astype(jnp.float32)

    y = x.astype(jnp.float32).argmax(1)
    few = evaluation.pgd(steps=3, grids={"l2": np.array([0.2, 0.6, 1.0])})
    options = {"protocol": few, "radii": {"l2": (0.2,)}, "keep": True, "folder": tmp_path}
    first, again = (evaluation.evaluate(logits_fn, x, y, **options) for _ in range(2))
    assert {str(dtype) for dtype in seen} == {"bfloat16"}
    for found in (first, again):
        points = found.nearest_points["l2"]
        assert points.dtype == jnp.bfloat16
        assert (points != np.asarray(x)).any(1).all()
    np.testing.assert_array_equal(first.nearest_points["l2"], again.nearest_points["l2"])


def test_a_white_pixel_that_half_precision_rounds_is_attacked_in_its_ball():
    """MNIST's normalisation: white, 2.82149, is 2.828 in bfloat16, and no grid has x - eps."""
    bounds, eps = (-0.4242, 2.82149), 0.97371
    x = jnp.array([[bounds[1], 2.0, 0.0]], jnp.bfloat16)
    weights = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    logits_fn = lambda x: x.astype(jnp.float32) @ weights
    stage = Stage("pgd", lambda *args: attacks.pgd(*args[:5], norm=LINF, bounds=bounds))
    options = {"norm": LINF, "bounds": bounds}
    found = evaluation.cascade(KEY, logits_fn, x, jnp.array([0]), eps, [stage], **options)
    assert found.breakdown() == {"clean": 0.0, "pgd": 1.0}


def test_a_pgd_curve_that_was_killed_goes_on(model, tmp_path):
    logits_fn, x, y, _ = model
    told = []
    run = partial(
        evaluation.evaluate, logits_fn, x, y, protocol=evaluation.pgd(steps=2), batch_size=6,
        radii={"l2": (0.1,)}, folder=tmp_path,
    )  # fmt: skip

    def killed(message):
        told.append(message)
        if message == "l2-pgd: 12 of 16 images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=killed)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("l2-pgd-*")}
    assert len(made) == 2
    found = run().nearest("l2")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    np.testing.assert_array_equal(found, run(folder=None).nearest("l2"))


@pytest.mark.parametrize("protocol", ["pgd", "full"])
def test_l1_is_measured_by_the_attacks_that_serve_it_and_the_others_are_named(protocol):
    weights = jnp.array([[1.0, -1.0], [0.5, -0.5]])
    x = np.float32([[0.7, 0.4], [0.5, 0.3], [0.8, 0.9]])
    model = lambda x: (x - 0.3) @ weights
    y = np.zeros(3, np.int32)
    exact = (x - 0.3) @ np.float32([1.0, 0.5])  # the steepest pixel changes the margin alone
    exact = np.where(exact > x[:, 0], x[:, 0] + 2 * (exact - x[:, 0]), exact)  # at its bound
    plan = evaluation.PROTOCOLS[protocol]._replace(autoattack=False, masking=False)
    found = evaluation.evaluate(model, x, y, protocol=plan, radii={"l1": (0.4,)})
    assert (found.nearest("l1") >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(found.nearest("l1"), exact, rtol=0.1)
    assert found.error("l1", 0.4) == pytest.approx((exact <= 0.4).mean())
    left_out = {"pgd": (), "full": ("basic_iterative", "ddn")}[protocol]
    assert found.left_out["l1"] == left_out
    assert all(name in evaluation.to_markdown(found) for name in left_out)


def with_radius(key, logits_fn, x, y, eps, *, norm, bounds):
    """What a stranger writes: a step along the gradient, from a random start, with one key."""
    start = jnp.clip(x + 0.1 * eps * jax.random.normal(key, x.shape), *bounds)
    slope = jax.grad(lambda x: logits_fn(x)[0, y[0]] - logits_fn(x).sum() / 4)(start)
    return jnp.clip(x - eps * norm.direction(slope), *bounds)


def nearest(key, logits_fn, x, y, *, norm, bounds):
    """One step, for every other image."""
    x_adv = with_radius(key, logits_fn, x, y, 0.5, norm=norm, bounds=bounds)
    return jnp.where(jax.random.uniform(key) < 0.5, x_adv, x)


def test_a_strangers_attack_runs_beside_the_others_and_is_not_believed(model, tmp_path):
    logits_fn, x, y, distances = model
    eps = float(jnp.median(distances(L2)))
    run = partial(
        evaluation.evaluate, logits_fn, x, y, protocol=evaluation.pgd(steps=2),
        radii={"l2": (eps, 2 * eps)},
    )  # fmt: skip
    liar = lambda key, f, x, y, eps, *, norm, bounds: x + 2 * eps
    others = {"mine": with_radius, "nearest": nearest, "liar": liar}
    found = run(attacks=others, folder=tmp_path)
    assert list(found.distances["l2"]) == ["pgd", "nearest"]
    assert 0 < np.isinf(found.distances["l2"]["nearest"]).sum() < N
    assert list(found.others["l2"]) == ["mine", "liar"]
    assert found.others["l2"]["liar"][eps].error == 0
    exact, mine = np.asarray(distances(L2)), found.others["l2"]["mine"]
    assert not mine[eps].broken[exact > eps].any()
    assert mine[2 * eps].error > mine[eps].error > 0
    by_pgd = found.distances["l2"]["pgd"] <= eps
    assert found.error("l2", eps) == (by_pgd | mine[eps].broken).mean()
    assert all(name in evaluation.to_markdown(found) for name in others)
    # An image's random numbers are its own, whatever its batch.
    again = run(attacks=others, batch_size=5)
    alone = [one.distances["l2"]["nearest"] for one in (again, found)]
    np.testing.assert_allclose(*alone, rtol=1e-5)
    np.testing.assert_array_equal(again.others["l2"]["mine"][eps].broken, mine[eps].broken)
    with pytest.raises(ValueError, match="another attack code, attacks"):
        run(folder=tmp_path)
    rewritten = others | {"liar": lambda *args, **options: liar(*args, **options) / 2}
    rewritten["liar"].__signature__ = inspect.signature(liar)
    with pytest.raises(ValueError, match="another attack code"):  # else its old numbers would stay
        run(attacks=rewritten, folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"protocol": "quick"}, "No protocol 'quick'; choose one of pgd, deck, autoattack, full"),
        ({"radii": {"l3": (0.1,)}}, "No norm 'l3' in radii; choose one of l1, l2, linf"),
        ({"radii": {"l2": (0.0,)}}, r"radii of l2 = \(0.0,\); give finite radii greater than 0"),
        ({"radii": {"l2": (np.inf,)}}, r"radii of l2 = \(inf,\); give finite radii greater"),
        ({"bounds": (0.5, 1.0)}, "outside bounds"),
        (
            {"protocol": "deck", "radii": {"l1": (1.0,)}},
            "No attack of the protocol deck serves l1; choose l2, linf",
        ),
        (
            {"protocol": "pgd", "surrogate": lambda x: x},
            "surrogate: the protocol pgd has no masking report, only deck, autoattack, full",
        ),
        ({"attacks": {"fmn": nearest}}, "The protocol full has an attack 'fmn': rename yours"),
        ({"attacks": {"odd": lambda x, y: x}}, r"attack 'odd' takes \(x, y\).*; want \(key, log"),
        (
            {"protocol": "pgd", "attacks": {"flat": lambda k, f, x, y, *, norm, bounds: x[0]}},
            r"attack 'flat' returned \(6,\); want images like x \(1, 6\)",
        ),
        (
            {"protocol": "pgd", "attacks": {"np": lambda k, f, x, y, *, norm, bounds: np.array(x)}},
            r"attack 'np' cannot be traced \(TracerArrayConversionError: ",
        ),
        ({"radii": {}}, "radii has no norm"),
        ({"radii": {"l2": 0.1}}, r"radii of l2 = 0.1; give a sequence, as in {'l2': \(0.1,\)}"),
        ({"checked": 0}, "checked = 0; the masking report needs an image"),
        ({"attacks": {"mine": attacks.ddn}}, "ddn: no form for the norm linf"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(model, given, said):
    logits_fn, x, y, _ = model
    with pytest.raises(ValueError, match=said) as caught:
        evaluation.evaluate(logits_fn, x, y, **given)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_wrong_itself_is_its_own_nearest_whatever_an_attack_returns():
    x, y = np.float32([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]), np.zeros(3, int)
    mirrored = lambda key, f, x, y, *, norm, bounds: 1 - x
    nothing = protocols.Protocol("none", {"l2": {}}, masking=False)
    options = {"radii": {"l2": (0.1,)}, "attacks": {"mirrored": mirrored}, "progress": None}
    found = evaluation.evaluate(lambda x: x, x, y, protocol=nothing, keep=True, **options)
    np.testing.assert_allclose(found.nearest("l2"), [0.2 * 2**0.5, 0.8 * 2**0.5, 0], rtol=1e-5)
    np.testing.assert_allclose(found.nearest_points["l2"], [1 - x[0], 1 - x[1], x[2]])


@pytest.mark.parametrize("kind", [list, np.float32, np.float64, jnp.float32])
def test_radii_of_every_type_are_the_same_numbers(kind):
    radii = [0.25] if kind is list else kind([0.25])
    x, y = np.float32([[0.75, 0.25], [0.5, 0.25]]), np.zeros(2, int)
    options = {"protocol": "deck", "progress": None, "checked": 1}
    found = evaluation.evaluate(lambda x: x, x, y, radii={"linf": radii}, **options)
    assert json.loads(json.dumps(evaluation.to_json(found)))["norms"]["linf"]["radii"] == [0.25]
    exact = found._replace(distances={"linf": {"a": np.float32([0.1, 0.3])}})
    assert [exact.error("linf", eps) for eps in (0.1, np.float64(0.1), jnp.float32(0.1))] == [
        0.5
    ] * 3


def test_attacks_of_one_name_are_none_of_each_others_results():
    stage = Stage("a", lambda key, f, x, y, eps, round_: x)
    with pytest.raises(ValueError, match="Two attacks of the cascade have the name 'a': rename"):
        evaluation.cascade(jax.random.key(0), lambda x: x, X2, Y2, 0.1, [stage, stage])


X2, Y2 = np.float32([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 0])


@pytest.mark.parametrize(
    ("x", "y", "eps", "said"),
    [
        (np.float32([[0.9, 0.1], [1.5, 0.1]]), Y2, 0.1, "values from 0.1.* to 1.5, outside bounds"),
        (X2, np.array([0, 7]), 0.1, "y has values from 0 to 7; logits_fn has 0 to 1"),
        (X2, np.array([0.0, 0.9]), 0.1, "dtype float64; want classes"),
        (X2, Y2, -0.1, "eps = -0.1; a radius must be 0 or more"),
        (X2, Y2, float("nan"), "eps = nan; a radius must be 0 or more"),
        (X2[:0], Y2[:0], 0.1, "no images"),
    ],
)
def test_a_cascade_looks_at_every_image_label_and_radius(x, y, eps, said):
    with pytest.raises(ValueError, match=said):
        evaluation.cascade(KEY, lambda x: x, x, y, eps, [])


def test_targets_and_surrogates_are_classes_of_the_model():
    x, y, f = jnp.asarray(X2), jnp.asarray(Y2), lambda x: x
    for targets, said in (
        ([[7], [1]], "targets from 1 to 7; logits_fn has 0 to 1"),
        ([[1], [0]], r"targets\[1\] = \[0\] has the true class, 0"),
        ([[1]], r"targets have shape \[1, 1\]; want \[2, T\]"),
    ):
        with pytest.raises(ValueError, match=said):
            attacks.pgd(KEY, f, x, y, 0.1, targets=jnp.array(targets))
    with pytest.raises(ValueError, match=r"surrogate returned \(2, 3\); logits_fn \(2, 2\)"):
        evaluation.masking_report(KEY, f, x, y, 0.1, surrogate=lambda x: x @ jnp.ones((2, 3)))


def test_a_box_without_an_end_is_refused_where_lengths_count_in_its_widths():
    x, y, anywhere = jnp.asarray(X2), jnp.asarray(Y2), (-np.inf, np.inf)
    for name in ("ddn", "fmn", "carlini_wagner", "boundary"):
        with pytest.raises(ValueError, match=f"{name}: bounds = .*must be finite"):
            getattr(attacks, name)(KEY, lambda x: x, x, y, bounds=anywhere)
    for attack in (attacks.fgsm, partial(attacks.pgd, norm=LINF)):
        x_adv = attack(KEY, lambda x: x, x, y, 0.45, bounds=anywhere)
        assert (np.asarray(x_adv).argmax(1) == 1).all()


def test_a_function_made_again_is_the_same_surrogate(model, tmp_path):
    x, y = jax.random.uniform(KEY, (4, 4)), jnp.array([0, 1] * 2)
    made = lambda: lambda x: 9 * x[:, :2]
    options = {"protocol": "deck", "radii": {"l2": (0.1,)}, "folder": tmp_path, "progress": None}
    first, again = (
        evaluation.evaluate(made(), x, y, surrogate=made(), **options) for _ in range(2)
    )
    np.testing.assert_array_equal(first.clean, again.clean)
    with pytest.raises(ValueError, match="surrogate"):
        evaluation.evaluate(made(), x, y, surrogate=lambda x: 8 * x[:, :2], **options)


def test_the_channels_axis_reaches_every_square(monkeypatch):
    seen = []

    def square(key, logits_fn, x, *args, channels, **options):
        seen.append(channels)
        return x

    for module in ("autoattack", "masking"):
        place = importlib.import_module(f"lipreg.evaluation.{module}")
        monkeypatch.setattr(place, "square", square)
    x, y = jax.random.uniform(KEY, (4, 5, 3, 3)), jnp.array([0, 1] * 2)
    logits_fn = lambda x: x.sum((2, 3))
    evaluation.evaluate(
        logits_fn, x, y, protocol="autoattack", radii={"linf": (0.01,)}, channels=1, progress=None
    )
    assert set(seen) == {1}
    assert len(seen) >= 2


def test_the_masking_report_takes_no_larger_batches_than_the_evaluation(model, monkeypatch):
    seen, place = [], importlib.import_module("lipreg.evaluation.measure")
    monkeypatch.setattr(place, "_autoattack", lambda *_: {})
    monkeypatch.setattr(
        place, "masking_report", lambda *_, batch_size, **__: seen.append(batch_size) or ()
    )
    logits_fn, x, y, _ = model
    for size in (2, 1000):
        evaluation.evaluate(
            logits_fn, x, y, protocol="autoattack", radii={"l2": (0.1,)}, batch_size=size
        )
    assert seen == [2, 256]


def test_a_search_on_a_grid_says_nothing_beyond_it(model):
    found = evaluation.evaluate(*model[:3], protocol="pgd", radii={"l2": (0.1,)})
    end = found.reach["l2"]
    assert found.error("l2", 0.1) <= found.error("l2", end)
    with pytest.raises(ValueError, match=f"l2 {2 * end:g} was measured; pgd looked as far as"):
        found.error("l2", 2 * end)


def test_failures_have_no_distance_and_count_as_the_largest():
    distances = np.array([0.0, 0.2, 0.4, np.inf, np.inf], np.float32)
    found = evaluation.Evaluation(
        "deck", np.arange(5) < 1, {"l2": {"pgd": distances}}, {"l2": {}}, {"l2": ()},
        radii={"l2": (0.2,)}, others={"l2": {}}, nearest_points={}, left_out={"l2": ()},
    )  # fmt: skip
    numbers = evaluation.to_json(found)["norms"]["l2"]["distances"]["pgd"]
    assert numbers["median"] == pytest.approx(0.4)
    assert numbers["mean_of_found"] == pytest.approx(0.2)
    assert numbers["failures"] == 2
    assert "| pgd | 0.4 | 0.2 | 2 |" in evaluation.to_markdown(found)


def test_the_error_at_a_radius_that_was_not_measured_is_none():
    broken = evaluation.Outcome(X2, np.array([-1, 1]), ("clean", "pgd"))
    found = evaluation.Evaluation(
        "autoattack", np.zeros(2, bool), {"l2": {}}, {"l2": {0.2: broken}}, {},
        radii={"l2": (0.2,)}, others={"l2": {}}, nearest_points={}, left_out={},
    )  # fmt: skip
    assert found.error("l2", 0.2) == 0.5
    assert found.error("l2", 0.0) == 0
    for eps in (0.1, 0.3, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"was measured; choose one of 0, 0\.2"):
            found.error("l2", eps)
    with pytest.raises(ValueError, match="No norm 'l1'; choose one of l2"):
        found.error("l1", 0.2)
