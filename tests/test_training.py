"""The step is one function whatever runs it; the loop goes on where it stopped."""

import dataclasses
import time
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipreg import datasets, models, norms, objectives, optimizers, training

CLASSES = 3
KEY = jax.random.key(0)
X = np.asarray(jax.random.randint(jax.random.fold_in(KEY, 1), (48, 6, 6, 1), 0, 256), np.uint8)
Y = np.asarray(jax.random.randint(jax.random.fold_in(KEY, 2), (48,), 0, CLASSES), np.int32)
DATASET = datasets.Dataset(X, Y, CLASSES)
STRENGTHS = {"eps": jnp.float32(0.3), "lam": jnp.float32(0.1)}


def setting(
    batch_norm: bool = False, objective=objectives.j2_lip, ema_decay: float = 0.0, name: str = "CNN"
):
    """A small smooth network, its step and its first state."""
    sizes = {"MLP": {"widths": (8,)}, "CNN": {"channels": (4,), "batch_norm": batch_norm}}
    model = models.build(name, classes=CLASSES, activation="softplus", **sizes[name])
    variables = model.init(KEY, jnp.zeros((1, 6, 6, 1)), train=False)
    model_state = {k: v for k, v in variables.items() if k != "params"}
    apply = models.functional(model)
    tx = optimizers.sgd(0.1, weight_decay=1e-3, clip=5.0)
    step, averaged = (
        training.averaged(training.make_step(apply, objective, tx), ema_decay),
        ema_decay > 0,
    )
    return (
        step,
        training.init(KEY, variables["params"], model_state, tx, ema=averaged, statistics=averaged),
        apply,
    )


def assert_close(a, b, rtol=2e-5, atol=2e-6):
    drop_key = lambda s: (s.params, s.model_state, s.opt_state, s.ema, s.ema_state, s.step)
    chex.assert_trees_all_close(drop_key(a), drop_key(b), rtol=rtol, atol=atol)


def test_training_in_one_call_is_init_make_step_and_fit():
    model = models.build("MLP", classes=CLASSES, widths=(4,))
    options = {"epochs": 2, "batch_size": 16, "learning_rate": 0.2}
    decayed = partial(optimizers.sgd, weight_decay=0.1)
    args = (objectives.j2, {"eps": 0.3}, DATASET)
    trained, log = training.train(model, *args, key=KEY, optimizer=decayed, **options)
    assert [row["step"] for row in log] == [3, 6]
    assert {"loss", "grad_norm", "objective"} <= log[0].keys()

    net, tx = models.network(model), decayed(optimizers.schedule("cosine", 0.2, 6))
    state = training.init(KEY, *net.init(KEY, X), tx)
    step = training.make_step(net.apply, objectives.j2, tx)
    *_, (state, parts) = training.fit(
        step, state, {"eps": 0.3}, DATASET, batch_size=16, steps=6, key=KEY
    )
    x = X / np.float32(255)
    np.testing.assert_array_equal(trained(x), training.logits_fn(net.apply, state)(x))
    assert log[-1]["loss"] == parts["loss"]
    for wrong, said in (({"epochs": 0}, "epochs = 0"), ({"batch_size": 49}, "49 of 48 examples")):
        with pytest.raises(ValueError, match=said):
            training.train(model, *args, key=KEY, **options | wrong)
    with pytest.raises(ValueError, match="what an objective carries wants init, make_step and fit"):
        training.train(model, objectives.free_at, *args[1:], key=KEY, **options)


def test_the_step_is_the_same_jitted_vmapped_and_sharded():
    step, state, _ = setting(batch_norm=True)
    batch = (jnp.asarray(X[:8]), jnp.asarray(Y[:8]))
    expected, parts = jax.jit(step)(state, STRENGTHS, batch)

    twice = partial(jax.tree.map, lambda a: jnp.stack([a, a]))
    several, several_parts = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))(
        twice(state), twice(STRENGTHS), batch
    )
    assert_close(jax.tree.map(lambda a: a[1], several), expected)
    chex.assert_trees_all_close(several_parts["lip"][0], parts["lip"], rtol=2e-5)

    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
    replicated = jax.device_put((state, STRENGTHS), NamedSharding(mesh, PartitionSpec()))
    assert_close(jax.jit(step)(*replicated, sharded)[0], expected)


