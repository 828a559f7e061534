"""Many points, one compilation, one report; each row is its single run."""

import itertools
import json
import shutil
import subprocess
import sys
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK
from forked import EXPERIMENTS, FORKED, launch
from matplotlib.text import Text

from lipreg import datasets, objectives, parallel, runs, training
from lipreg.reports import plots, sweeps
from lipreg.runs import build, logs, storage, sweep
from lipreg.runs.config import base_config


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Sixty-four images of noise, whatever the data set and split."""
    rng = np.random.default_rng(0)
    images = datasets.Dataset(
        rng.integers(0, 256, (64, 8, 8, 1), np.uint8), rng.integers(0, 10, 64, np.int32), 10
    )
    monkeypatch.setattr(datasets, "load", lambda *_, **__: images)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
        yield


def config(row="j2_lip", **changes):
    config = base_config(row, {"j2_lip": {"eps": 0.1, "lam": 0.01}, "free_at": {"eps": 0.1}})
    config.model.name = "MLP"
    config.model.settings = {"widths": (8,)}
    config.train.update({"epochs": 2, "batch_size": 16, "schedule": "constant"})
    config.report.update({"examples": 16, "every_steps": 2})
    config.report.pgd.steps = 1
    config.update_from_flattened_dict(changes)
    return config.lock()


AXES = {"strengths.lam": (0.0, 1.0), "seed": (0, 1)}


def numbers(folder):
    """The metrics and the weights of every point."""
    found = {}
    for run in sorted((folder / "points").iterdir()):
        prepared = runs.prepare(storage.read_config(run))
        with storage.checkpoints(run) as manager:
            state = storage.restore(manager, prepared.state)
        found[run.name] = jax.device_get(state.params), logs.metrics(run)
    return found


def test_axes_are_read_as_they_are_written():
    axes = sweep.parse(["strengths.lam=0,0.01,1e-3", "seed=2:4", "model.head=linear,tanh", "a=1"])
    assert axes["strengths.lam"] == (0, 0.01, 1e-3)
    assert axes["seed"] == (2, 3)
    assert sweep.parse(["channels=[8,16],(8,)"]) == {"channels": ((8, 16), (8,))}
    assert axes["model.head"] == ("linear", "tanh")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["seed"], "write NAME=VALUE,VALUE or NAME=START:STOP"),
        (["seed="], "write NAME=VALUE"),
        (["seed=1", "seed=2"], "Axis seed: it is there twice"),
        (["seed=3:3"], "Axis seed=3:3: no values"),
    ],
)
def test_an_axis_that_is_none_is_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        sweep.parse(axes)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "No axes"),
        ({"strengths.lamb": (1,)}, r"strengths.lamb: no such field. Did you mean strengths.lam\?"),
        ({"train.epochs": ("many",)}, "train.epochs=many"),
        ({"train.epochs": (0,)}, r"config.train.epochs = 0; it must be greater"),
        ({"objective": ("j9",)}, "No objective 'j9'"),
        ({"seed": (0, 1, 0)}, "Axis seed=0,1,0: a value is there twice"),
        ({"strengths.lam": (0, 0.0)}, "Axis strengths.lam=0,0.0: a value is there twice"),
        ({"model.settings.channels": ([8], [8])}, r"channels=\[8\],\[8\]: a value is there twice"),
    ],
)
def test_a_point_that_is_no_config_is_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        sweep.points(config(), axes)


def test_points_are_all_combinations_by_the_names_of_their_values():
    found = sweep.points(config(), AXES)
    assert list(found) == ["lam=0.0,seed=0", "lam=0.0,seed=1", "lam=1.0,seed=0", "lam=1.0,seed=1"]
    assert found["lam=1.0,seed=0"].strengths.lam == 1.0
    twice = sweep.points(config(), {"report.pgd.eps": (0.1,), "strengths.eps": (0.2,)})
    assert list(twice) == ["report.pgd.eps=0.1,strengths.eps=0.2"]
    # Its values choose other images, over whose errors no mean is taken.
    assert list(sweep.points(config(), {"data.seed": (1,)})) == ["data.seed=1"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One folder, filled by the first test that asks."""
    return tmp_path_factory.mktemp("sweep")


