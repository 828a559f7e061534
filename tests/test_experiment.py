"""From a config to a table: every config trains, runs resume, and the report adds up."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lipreg import attacks, curves, datasets, models, objectives, optimizers, reports, runs
from lipreg.evaluation.protocols import grid
from lipreg.models.lipschitz import LAYERS
from lipreg.norms import LINF
from lipreg.runs import build, logs

PGD = "evaluations/pgd_test_16"
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CIFAR = (32, 32, 3)
SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": CIFAR, "cifar100": CIFAR}


@pytest.fixture(autouse=True, scope="module")
def stand_in():
    """Twenty-four images of noise in the shape of every data set; the launchers' folder on path."""

    def load(name, split, **_):
        rng = np.random.default_rng(len(split))
        classes = 100 if name == "cifar100" else 10
        x = rng.integers(0, 256, (24, *SHAPES[name]), np.uint8)
        return datasets.Dataset(x, rng.integers(0, classes, 24, np.int32), classes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", load)
        patch.syspath_prepend(str(EXPERIMENTS))
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
            yield


def config_file(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(name="digits", row="j2_lip_tanh", **changes):
    """A config as its file has it, its network and its numbers cut down to seconds."""
    config = config_file(name).get_config(row)
    narrow = {"channels": (2,), "hidden": 4}
    if config.model.name != "CNN":
        narrow = {"channels": (2, 2, 2), "stages": (1, 1, 1)}
    with config.model.unlocked():
        config.model.settings.update(narrow)
    config.train.update({"epochs": 2, "batch_size": 8})
    config.report.update({"examples": 8, "every_steps": 2})
    config.report.pgd.steps = 1
    config.evaluation.update({"examples": 16, "batch_size": 8, "steps": 2, "radii": 3})
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train.accumulate": 7}, r"config.train.accumulate = 7; the run has 6 steps: its weights"),
        ({"train.optimizer": "local_entropy"}, r"local_entropy; its first move is after 20 steps"),
        ({"train.optimizer": "sam(rho=-1)"}, r"sam: rho = -1; it must be greater than 0"),
        ({"train.ema_statistics": "mean"}, r"ema_statistics = mean; choose one of running, aver"),
        (
            {"train.ema": 0.9, "train.ema_statistics": "averaged", "model.head": "linear"},
            r"ema_statistics = averaged; CNN keeps none",
        ),
        (
            {"train.replay": 2, "train.accumulate": 2},
            "config.train.replay = 2 and config.train.accumulate = 2; j2_lip has the same gradient",
        ),
        (
            {"train.replay": 2, "train.optimizer": "awp(warmup=3)"},
            r"awp\(warmup=3\) and config.train.replay = 2; want even numbers",
        ),
        ({"train.replay": 3, "train.optimizer": "sam"}, "sam and config.train.replay = 3; want ev"),
        ({"train.optimizer": "awp(warmup=0.5)"}, r"awp: warmup = 0.5; it must be a whole number"),
        ({"train.ramp": 0.05}, r"config.train.ramp = 0.05; of the run's 6 steps that is none"),
        ({"train.optimizer": "sgd(momentum=0)"}, r"write config.train.momentum = 0\."),
        ({"train.batch_size": 25}, r"config.train.batch_size = 25; digits has 24 training"),
        ({"data.cutout": 8}, r"config.data.cutout = 8; .* sides of the images, 8 x 8 pixels"),
        ({"data.pad": 9}, r"config.data.pad = 9; .* sides of the images, 8 x 8 pixels"),
    ],
)
def test_a_run_that_would_train_nothing_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        runs.prepare(tiny(**changes))


def test_data_of_one_class_are_refused(monkeypatch):
    alone = datasets.Dataset(np.zeros((24, 8, 8, 1), np.uint8), np.zeros(24, np.int32), 1)
    monkeypatch.setattr(datasets, "load", lambda *_, **__: alone)
    with pytest.raises(ValueError, match=r"config.data.name = digits; all of it is of one class"):
        runs.prepare(tiny(row="j0"))


def test_all_steps_of_a_run_may_make_one_move():
    assert runs.prepare(tiny(**{"train.accumulate": 6})).steps == 6


CONFIGS = [("digits", ""), ("mnist", ""), ("cifar10", ",cnn"), ("cifar100", ",cnn")]


ROWS = [("digits", "j2_lip_tanh"), ("mnist", "j2"), ("cifar10", "j1"), ("cifar100", "j0,cnn")]