def test_each_device_of_a_pmap_takes_the_step_of_a_single_one():
    step, state, _ = setting()
    batch = (jnp.asarray(X[:32]).reshape(4, 8, 6, 6, 1), jnp.asarray(Y[:32]).reshape(4, 8))
    states, _ = jax.pmap(step, in_axes=(None, None, 0))(state, STRENGTHS, batch)
    single = jax.jit(step)
    for device in range(4):
        expected, _ = single(state, STRENGTHS, (batch[0][device], batch[1][device]))
        assert_close(jax.tree.map(lambda a, d=device: a[d], states), expected)


def test_new_strengths_do_not_compile_again():
    step, state, _ = setting()
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(step, n=1))
    values = []
    for lam in (0.0, 0.1, 1.0):
        _, parts = counted(state, STRENGTHS | {"lam": jnp.float32(lam)}, (X[:8], Y[:8]))
        values.append(float(parts["objective"]))
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("per_dispatch", [1, 2])
def test_a_step_that_changes_the_form_of_its_state_is_named(per_dispatch):
    step, state, _ = setting(name="MLP")

    def narrower(state, strengths, batch):
        state, parts = step(state, strengths, batch)
        params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), state.params)
        return dataclasses.replace(state, params=params), parts

    options = {"batch_size": 8, "steps": 2, "key": KEY, "per_dispatch": per_dispatch}
    with pytest.raises(ValueError, match=r"'params/.*': types: float32 != bfloat16"):
        next(training.fit(narrower, state, STRENGTHS, DATASET, **options))


def test_running_statistics_move_and_only_with_batch_norm():
    step, state, _ = setting(batch_norm=True)
    after, _ = jax.jit(step)(state, STRENGTHS, (X[:8], Y[:8]))
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), state.model_state, after.model_state
    )
    assert min(jax.tree.leaves(moved)) > 0
    step, state, _ = setting()
    assert jax.jit(step)(state, STRENGTHS, (X[:8], Y[:8]))[0].model_state == {}


def noisy(logits_fn, x, y, *, eps, key, loss, frozen):
    """An outsider's objective: training on images with noise, a key of each example's own."""
    one = lambda row, image: jax.random.normal(jax.random.fold_in(key, row), image.shape)
    x = x + eps * jax.vmap(one)(jnp.arange(len(x)), x)
    value, parts = objectives.j0(logits_fn, x, y, loss=loss)
    return value, parts | {"agree": (logits_fn(x)[0].argmax(1) == frozen(x).argmax(1)).mean()}


def dropped(objective):
    """A step on a network with dropout in training, a scale that moves, and its first state."""

    def apply(params, model_state, x, train, key):
        z = x.reshape(len(x), -1) @ params["w"]
        if train:
            mask = lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 0.5, z.shape[1:])
            z = jnp.where(jax.vmap(mask)(jnp.arange(len(z))), z, 0.0)
            return z, {"calls": model_state["calls"] + 1}
        return z / 2, model_state

    params = {"w": jax.random.normal(KEY, (36, CLASSES))}
    tx = optimizers.sgd(0.1)
    state = training.init(KEY, params, {"calls": jnp.zeros(())}, tx)
    return training.make_step(apply, objective, tx), state