def test_every_engine_gives_each_point_the_numbers_of_its_single_run(swept):
    found = sweep.points(config(), AXES)
    for name, one in found.items():
        with mock.patch.object(build, "_program", build._program.__wrapped__):
            runs.train_run(runs.prepare(one), swept / "single/points" / name)
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(objectives.j2_lip, n=2)  # prepare's look, and the compilation
    with mock.patch.object(build, "bound_objective", return_value=keep_signature(traced)):
        build._parts.cache_clear()
        sweep.run(found, swept / "loop", engine="loop", silent=True)
    build._parts.cache_clear()
    sweep.run(found, swept / "vmap", engine="vmap", silent=True)
    single = numbers(swept / "single")
    for engine in ("loop", "vmap"):
        several = numbers(swept / engine)
        assert several.keys() == single.keys()
        for name, (params, rows) in single.items():
            chex.assert_trees_all_close(several[name][0], params, rtol=1e-4, atol=1e-5)
            for row, expected in zip(several[name][1], rows, strict=True):
                chex.assert_trees_all_close(row, expected, rtol=1e-3, atol=1e-4)


def keep_signature(traced):
    return lambda logits_fn, x, y, *, eps, lam, **views: traced(
        logits_fn, x, y, eps=eps, lam=lam, **views
    )


