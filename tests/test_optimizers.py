"""Optimisers by name: each makes a finite step, and what cannot make one is refused.

SAM and AWP go up and down by their formulas, and averages are those of their decay.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipreg import optimizers

W = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3), "bias": jnp.ones(3)}
G = {"kernel": jnp.full((2, 3), 0.1), "bias": jnp.array([1.0, -2.0, 3.0])}
RATE = optimizers.schedule("cosine", 0.1, 10)


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's bias corrections mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def step(tx, w=W, g=G):
    updates, _ = jax.jit(tx.update)(g, tx.init(w), w)
    return updates


@pytest.mark.parametrize("name", [*optimizers.NAMES, "optax.contrib:muon"])
def test_every_optimizer_makes_a_step_at_the_schedules_rate(name):
    updates = step(optimizers.build(name, RATE, weight_decay=1e-3, clip=1.0))
    assert jax.tree.structure(updates) == jax.tree.structure(W)
    moved = [np.asarray(leaf) for leaf in jax.tree.leaves(updates)]
    assert all(np.isfinite(leaf).all() and leaf.dtype == np.float32 for leaf in moved)
    assert any(leaf.any() for leaf in moved)


@pytest.mark.parametrize("name", [*optimizers.NAMES, "optax.contrib:muon"])
def test_every_optimizer_follows_the_schedule_from_step_to_step(name):
    tx = optimizers.build(name, lambda step: jnp.where(step < 1, 0.1, 0.0))
    state, moved = tx.init(W), []
    for _ in range(2):
        updates, state = tx.update(G, state, W)
        moved.append(any(leaf.any() for leaf in jax.tree.leaves(updates)))
    # optax.lars accumulates steps that are scaled already.
    assert moved == [True, name == "lars"]


def test_weight_decay_goes_to_the_optimizer_that_takes_it_and_else_into_the_gradient():
    adamw = optimizers.build("adamw", 0.1, weight_decay=0.5, b2=0.95)
    expected = step(optax.adamw(0.1, b2=0.95, weight_decay=0.5))
    jax.tree.map(np.testing.assert_allclose, step(adamw), expected)
    adam = optimizers.build("adam", 0.1, weight_decay=0.5)
    decayed = jax.tree.map(lambda g, w: g + 0.5 * w, G, W)
    jax.tree.map(np.testing.assert_allclose, step(adam), step(optax.adam(0.1), g=decayed))


def test_the_gradient_is_clipped_before_it_is_decayed_and_steps_are_accumulated():
    tx = optimizers.build("sgd", 1.0, weight_decay=0.5, clip=0.1, accumulate=2)
    state = tx.init(W)
    first, state = tx.update(G, state, W)
    second, _ = tx.update(G, state, W)
    norm = optax.tree.norm(G)
    assert not any(leaf.any() for leaf in jax.tree.leaves(first))
    expected = jax.tree.map(lambda g, w: -(0.1 * g / norm + 0.5 * w), G, W)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), second, expected)


def test_accumulated_gradients_are_averaged_and_their_mean_is_clipped():
    half = jax.tree.map(lambda g: -g / 2, G)
    for clip in (0.0, float(optax.tree.norm(G)) / 2):  # more than the mean, less than the first
        tx = optimizers.build("sgd", 1.0, weight_decay=0.5, clip=clip, accumulate=2)
        _, state = tx.update(G, tx.init(W), W)
        updates, _ = tx.update(half, state, W)
        expected = jax.tree.map(lambda g, w: -(g / 4 + 0.5 * w), G, W)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_nesterov_looks_ahead():
    """`v <- 0.9 v + g`, `w <- w - rate (0.9 v + g)` (Sutskever et al. 2013)."""
    tx = optimizers.sgd(0.1, nesterov=True, weight_decay=0.5)
    w, v, state, expected = W, jax.tree.map(jnp.zeros_like, W), tx.init(W), W
    for _ in range(3):
        updates, state = tx.update(G, state, w)
        w = optax.apply_updates(w, updates)
        g = jax.tree.map(lambda g, w: g + 0.5 * w, G, expected)
        v = jax.tree.map(lambda v, g: 0.9 * v + g, v, g)
        ahead = jax.tree.map(lambda v, g: 0.1 * (0.9 * v + g), v, g)
        expected = jax.tree.map(lambda w, a: w - a, expected, ahead)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), w, expected)


def gradient(w):
    """Of 1/2 ||w||^2 and the sum of the kernel's exponentials."""
    return {"kernel": w["kernel"] + jnp.exp(w["kernel"]), "bias": w["bias"]}