def test_several_steps_a_dispatch_are_asked_for_in_the_config_and_agree_with_single_ones(tmp_path):
    states = []
    with mock.patch.object(jax.lax, "scan", wraps=jax.lax.scan) as scan:
        for n in (1, 2):
            prepared = runs.prepare(tiny(**{"train.per_dispatch": n}))
            states.append(runs.train_run(prepared, tmp_path / str(n), silent=True))
            assert scan.called == (n > 1)
    chex.assert_trees_all_close(states[0].params, states[1].params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "row"), [*ROWS, ("cifar10", "j2_lip_tanh,cnn")])
def test_every_config_trains_end_to_end(name, row, tmp_path):
    prepared = runs.prepare(tiny(name, row))
    before = jax.device_get(prepared.state.params)
    state = runs.train_run(prepared, tmp_path / "run", silent=True)
    assert int(state.step) == 6
    moved = jax.tree.map(lambda a, b: np.ndim(a) < 2 or np.abs(a - b).max(), before, state.params)
    assert min(jax.tree.leaves(moved)) > 1e-6  # every kernel has
    chex.assert_tree_all_finite((state.params, state.model_state))
    last = logs.metrics(tmp_path / "run")[-1]
    assert {"step", "objective", "validation_error", "validation_error_pgd"} <= last.keys()
    assert last["validation_error"] <= last["validation_error_pgd"]
    chex.assert_trees_all_equal_shapes(state.params, prepared.state.params)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_papers_network_comes_a_quarter_as_wide_too(name):
    config = config_file(name).get_config("j2_lip,2x8")
    assert config.model.name == "ResNeXt34_2x8"
    build.parts(config)
    with pytest.raises(ValueError, match="No model 'big' after the row; choose cnn, 2x8, or"):
        config_file(name).get_config("j0,big")


@pytest.mark.parametrize("row", objectives.__all__)
def test_digits_offers_every_objective_with_both_heads(row):
    replay = {"train.replay": 2} if row == "free_at" else {}
    configs = [tiny("digits", row + head, **replay) for head in ("", "_tanh")]
    assert [config.objective for config in configs] == [row, row]
    assert [config.model.head for config in configs] == ["linear", "tanh"]
    runs.prepare(configs[1])  # traces the whole step


@pytest.mark.parametrize(
    ("name", "model", "layer", "widths"),
    [("digits", "lipschitz_cnn", layer, {"channels": (2,), "hidden": 4}) for layer in LAYERS]
    + [("mnist", "lipschitz_mlp", "aol", {"widths": (4,)})],
)
def test_digits_and_mnist_offer_lipschitz_networks(name, model, layer, widths):
    config = config_file(name).get_config(f"j0,{model}").lock()
    config.model.settings.update({"layer": layer, **widths})
    config.train.batch_size = 8
    runs.prepare(config)


def test_another_network_after_the_row_is_met_with_the_choices():
    with pytest.raises(ValueError, match="No model 'cnn' after the row; choose lipschitz_cnn,"):
        config_file("mnist").get_config("j0,cnn")


@pytest.mark.parametrize(("name", "model"), [*CONFIGS, ("cifar10", ""), ("cifar100", "")])
def test_the_configs_are_typed_and_offer_the_four_rows(name, model):
    for row in ("j0", "j1", "j2", "j2_lip"):
        config = config_file(name).get_config(row + model).lock()
        assert config.data.name == name
        with pytest.raises(TypeError):
            config.train.epochs = "three"


def test_the_cifar_configs_convert_the_authors_units_in_the_open():
    j1, lip = (config_file("cifar10").get_config(row).strengths for row in ("j1", "j2_lip"))
    np.testing.assert_allclose(j1.eps * 3072**0.5, 0.01)  # their eps is a Euclidean length
    np.testing.assert_allclose(lip.lam * 128, 0.1)  # their lip weighs the mean loss of a batch