def test_a_sweep_that_was_killed_does_what_is_left_and_nothing_twice(swept, tmp_path):
    shutil.copytree(swept / "loop", tmp_path / "sweep")
    found = sweep.points(config(), AXES)
    extra = {**found, "lam=2.0,seed=0": config(**{"strengths.lam": 2.0})}
    with pytest.raises(ValueError, match=r"1 of 5 points are not done: lam=2.0,seed=0"):
        sweeps.report(extra, AXES, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep/points/lam=1.0,seed=1")
    with mock.patch.object(runs, "train_run", wraps=runs.train_run) as train_run:
        sweep.run(found, tmp_path / "sweep", silent=True)
    assert [call.args[1].name for call in train_run.call_args_list] == ["lam=1.0,seed=1"]
    (tmp_path / "sweep/points/lam=0.0,seed=1/point.json").write_text('{"validation_error": 0.1')
    with pytest.raises(ValueError, match=r"1 of 4 points are not done: lam=0.0,seed=1"):
        sweeps.report(found, AXES, tmp_path / "sweep")
    sweep.run(found, tmp_path / "sweep", silent=True)
    sweeps.report(found, AXES, tmp_path / "sweep")
    for _ in range(2):  # the second time without its checkpoints
        with pytest.raises(ValueError, match="holds a run with another config"):
            sweep.run({"lam=0.0,seed=0": config(seed=7)}, tmp_path / "sweep")
        shutil.rmtree(tmp_path / "sweep/points/lam=0.0,seed=0/checkpoints", ignore_errors=True)


def test_the_report_has_a_row_a_setting_the_front_and_the_best_by_validation(swept, tmp_path):
    axes = {"strengths.lam": (0.0, 1.0, 2.0), "seed": (0, 1)}
    errors = {0.0: (0.1, 0.6), 1.0: (0.2, 0.3), 2.0: (0.3, 0.4)}
    found = sweep.points(config(), axes)
    for name, point in found.items():
        clean, robust = (error + 0.02 * point.seed for error in errors[point.strengths.lam])
        record = {"validation_error": clean, "validation_error_pgd": robust}
        if name == "lam=2.0,seed=1":
            record = {"failed": "Step 3: loss is nan."}
        (tmp_path / "points" / name).mkdir(parents=True)
        (tmp_path / "points" / name / "point.json").write_text(json.dumps(record))
    with mock.patch.object(plots, "pareto", wraps=plots.pareto) as drawn:
        text, files = sweeps.report(found, axes, tmp_path)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert "11 ± 1.4 | 61 ± 1.4 | 2 of 2 | * |" in rows["lam=0.0"]
    assert "21 ± 1.4 | 31 ± 1.4 | 2 of 2 | * |" in rows["lam=1.0"]
    assert "30 | 40 | 1 of 2 |  |" in rows["lam=2.0"]
    assert (
        "Best by error under attack, validation split: lam=1.0; the others are beyond the spread"
        in text
    )
    assert drawn.call_args.kwargs["best"] == "lam=1.0"
    assert "lam=2.0,seed=1: Step 3: loss is nan." in text
    assert {file.name for file in files} == {
        *("sweep.md", "sweep.csv", "sweep.json", "pareto.png", "pareto.svg")
    }
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert (record["axes"]["seed"], record["best"]) == ([0, 1], "lam=1.0")


def test_a_row_with_a_seed_that_diverged_is_not_the_best(tmp_path):
    axes = {"train.learning_rate": (0.1, 9.0, 0.2), "seed": (0, 1)}
    found = sweep.points(config(), axes)
    for name, point in found.items():
        robust = {0.1: 0.3, 9.0: 0.2, 0.2: 0.5}[point.train.learning_rate] + 0.02 * point.seed
        record = {"validation_error": robust / 2, "validation_error_pgd": robust}
        if name == "learning_rate=9.0,seed=1":
            record = {"failed": "Step 3: loss is nan."}
        (tmp_path / "points" / name).mkdir(parents=True)
        (tmp_path / "points" / name / "point.json").write_text(json.dumps(record))
    text, _ = sweeps.report(found, axes, tmp_path)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert "| 20 | 1 of 2 |  |" in rows["learning_rate=9.0"]
    assert "| * |" in rows["learning_rate=0.1"]
    assert json.loads((tmp_path / "sweep.json").read_text())["best"] == "learning_rate=0.1"


def test_epochs_are_no_axis_of_runs_that_have_steps():
    with pytest.raises(ValueError, match=r"Axis train.epochs: the runs have train.steps"):
        sweep.points(config(**{"train.steps": 5}), {"train.epochs": (1, 2)})


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_point_whose_last_report_was_lost_is_validated_again(engine, tmp_path):
    found = sweep.points(config(), {"seed": (0, 1)})
    sweep.run(found, tmp_path, engine=engine, silent=True)
    places = [tmp_path / "points" / name for name in found]
    whole = [sweep.outcome(place) for place in places]
    for place in places:
        rows = (place / "metrics.jsonl").read_text()
        (place / "metrics.jsonl").write_text(rows[:-20])
        (place / "point.json").unlink()
    sweep.run(found, tmp_path, engine=engine, silent=True)
    assert [sweep.outcome(place) for place in places] == whole
    for place in places:
        assert [row["step"] for row in logs.metrics(place)] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    "axes",
    [{"report.pgd.eps": (0.1, 0.5)}, {"data.bounds": ((0.0, 1.0), (-1.0, 1.0))}],
    ids=lambda axes: next(iter(axes)),
)
def test_rows_that_are_measured_differently_are_not_ranked(axes, tmp_path):
    found = sweep.points(config(), axes)
    for name in found:
        (tmp_path / "points" / name).mkdir(parents=True)
        record = {"validation_error": 0.1, "validation_error_pgd": 0.2}
        (tmp_path / "points" / name / "point.json").write_text(json.dumps(record))
    text, _ = sweeps.report(found, axes, tmp_path)
    (name,) = axes
    assert f"No row is best: by {name} their errors are measured differently." in text
    assert "*" not in text.splitlines()[2] + text.splitlines()[3]
    assert json.loads((tmp_path / "sweep.json").read_text())["best"] == ""