def path(tx, calls, w=None):
    """The params after each call, and those at rest."""
    w = W if w is None else w
    state, seen = tx.init(w), []
    update = jax.jit(tx.update)
    for _ in range(calls):
        updates, state = update(gradient(w), state, w)
        w = optax.apply_updates(w, updates)
        seen.append((w, optimizers.at_rest(state, w)))
    return seen


def assert_close(a, b, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), a, b)


def test_sam_is_that_of_optax():
    inner, climb = optax.adam(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    found = path(optimizers.sam(inner, rho=0.3), 6)
    expected = path(optax.contrib.sam(inner, climb), 6)
    for (params, _), (params_of_optax, _) in zip(found, expected, strict=True):
        assert_close(params, params_of_optax)
    for k in (0, 2, 4):  # above, and then below
        assert_close(found[k][1], found[k - 1][0] if k else W)
        assert_close(found[k + 1][1], found[k + 1][0])


def test_awp_goes_up_by_a_part_of_each_kernel_and_down_from_where_it_was():
    """In two lines; before that it warms up as its inner optimiser, which decays w alone."""
    tx = optimizers.build(
        "sgd",
        0.1,
        weight_decay=0.5,
        around=lambda inner: optimizers.awp(inner, gamma=0.2, warmup=2),
    )
    alone = path(optimizers.build("sgd", 0.1, weight_decay=0.5), 2)
    *_, (w, rest), (up, still), (down, _) = path(tx, 4)
    assert_close((w, rest, still), (alone[1][0], alone[1][0], alone[1][0]))
    g, size = gradient(w)["kernel"], jnp.linalg.norm
    above = {"kernel": w["kernel"] + 0.2 * size(w["kernel"]) * g / size(g), "bias": w["bias"]}
    assert_close(up, above)
    assert_close(down, jax.tree.map(lambda w, g: w - 0.1 * (g + 0.5 * w), w, gradient(above)))


@pytest.mark.parametrize("name", optimizers.AROUND)
def test_a_gradient_of_zero_and_accumulated_ones_leave_finite_weights(name):
    around = optimizers.wrapper(name, {}, 0.1)
    tx = optimizers.build("noisy_sgd", 0.1, eta=0.0, accumulate=2, around=around)
    zero = jax.tree.map(jnp.zeros_like, W)
    state, update = tx.init(W), jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(zero, state, W)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    assert optimizers.perturbs(state)
    assert not optimizers.perturbs(optax.adam(0.1).init(W))


@pytest.mark.parametrize(
    ("name", "options", "steps", "moves", "first"),
    [
        ("sam", {}, 12, 6, 2),
        ("awp", {"warmup": 4}, 12, 8, 1),
        ("awp", {"warmup": 20}, 12, 12, 1),
        ("local_entropy", {"period": 3}, 12, 12, 3),
        ("local_entropy", {"period": 3, "replicas": 2}, 12, 6, 3),
        ("local_entropy", {"period": 3, "variant": "heat"}, 12, 4, 3),
    ],
)
def test_the_schedule_counts_the_updates_of_the_inner_optimizer(name, options, steps, moves, first):
    assert optimizers.updates(name, options, steps) == moves
    assert optimizers.updates(name, options, steps - 1) in (moves, moves - 1)  # rounded up
    assert optimizers.period(name, options) == first
    counts = optax.scale_by_schedule(optax.constant_schedule(1.0))  # whose state counts
    tx = optimizers.wrapper(name, options, 0.1)(counts)

    def call(carried, _):
        w, state = carried
        updates, state = tx.update(-0.1 * w, state, w)
        return (w + updates, state), optimizers.at_rest(state, w + updates)

    w = jnp.ones(1)
    (_, state), rest = jax.lax.scan(call, (w, tx.init(w)), length=steps)
    assert int((rest[:, 0] != 1).argmax()) + 1 == first
    assert int(state.inner.count.max()) == moves


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sam(rh=1)", "No option 'rh' of the optimizer 'sam'; it takes inner, rho"),
        ("sam(rho=0)", "sam: rho = 0; it must be greater than 0"),
        ("sam(rho='a')", r"'sam' cannot be made of these options \(TypeError"),
        ("awp(gamma=-1.0)", "awp: gamma = -1.0; it must be greater than 0"),
        ("awp(warmup=0.5)", "awp: warmup = 0.5; it must be a whole number of moves"),
        ("awp(inner='sam')", "inner = 'sam' of awp; want the name of an optimizer"),
        ("awp(inner=3)", "inner = 3 of awp; want the name of an optimizer"),
    ],
)
def test_what_goes_around_an_optimizer_is_told_in_one_line(text, told):
    def built():
        (outer, options), (name, inner) = optimizers.nested(text)
        return optimizers.build(
            name, RATE, around=optimizers.wrapper(outer, options, RATE), **inner
        )

    with pytest.raises(ValueError, match=told) as raised:
        built()
    assert "\n" not in str(raised.value)