@pytest.mark.parametrize("objective", [noisy, objectives.j2], ids=["key", "no key"])
def test_an_objective_with_a_key_and_a_network_with_one_are_the_same_however_they_run(objective):
    step, state = dropped(objective)
    strengths = {"eps": jnp.float32(0.3)}
    batch = (jnp.asarray(X[:8]), jnp.asarray(Y[:8]))
    after, parts = expected = jax.jit(step)(state, strengths, batch)
    assert after.model_state["calls"] == 1
    with jax.disable_jit():
        eager = step(state, strengths, batch)
    assert_close(eager[0], after)
    chex.assert_trees_all_close(eager[1], parts, rtol=2e-5)

    twice = partial(jax.tree.map, lambda a: jnp.stack([a, a]))
    several = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))(twice(state), twice(strengths), batch)
    for row in (0, 1):
        mine = jax.tree.map(lambda a, row=row: a[row], several)
        assert_close(mine[0], after)
        chex.assert_trees_all_close(mine[1], parts, rtol=2e-5)

    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
    replicated = jax.device_put((state, strengths), NamedSharding(mesh, PartitionSpec()))
    assert_close(jax.jit(step)(*replicated, sharded)[0], after)
    assert expected[1].keys() >= {"loss", "objective", "grad_params"}


def test_each_step_draws_anew_and_the_same_when_it_is_taken_again():
    step, state = dropped(noisy)
    strengths, batch = {"eps": jnp.float32(0.3)}, (jnp.asarray(X[:8]), jnp.asarray(Y[:8]))
    one = jax.jit(step)
    values = [
        one(dataclasses.replace(state, step=jnp.int32(s)), strengths, batch)[1] for s in (0, 1, 0)
    ]
    assert values[0]["loss"] == values[2]["loss"] != values[1]["loss"]


def test_a_strength_that_ramps_grows_from_nothing_to_what_it_is():
    seen = lambda logits_fn, x, y, *, eps, lam, loss, frozen: (
        jnp.float32(0.0),
        {"aux": logits_fn(x)[1], "eps": eps, "lam": lam},
    )
    _, state = dropped(seen)
    apply = lambda params, model_state, x, train, key: (x, model_state)
    step = jax.jit(training.make_step(apply, seen, optimizers.sgd(0.1), ramp=("eps", 4)))
    given = {"eps": jnp.float32(8.0), "lam": jnp.float32(1.0)}
    for s, expected in (0, 0.0), (1, 2.0), (4, 8.0), (9, 8.0):
        now = dataclasses.replace(state, step=jnp.int32(s))
        _, parts = step(now, given, (X[:8], Y[:8]))
        assert (float(parts["eps"]), float(parts["lam"])) == (expected, 1.0)


def test_an_objective_that_drops_what_the_network_returns_is_told():
    drops = lambda logits_fn, x, y, *, eps, loss, frozen: (loss(logits_fn(x)[0], y).mean(), {})
    step, state = dropped(drops)
    with pytest.raises(ValueError, match=r'drops what the network returns .*"aux"'):
        step(state, {"eps": jnp.float32(0.1)}, (X[:8], Y[:8]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"each": jnp.zeros(8)}, r"part 'each' has shape \[8\]; want a scalar"),
        ({"step": jnp.zeros(())}, "a part 'step', which a report has already"),
        ({"aux": {"calls": jnp.zeros(2)}}, r'parts\["aux"\] is not what the network returns'),
        ({"aux": None}, r'parts\["aux"\] is not what the network returns'),
    ],
)
def test_parts_that_no_report_can_hold_and_another_aux_are_told(more, said):
    odd = lambda logits_fn, x, y, *, loss, frozen: (
        loss(logits_fn(x)[0], y).mean(),
        {"aux": logits_fn(x)[1]} | more,
    )
    step, state = dropped(odd)
    with pytest.raises(ValueError, match=said):
        step(state, {}, (X[:8], Y[:8]))


def run(state, step, steps, every=4):
    return list(
        training.fit(
            step, state, STRENGTHS, DATASET, batch_size=16, steps=steps, every=every, key=KEY
        )
    )


def test_a_run_that_stops_and_goes_on_ends_where_an_unbroken_one_does():
    step, state, _ = setting(batch_norm=True)
    whole = run(state, step, 7)[-1][0]
    half = run(state, step, 4)[-1][0]
    assert int(half.step) == 4
    assert_close(run(half, step, 7)[-1][0], whole, rtol=0, atol=0)