@pytest.mark.parametrize(
    ("errors", "best", "said"),
    [
        # The spread of a difference is the root of 1.41^2 + 1.41^2, 2.
        ({"a": [9, 11], "b": [11, 13]}, "", "a. No row is best: within the spread are also b."),
        ({"a": [9, 11], "b": [12, 14]}, "a", "Best by error under attack, validation split: a;"),
        ({"a": [10], "b": [90]}, "", "With one seed a row the spread is not known"),
        ({"a": [10, 12]}, "", "nothing to compare"),
        ({}, "", "nothing to compare"),
    ],
)
def test_a_row_is_best_only_where_no_other_is_within_the_spread(errors, best, said):
    found, sentence = sweeps._best(errors)
    assert found == best
    assert said in sentence


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_point_that_diverges_is_written_down_and_the_others_go_on(engine, tmp_path):
    def breaks(logits_fn, x, y, *, eps, lam, **views):
        value, parts = objectives.j0(logits_fn, x, y, **views)
        return value, parts | {"lip": jnp.where(lam > 1, jnp.nan, 0.0) + 0 * eps}

    found = sweep.points(config(), {"strengths.lam": (0.0, 2.0, 1.0)})
    build._parts.cache_clear()
    with mock.patch.object(build, "bound_objective", return_value=breaks):
        sweep.run(found, tmp_path, engine=engine, silent=True)
    build._parts.cache_clear()
    text, _ = sweeps.report(found, {"strengths.lam": (0.0, 2.0, 1.0)}, tmp_path)
    assert "diverged" in next(line for line in text.splitlines() if "lam=2.0" in line)
    assert "lip is nan" in text
    for name in ("lam=0.0", "lam=1.0"):
        assert logs.metrics(tmp_path / "points" / name)[-1]["step"] == 8
    with mock.patch.object(runs, "prepare", side_effect=AssertionError):
        sweep.run(found, tmp_path, engine=engine, silent=True)
    again = {"lam=2.0": found["lam=2.0"].copy_and_resolve_references()}
    again["lam=2.0"].train.learning_rate = 0.01
    (tmp_path / "points/lam=2.0/checkpoints/4").mkdir(parents=True)  # it went on for a while
    sweep.run(again, tmp_path, engine=engine, silent=True)
    assert sweep.outcome(tmp_path / "points/lam=2.0").keys() == {build.CLEAN, build.ROBUST}


def test_the_last_of_runs_trained_together_ends_where_devices_do_not_divide_its_batch(tmp_path):
    def breaks(logits_fn, x, y, *, eps, lam, **views):
        value, parts = objectives.j0(logits_fn, x, y, **views)
        return value, parts | {"lip": jnp.where(lam > 1, jnp.nan, 0.0) + 0 * eps}

    found = sweep.points(config(**{"train.batch_size": 15}), {"strengths.lam": (0.0, 2.0)})
    assert 15 % jax.device_count()
    build._parts.cache_clear()
    with mock.patch.object(build, "bound_objective", return_value=breaks):
        sweep.run(found, tmp_path, engine="vmap", silent=True)
    build._parts.cache_clear()
    assert "lip is nan" in sweep.outcome(tmp_path / "points/lam=2.0")["failed"]
    assert logs.metrics(tmp_path / "points/lam=0.0")[-1]["step"] == 8


def test_networks_of_a_sweep_are_not_given_each_others_settings():
    found = sweep.points(config(), {"model.name": ("CNN", "MLP")})
    assert {*found["name=MLP"].model.settings} == {"widths"}
    assert {*found["name=CNN"].model.settings} == set()


def test_points_of_several_shapes_are_not_trained_together(tmp_path):
    found = sweep.points(config(), {"train.momentum": (0.0, 0.9)})
    with pytest.raises(ValueError, match="differ in more than seed and strengths"):
        sweep.run(found, tmp_path, engine="vmap", silent=True)
    found = sweep.points(config(**{"data.wrong_labels": 0.1}), {"seed": (0, 1)})
    with pytest.raises(ValueError, match=r"data\.wrong_labels = 0\.1; runs that are trained"):
        sweep.run(found, tmp_path, engine="vmap", silent=True)
    with pytest.raises(ValueError, match="No engine 'slurm'; choose one of auto, loop, vmap, ray"):
        sweep.run(found, tmp_path, engine="slurm")


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("free_at", {"train.replay": 2}),  # each perturbation is carried to the next step
        ("j2_lip", {"train.optimizer": "sam(rho=0.5)"}),
        ("j2_lip", {"train.optimizer": "local_entropy(period=2,temperature=0.01)"}),
    ],
)
def test_runs_trained_together_keep_what_each_carries(row, changes, tmp_path):
    found = sweep.points(config(row, **changes), {"strengths.eps": (0.02, 0.2), "seed": (0, 1)})
    for engine in ("loop", "vmap"):
        sweep.run(found, tmp_path / engine, engine=engine, silent=True)
    single, several = (numbers(tmp_path / engine) for engine in ("loop", "vmap"))
    assert len(single) == 4
    for name, (params, _) in single.items():
        chex.assert_trees_all_close(several[name][0], params, rtol=1e-4, atol=1e-5)
    kernels = [jax.tree.leaves(params)[1] for params, _ in single.values()]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in itertools.combinations(kernels, 2))