ENTROPY = {"coupling": 0.1, "growth": 0.1, "temperature": 0.01, "decay": 0.5, "outer": 0.9}


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (optimizers.sam, {"rho": 0.1}),
        (optimizers.awp, {"gamma": 0.1}),
        *(
            (partial(optimizers.local_entropy, rate=0.1, variant=v, period=2), ENTROPY)
            for v in ("entropy", "heat")
        ),
    ],
)
def test_numbers_of_what_goes_around_an_optimizer_may_be_traced(make, numbers):
    def walked(numbers):
        tx, w = make(optax.sgd(0.1), **numbers), W
        state = tx.init(w)
        for _ in range(2):
            updates, state = tx.update(G, state, w)
            w = optax.apply_updates(w, updates)
        return w

    expected = jax.jit(lambda: walked(numbers))()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jax.jit(walked)(numbers), expected)


def test_an_average_is_the_sum_of_its_decays_and_counters_are_the_newest():
    seen = [{"w": jnp.array([float(k)]), "calls": jnp.int32(k)} for k in (3, 1, 4, 1)]
    average = seen[0]
    for new in seen[1:]:
        average = optimizers.ema(average, new, 0.75)
    expected = 0.75**3 * 3 + 0.25 * (0.75**2 * 1 + 0.75 * 4 + 1)
    np.testing.assert_allclose(average["w"], [expected], rtol=1e-6)
    assert int(average["calls"]) == 1


def any_options(rate, **options):
    return optax.sgd(rate, **options)


def test_an_optimizer_of_ones_own_may_take_any_options():
    tx = optimizers.build(f"{__name__}:any_options", 0.1, momentum=0.5)
    jax.tree.map(np.testing.assert_allclose, step(tx), step(optax.sgd(0.1, momentum=0.5)))
    with pytest.raises(ValueError, match=r"any_options' makes no step .* unexpected keyword"):
        optimizers.build(f"{__name__}:any_options", 0.1, beta=0.5)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("adan2", {}, "No optimizer 'adan2'; choose one of sgd, adam, adamw, lion"),
        ("lbfgs", {}, r"'lbfgs' makes no step of gradients and a schedule .* 'value'"),
        ("polyak_sgd", {}, r"'polyak_sgd' makes no step of gradients .* 'value'"),
        ("sm3", {}, r"'sm3' makes no step of gradients and a schedule"),
        ("optax.contrib:momo", {}, r"'optax.contrib:momo' makes no step of gradients"),
        (
            "adamw",
            {"beta": 0.9},
            r"No option 'beta' of the optimizer 'adamw'; it takes b1",
        ),
        (
            "sgd",
            {"name": "adam"},
            r"No option 'name' of the optimizer 'sgd'; it takes mom",
        ),
        ("math:pi", {}, r"'math:pi' is a float; an optimizer is \(learning_rate"),
    ],
)
def test_what_makes_no_step_is_refused_in_one_line(name, options, told):
    with pytest.raises(ValueError, match=told) as raised:
        optimizers.build(name, RATE, **options)
    assert "\n" not in str(raised.value)