def test_fit_reports_at_multiples_of_every_and_at_the_ends_of_epochs():
    step, state, _ = setting()
    steps = []
    for now, parts in training.fit(
        step, state, STRENGTHS, DATASET, batch_size=16, steps=7, every=2, key=KEY
    ):
        steps.append(int(now.step))
        assert {"objective", "loss", "grad_norm", "lip", "grad_params"} <= parts.keys()
    assert steps == [2, 3, 4, 6, 7]
    # The caller's own state is not the one that was donated.
    assert int(state.step) == 0
    assert jax.tree.leaves(state.params)[0].sum().shape == ()


def test_training_lowers_the_objective_and_the_penalised_gradient():
    step, state, _ = setting()
    reports = run(state, step, 60, every=3)
    first, last = reports[0][1], reports[-1][1]
    assert last["objective"] < first["objective"]
    assert last["max_grad_norm"] < first["max_grad_norm"]


def test_a_part_that_is_not_finite_stops_the_run_naming_step_and_part():
    def breaks(logits_fn, x, y, *, eps, lam, loss, frozen):
        value, parts = objectives.j0(logits_fn, x, y, loss=loss)
        return value, parts | {"lip": jnp.where(lam > 0, jnp.log(-lam), 0.0)}

    step, state, _ = setting(objective=breaks)
    with pytest.raises(FloatingPointError, match=r"Step 1: lip is nan"):
        run(state, step, 4)


def test_weights_and_statistics_are_averaged_as_their_decay_says():
    step, state, apply = setting(batch_norm=True, objective=objectives.j0, ema_decay=0.9)
    after, _ = jax.jit(step)(state, {}, (X[:8], Y[:8]))
    between = partial(jax.tree.map, lambda old, new: 0.9 * old + 0.1 * new)
    averages = between(state.params, after.params), between(state.model_state, after.model_state)
    chex.assert_trees_all_close((after.ema, after.ema_state), averages, rtol=1e-6)
    x = datasets.to_unit(X[:4])
    used = training.logits_fn(apply, after)(x)
    chex.assert_trees_all_close(used, apply(*averages, x, False, None)[0], rtol=1e-5)
    alone = dataclasses.replace(after, ema_state=None)  # with the statistics of the last weights
    expected = apply(averages[0], after.model_state, x, False, None)[0]
    chex.assert_trees_all_close(training.logits_fn(apply, alone)(x), expected, rtol=1e-5)
    assert jnp.abs(used - expected).max() > 1e-3


def test_statistics_are_refitted_to_the_averaged_weights():
    _, state, apply = setting(batch_norm=True, objective=objectives.j0, ema_decay=0.9)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda a: 2 * a + 0.1, state.params))
    fitted = training.refitted(apply, state, DATASET, batch_size=48, key=KEY, batches=80)
    # The batch is the data set: its own statistics are where the running ones go.
    x = datasets.to_unit(X)
    trained = apply(state.ema, state.model_state, x, True, None)[0]
    logits = training.logits_fn(apply, fitted)(x)
    chex.assert_trees_all_close(logits, trained, rtol=1e-2, atol=1e-2)
    assert jnp.abs(training.logits_fn(apply, state)(x) - trained).max() > 0.1


def test_the_weights_below_a_perturbation_are_evaluated_and_averaged():
    _, state, apply = setting(name="MLP")
    tx = optimizers.sam(optax.sgd(0.1), rho=1.0)
    step = training.averaged(training.make_step(apply, objectives.j0, tx))
    state = training.init(KEY, state.params, {}, tx, ema=True)
    above, _ = jax.jit(step)(state, {}, (X[:8], Y[:8]))
    chex.assert_trees_all_equal(above.ema, state.params)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(above.params, state.params)
    bare = dataclasses.replace(above, ema=None)
    chex.assert_trees_all_equal(training.logits_fn(apply, bare).args[0], state.params)