def test_devices_share_the_runs_that_are_trained_together(tmp_path):
    found = [runs.prepare(point) for point in sweep.points(config(), AXES).values()]
    with parallel.over(jax.devices()[:4]):
        *_, (state, _) = training.fit(
            jax.vmap(found[0].program.step),
            jax.tree.map(lambda *a: jnp.stack(a), *(one.state for one in found)),
            {"eps": jnp.full(4, 0.1), "lam": jnp.arange(4.0)},
            found[0].training,
            batch_size=16,
            steps=2,
            key=jax.random.split(jax.random.key(0), 4),
        )
    kernel = jax.tree.leaves(state.params)[1]
    assert {shard.data.shape[0] for shard in kernel.addressable_shards} == {1}


def test_the_picture_joins_the_front_and_shows_the_spread():
    errors = {"a": [[1.0, 9.0], [2.0, 8.0]], "b": [[3.0, 5.0]], "c": [[4.0, 9.0]], "gone": []}
    axes = plots.pareto(errors, front={"a", "b"}).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1.5, 8.5], [3.0, 5.0]])
    assert sorted(text.get_text() for text in axes.texts) == ["a", "b", "c"]
    assert "best, outside of the spread" not in axes.get_legend_handles_labels()[1]
    (axes,) = plots.pareto(errors, front={"a", "b"}, best="b").axes
    assert "best, outside of the spread" in axes.get_legend_handles_labels()[1]


def test_names_in_the_picture_do_not_overlap_however_close_the_points_are():
    figure = plots.pareto({f"lam={i / 1000}": [[1.0, 9 + i / 1e6]] for i in range(40)}, front=())
    figure.draw_without_rendering()
    names = sorted(figure.axes[0].texts, key=lambda text: text.xyann[1])
    boxes = [Text.get_window_extent(name) for name in names]
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
    assert [name.get_text() for name in names] == [f"lam={i / 1000}" for i in range(40)]
    assert boxes[0].x0 > figure.axes[0].get_window_extent().x1


def test_there_is_no_picture_of_nothing():
    with pytest.raises(ValueError, match="no errors to draw"):
        plots.pareto({"gone": []}, front=())


DIGITS = (
    *(f"--config={EXPERIMENTS}/configs/digits.py:j2", "--silent", "--config.train.epochs=1"),
    *("--config.model.settings.channels=(2,)", "--config.report.pgd.steps=1"),
)


def test_one_index_trains_one_point_and_the_command_without_it_reports(tmp_path):
    folder, log = tmp_path / "sweep", tmp_path / "log"

    def said(*more):
        argv = [str(EXPERIMENTS / "sweep.py"), *DIGITS, f"--workdir={folder}", *more]
        argv.append("--sweep=strengths.eps=0,0.4")
        options = {"flags": QUICK, "cache": str(tmp_path / "cache")}
        process = FORKED.Process(target=launch, args=(argv, str(log)), kwargs=options)
        process.start()
        process.join()
        return log.read_text()

    assert said("--sweep_index=1").strip() == "Point 1: eps=0.4"
    assert [run.name for run in (folder / "points").iterdir()] == ["eps=0.4"]
    assert "error under attack, validation split" in said()
    assert (folder / "pareto.png").stat().st_size > 1000


def test_ray_trains_every_point_in_a_process_of_its_own(tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-W", "ignore", str(EXPERIMENTS / "sweep.py"), *DIGITS]
    command += [f"--workdir={tmp_path}", "--sweep=strengths.eps=0,0.4", "--engine=ray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "error under attack, validation split" in done.stdout
    for name in ("eps=0", "eps=0.4"):
        assert (tmp_path / "points" / name / "point.json").exists()