def test_a_run_that_was_killed_goes_on_to_the_same_end(tmp_path, monkeypatch):
    averaged = {"train.ema": 0.9, "train.optimizer": "awp(gamma=0.1)"}  # above w after epoch 1
    averaged["train.ema_statistics"] = "recomputed"
    config = tiny(**averaged, **{"data.pad": 1, "data.flip": True})
    whole = runs.train_run(runs.prepare(config), tmp_path / "whole", silent=True)

    write = logs.Log.write

    def killed(self, step, row):
        write(self, step, row)
        if step == 5:  # between the checkpoints of epoch 1 and 2
            raise KeyboardInterrupt

    config.report.every_steps = 1
    with monkeypatch.context() as patch:
        patch.setattr(logs.Log, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.train_run(runs.prepare(config), tmp_path / "killed", silent=True)
    seen = [row["step"] for row in logs.metrics(tmp_path / "killed")]
    assert seen == [1, 2, 3, 4, 5]
    resumed = runs.train_run(runs.prepare(config), tmp_path / "killed", silent=True)
    drop_key = lambda s: (s.params, s.opt_state, s.ema, s.ema_state, s.step)
    chex.assert_trees_all_close(drop_key(resumed), drop_key(whole), rtol=1e-6)
    rows = logs.metrics(tmp_path / "killed")
    assert [(row["step"], row["gradients"]) for row in rows] == [(n, n) for n in range(1, 7)]
    evaluated = runs.load(tmp_path / "killed").logits_fn.args
    chex.assert_trees_all_equal(evaluated, (resumed.ema, resumed.ema_state))
    assert jax.tree.leaves(resumed.ema_state)

    config.strengths.lam = 7.0
    with pytest.raises(ValueError, match=r"strengths.lam \(0.\d+ there, 7.0 asked\)"):
        runs.train_run(runs.prepare(config), tmp_path / "killed", silent=True)


def test_a_run_is_read_with_the_weights_at_rest_and_not_the_perturbed_ones(tmp_path):
    config = tiny(row="j0", **{"train.optimizer": "local_entropy(period=4, temperature=0.01)"})
    state = runs.train_run(runs.prepare(config), tmp_path / "run", silent=True)
    weights, _ = runs.load(tmp_path / "run").logits_fn.args
    rest = optimizers.at_rest(state.opt_state, state.params)  # moved once in six steps
    chex.assert_trees_all_equal(weights, rest)
    assert jnp.abs(rest["Conv_0"]["kernel"] - state.params["Conv_0"]["kernel"]).max() > 1e-3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds of one row and one of another, trained and evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    for name, row, seed in (("a0", "j0", 0), ("a1", "j0", 1), ("b0", "j2", 0)):
        config = tiny("digits", row, seed=seed)
        runs.train_run(runs.prepare(config), folder / name, silent=True)
        reports.evaluate(runs.load(folder / name), folder / name)
    return folder


def test_an_evaluation_holds_what_the_distances_imply(finished):
    run = finished / "b0" / PGD
    record = json.loads((run / "evaluation.json").read_text())
    with np.load(run / "distances.npz") as file:
        found = {norm: file[norm] for norm in ("l2", "linf")}
        np.testing.assert_array_equal(file["distance_l2_pgd"], found["l2"])
    assert {name: values.shape for name, values in found.items()} == {"l2": (16,), "linf": (16,)}
    assert record["row"] == curves.summary(found["l2"], found["linf"], eps_l2=0.5, eps_linf=1 / 16)
    assert {"command", "commit", "devices", "versions"} <= record["about"].keys()
    lines = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    for norm, distances in found.items():
        drawn = [(line["eps"], line["error"]) for line in lines if line["norm"] == norm]
        errors = [error for _, error in drawn]
        assert errors == sorted(errors)
        for eps, error in drawn:
            np.testing.assert_allclose(error, (distances <= np.float32(eps)).mean(), atol=1e-6)
    for picture in ("curve_l2", "curve_linf", "attacked_l2"):
        assert (run / f"{picture}.png").stat().st_size > 1000
        assert (run / f"{picture}.svg").read_text().startswith("<?xml")


def test_a_distance_of_an_image_is_that_of_its_own_attack(finished, tmp_path):
    """Whatever batch it came in: seven images at a time find what eight do."""
    loaded = runs.load(finished / "b0")
    loaded.config.evaluation.batch_size = 7
    reports.evaluate(loaded, tmp_path)
    with (
        np.load(finished / "b0" / PGD / "distances.npz") as expected,
        np.load(tmp_path / PGD / "distances.npz") as found,
    ):
        for norm in ("l2", "linf"):
            np.testing.assert_allclose(found[norm], expected[norm], rtol=1e-3)


def test_a_run_of_a_version_with_fewer_fields_is_read(finished, tmp_path):
    run = shutil.copytree(finished / "a0", tmp_path / "a0")
    config = json.loads((run / "config.json").read_text())
    for name in ("train.ramp", "train.accumulate", "train.per_dispatch", "data.side"):
        section, field = name.split(".")
        del config[section][field]
    (run / "config.json").write_text(json.dumps(config))
    a, b = runs.load(run), runs.load(finished / "a0")
    chex.assert_trees_all_equal(a.logits_fn.args, b.logits_fn.args)
    assert a.config.to_dict() == b.config.to_dict()


def test_the_radius_of_the_table_is_measured_however_short_the_grid():
    for radii, largest in ((1, 0.9), (3, 0.01)):
        found = grid(largest, radii, 0.9)
        assert found[-1] == np.float32(0.9)
        assert (np.diff(found) > 0).all()


def test_seeds_of_one_config_are_one_row_and_unfinished_runs_none(finished, tmp_path):
    text, _ = reports.table([finished / name for name in ("a0", "a1", "b0")], tmp_path / "out")
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:4]] == ["J0", "J2"]
    assert "±" in text.splitlines()[2]
    assert "±" not in text.splitlines()[3]

    run = shutil.copytree(finished / "b0", tmp_path / "b0")
    assert reports.evaluated(run)
    assert not reports.evaluated(run, split="validation")
    shutil.rmtree(run / "checkpoints" / "6")
    loaded = runs.load(run)
    assert (loaded.step, loaded.steps) == (3, 6)
    reports.evaluate(loaded, run)
    assert not reports.evaluated(run)  # its numbers are those of the weights that are there
    assert sorted(path.name for path in (run / PGD).glob("step_*")) == ["step_3", "step_6"]
    with pytest.raises(ValueError, match=r"b0 was evaluated at step 3 of 6: let its training end"):
        reports.table([finished / "a0", run], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_evaluation_of_a_best_epoch_is_none_of_a_later_one(finished, tmp_path):
    run = shutil.copytree(finished / "b0", tmp_path / "best")  # a run that ends at each best epoch
    assert reports.evaluated(run)
    shutil.copytree(run / "checkpoints/6", run / "checkpoints/9")
    assert not reports.evaluated(run)
    with pytest.raises(ValueError, match="best was evaluated at step 6, and is at step 9: run py"):
        reports.table([run], tmp_path / "none")
    shutil.rmtree(run / "checkpoints")  # its numbers stay
    assert reports.evaluated(run)


def test_a_protocol_leaves_its_report_in_the_run(finished, tmp_path):
    run = shutil.copytree(finished / "a0", tmp_path / "a0")
    loaded = runs.load(run)
    text = reports.evaluate(loaded, run, protocol="deck")
    place = run / "evaluations" / "deck_test_16"
    assert (place / "report.md").read_text() == text
    assert "basic_iterative" in text
    record = json.loads((place / "evaluation.json").read_text())
    assert (record["protocol"], record["split"], record["n"]) == ("deck", "test", 16)
    assert record["norms"]["linf"]["checks"]
    with np.load(place / "distances.npz") as file:
        found = file["distance_l2_basic_iterative"]
        np.testing.assert_array_equal(file["clean"], found == 0)
        median = float(curves.median_distance(found))
    kept = record["norms"]["l2"]["distances"]["basic_iterative"]["median"]
    assert kept == (median if np.isfinite(median) else None)
    assert reports.evaluated(run, protocol="deck")
    assert reports.evaluated(run)  # they do not get into each other's way


def to_the_bound(key, logits_fn, x, y, eps, *, norm, bounds):
    """A stranger's attack."""
    slope = jax.grad(lambda x: logits_fn(x)[0, y[0]])(x)
    return jnp.clip(x - eps * norm.direction(slope), *bounds)


def test_adversarial_images_are_kept_with_strangers_attacks_in_l1_and_inside_the_datas_bounds(
    finished, tmp_path
):
    loaded = runs.load(finished / "a0")
    logits_fn = jax.tree_util.Partial(lambda x: x.reshape(len(x), -1)[:, :10])
    x = datasets.to_unit(loaded.dataset.x[:16])
    y = np.array(logits_fn(datasets.to_unit(loaded.dataset.x)).argmax(1), np.int32)
    y[0] = (y[0] + 1) % 10
    loaded = loaded._replace(logits_fn=logits_fn, dataset=loaded.dataset._replace(y=y))
    with loaded.config.data.unlocked():
        loaded.config.data.bounds = (-0.25, 1.0)
    loaded.config.evaluation.l1.update({"largest": 40.0, "table": 12.0})
    options = {"norms": ["l1"], "attacks": {"to_the_bound": to_the_bound}, "keep": True}
    text = reports.evaluate(loaded, tmp_path, **options)
    assert "to_the_bound" in text
    place = tmp_path / "evaluations" / "pgd+to_the_bound_test_16_l1"
    kept = {}
    for name in ("adversarial_l1", "adversarial_l1_12", "distances"):
        with np.load(place / f"{name}.npz") as file:
            kept[name] = dict(file)
    nearest, within = (kept[f"adversarial_{name}"] for name in ("l1", "l1_12"))
    np.testing.assert_array_equal(kept["distances"]["l1"], nearest["distance"])
    np.testing.assert_array_equal(nearest["distance"] == 0, np.arange(16) == 0)
    assert np.isfinite(nearest["distance"]).all()
    for images in (nearest, within):
        x_adv = np.moveaxis(images["adv_complete"], 1, -1)
        np.testing.assert_array_equal(images["y"], y[:16])
        assert (np.asarray(logits_fn(x_adv)).argmax(1) != y[:16]).all()
    moved = np.abs(np.moveaxis(nearest["adv_complete"], 1, -1) - x).sum((1, 2, 3))
    np.testing.assert_allclose(moved, nearest["distance"], rtol=1e-4, atol=1e-5)
    assert within["adv_complete"].min() == -0.25
    assert kept["distances"]["broken_l1_12"].all()


def test_what_a_run_cannot_be_evaluated_by_is_an_error(finished, tmp_path):
    loaded = runs.load(finished / "a0")
    for given, said in (
        ({"norms": ["l3"]}, "No norm 'l3'; choose one of l1, l2, linf"),
        ({"protocol": "deck", "norms": ["l1"]}, "No attack of the protocol deck serves l1"),
        ({"surrogate": loaded}, "the protocol pgd has no masking report"),
    ):
        with pytest.raises(ValueError, match=said):
            reports.evaluate(loaded, tmp_path, **given)
    loaded.config.evaluation.examples = 99
    with pytest.raises(ValueError, match="examples = 99; the split has 24"):
        reports.evaluate(loaded, tmp_path)
    assert not list(tmp_path.iterdir())


# Any model: the core asks for a function of images only.


def test_linen_nnx_and_a_plain_function_have_one_loss_gradient_and_attack():
    key = jax.random.key(0)
    x, y = jax.random.uniform(key, (6, 5)), jnp.arange(6) % 3
    w1, w2 = jax.random.normal(key, (5, 4)), jax.random.normal(key, (4, 3))
    weights = {"Dense_0": {"kernel": w1}, "Dense_1": {"kernel": w2}}

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(4, use_bias=False)(x)
            return linen.Dense(3, use_bias=False)(jnp.tanh(x))

    def plain(params, x):
        return jnp.tanh(x @ params["Dense_0"]["kernel"]) @ params["Dense_1"]["kernel"]

    def of_nnx(params, x):
        first, second = (nnx.Linear(*w.shape, use_bias=False, rngs=nnx.Rngs(0)) for w in (w1, w2))
        first.kernel[...] = params["Dense_0"]["kernel"]
        second.kernel[...] = params["Dense_1"]["kernel"]
        return second(jnp.tanh(first(x)))

    results = []
    for apply in (lambda params, x: Linen().apply({"params": params}, x), plain, of_nnx):

        def objective(params, apply=apply):
            return objectives.j2_lip(jax.tree_util.Partial(apply, params), x, y, eps=0.1, lam=0.1)

        value_and_grad = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
        logits_fn = jax.tree_util.Partial(apply, weights)
        results.append((value_and_grad, attacks.pgd(key, logits_fn, x, y, 0.1, norm=LINF)))
    chex.assert_trees_all_close(results[0], results[1], rtol=1e-5)
    chex.assert_trees_all_close(results[0], results[2], rtol=1e-5)


def test_the_core_imports_no_network_library_no_data_and_no_pictures():
    lazy = ("flax", "tensorflow_datasets", "matplotlib", "orbax", "sklearn", "ml_collections")
    code = f"import sys, lipreg; print([m for m in {lazy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_papers_network_has_the_papers_size():
    """3.9 million weights for ten classes (counted without allocating them)."""
    model = models.build("ResNeXt34_2x32", classes=10)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    assert models.count_parameters(shapes["params"]) == 3_892_298