def test_the_random_numbers_of_an_optimizer_are_those_of_the_run():
    w = jnp.ones(3)

    def moves(seed, key):
        tx = optax.noisy_sgd(0.1, eta=1.0, key=key)
        state = training.init(jax.random.key(seed), w, {}, tx)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            return tx.update(w, state.opt_state)[0]

    chex.assert_trees_all_equal(moves(0, 0), moves(0, 0))
    assert all((moves(0, 0) != other).all() for other in (moves(1, 0), moves(0, 1)))


def test_new_weights_do_not_compile_a_logits_fn_again():
    _, state, apply = setting()
    chex.clear_trace_counter()
    call = jax.jit(chex.assert_max_traces(lambda f, x: f(x), n=1))
    for scale in (1.0, 2.0):
        scaled = dataclasses.replace(
            state, params=jax.tree.map(lambda a, s=scale: s * a, state.params)
        )
        call(training.logits_fn(apply, scaled), datasets.to_unit(X[:4]))


def test_sgd_follows_its_formula():
    tx = optimizers.sgd(0.5, momentum=0.9, weight_decay=0.1)
    w, g = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.4])
    opt_state = tx.init(w)
    velocity = jnp.zeros(2)
    for _ in range(3):
        updates, opt_state = tx.update(g, opt_state, w)
        velocity = 0.9 * velocity + g + 0.1 * w
        expected = w - 0.5 * velocity
        w = optax.apply_updates(w, updates)
        chex.assert_trees_all_close(w, expected, rtol=1e-6)
    clipped, _ = optimizers.sgd(1.0, momentum=0.0, clip=0.1).update(
        g, optimizers.sgd(1.0, momentum=0.0, clip=0.1).init(w), w
    )
    chex.assert_trees_all_close(norms.L2.size(clipped[None])[0], 0.1, rtol=1e-5)


def test_the_seconds_of_a_first_dispatch_are_its_own(monkeypatch):
    """Without those of the steps that are queued, or of whoever is handed the state."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    waited = jax.block_until_ready

    def ready(value):
        clock[0] += 10.0 if isinstance(value, training.State) else 1.0
        return waited(value)

    monkeypatch.setattr(jax, "block_until_ready", ready)
    apply = lambda params, state, x, train, key: (x @ params, state)
    tx, seconds = optax.sgd(0.1), []
    state = training.init(KEY, jnp.zeros((3, 2)), {}, tx)
    dataset = datasets.Dataset(np.ones((12, 3), np.float32), np.zeros(12, np.int32), 2)
    options = {"batch_size": 2, "steps": 5, "every": 2, "key": KEY, "per_dispatch": 2}
    for _ in training.fit(
        training.make_step(apply, objectives.j0, tx),
        state,
        {},
        dataset,
        started=seconds.append,
        **options,
    ):
        clock[0] += 100.0
    assert seconds == [1.0, 1.0]


def test_the_papers_schedule_falls_at_60_120_and_160_of_200_epochs():
    rate = optimizers.schedule("papers", 0.1, 200)
    values = [float(rate(s)) for s in (0, 60, 61, 120, 121, 160, 161, 199)]
    expected = [0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008, 0.0008]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert float(optimizers.schedule("cosine", 0.1, 200)(100)) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="'linear'; choose one of constant, cosine, cyclic, pap"):
        optimizers.schedule("linear", 0.1, 200)


@pytest.mark.parametrize("steps", [1, 2, 3, 200])
def test_the_cyclic_schedule_rises_for_two_fifths_and_falls_to_0(steps):
    rate = optimizers.schedule("cyclic", 0.2, steps)
    values = [float(rate(s)) for s in range(steps + 1)]
    peak = round(0.4 * steps)
    np.testing.assert_allclose(
        values, np.interp(range(steps + 1), [0, peak, steps], [0, 0.2, 0]), atol=1e-7
    )
    assert values[peak] == pytest.approx(0.2)
    assert values[-1] == 0
