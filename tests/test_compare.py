"""Equal seconds, trials and attacks for every recipe; what is noise is said to be."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import (
    attacks,
    datasets,
    evaluation,
    lipschitz,
    losses,
    objectives,
    optimizers,
    runs,
    training,
)
from lipreg.evaluation.cascade import Outcome
from lipreg.reports import comparison, comparison_plots
from lipreg.reports.compared import measure
from lipreg.runs import build, compare, logs
from lipreg.runs.config import base_config
from lipreg.training.overfitting import FGSM, PGD, overfitted

ROOT = Path(__file__).parents[1]


def curve(*pairs):
    """Reports with errors under FGSM and PGD-10, ten steps apart."""
    return [{"step": 10 * n, FGSM: f, PGD: p} for n, (f, p) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("reports", "step"),
    [
        (curve((0.7, 0.8), (0.5, 0.6), (0.3, 0.7), (0.1, 0.95)), 40),
        (curve((0.5, 0.6), (0.1, 1.0), (0.5, 0.6), (0.1, 1.0)), 20),  # it may come and go
        (curve((0.5, 0.6), (0.7, 0.9)), None),  # robust to neither any more
        (curve((0.5, 0.6), (0.45, 0.7), (0.4, 0.65)), None),  # within the noise
        (curve((0.9, 1.0), (0.1, 1.0)), None),  # never robust
        ([{"step": 5}, *curve((0.5, 0.6)), {"step": 15, FGSM: 0.1}], None),
        ([], None),
    ],
)
def test_catastrophic_overfitting_is_a_rise_under_pgd_that_fgsm_does_not_see(reports, step):
    assert overfitted(reports) == step


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Forty-eight images of noise, whatever the data set and split."""
    rng = np.random.default_rng(0)
    images = datasets.Dataset(
        rng.integers(0, 256, (48, 4, 4, 1), np.uint8), rng.integers(0, 3, 48, np.int32), 3
    )
    monkeypatch.setattr(datasets, "load", lambda *_, **__: images)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
        yield


def config(**changes):
    config = base_config("j2_lip", {"j2_lip": {"eps": 0.1, "lam": 0.01}})
    config.model.name, config.model.settings = "MLP", {"widths": (8,)}
    config.train.update({"batch_size": 16, "schedule": "cosine"})
    config.report.examples = 16
    config.evaluation.batch_size = 8
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.fixture
def scripted(monkeypatch):
    """Validation errors, one report after the other, in place of measured ones."""

    def script(name, *reports):
        batches = iter(np.repeat(reports, 16 // 8 if name == "wrong" else 1))
        fake = lambda *_: {key: np.full(8, value) for key, value in next(batches).items()}
        made = build._program.__wrapped__
        patched = lambda *args: made(*args)._replace(**{name: fake})
        monkeypatch.setattr(build, "_program", patched)

    return script


def test_a_run_of_some_steps_ends_there_and_its_schedule_too(tmp_path):
    with mock.patch.object(optimizers, "schedule", wraps=optimizers.schedule) as schedule:
        prepared = runs.prepare(config(**{"train.steps": 4, "report.seconds": True}))
    assert schedule.call_args.args == ("cosine", 0.1, 4)
    assert prepared.steps == 4
    runs.train_run(prepared, tmp_path / "run", silent=True)
    first, last = logs.metrics(tmp_path / "run")
    assert (first["step"], last["step"]) == (3, 4)  # the end of the epoch, and the last
    assert 0 < first["seconds"] < last["seconds"]
    assert build.ROBUST in last
    assert runs.load(tmp_path / "run").step == 4


def test_the_gap_is_between_one_step_of_the_whole_radius_and_ten_smaller_ones():
    """The one step jumps over the band of another class that the ten meet."""
    parts = build.parts(config(**{"report.pgd.steps": 1, "report.pgd.eps": 0.6}))
    margin = lambda x: 10 * jnp.abs(x[:, 0] - 0.5) - 1
    logits_fn = jax.tree_util.Partial(lambda x: jnp.stack([margin(x), 0 * x[:, 0]], 1))
    x, y = jnp.full((4, 1), 0.2), jnp.zeros(4, int)
    with mock.patch.object(attacks, "pgd", wraps=attacks.pgd) as pgd:
        found = parts.gap(logits_fn, jax.random.split(jax.random.key(0), 4), x, y)
    assert pgd.call_args.kwargs["steps"] == 10
    assert not found[FGSM].any()
    assert found[PGD].all()


def test_overfitting_is_a_warning_that_names_the_step(scripted, tmp_path):
    errors = curve((0.5, 0.6), (0.1, 0.9), (0.1, 1.0))
    scripted("gap", *({FGSM: e[FGSM], PGD: e[PGD]} for e in errors))
    prepared = runs.prepare(
        config(**{"train.steps": 3, "report.every_steps": 1, "report.gap_examples": 8})
    )
    with pytest.warns(
        UserWarning, match="Step 2: catastrophic overfitting. .* 90% under PGD"
    ) as told:
        runs.train_run(prepared, tmp_path / "run", silent=True)
    assert len(told) == 1
    assert [row[PGD] for row in logs.metrics(tmp_path / "run")] == [0.6, 0.9, 1.0]


def test_the_best_epoch_is_a_run_of_its_own_that_ends_there(scripted, tmp_path):
    scripted("wrong", *({build.CLEAN: 0.0, build.ROBUST: e} for e in (0.5, 0.3, 0.3, 0.4)))
    prepared = runs.prepare(config(**{"train.epochs": 4, "report.keep_best": True}))
    runs.train_run(prepared, tmp_path / "run", silent=True)
    best, last = runs.load(tmp_path / "run/best"), runs.load(tmp_path / "run")
    assert (best.step, best.steps) == (6, 6)
    assert (last.step, last.steps) == (12, 12)


def test_the_best_epoch_of_a_run_that_has_diverged_stands_in_nobodys_way(tmp_path):
    first = config(**{"train.epochs": 1, "report.keep_best": True})
    runs.train_run(runs.prepare(first), tmp_path / "run", silent=True)
    shutil.rmtree(tmp_path / "run/checkpoints")  # none was written before it diverged
    other = config(**{"train.epochs": 1, "report.keep_best": True, "strengths.lam": 0.1})
    runs.train_run(runs.prepare(other), tmp_path / "run", silent=True)
    assert runs.load(tmp_path / "run/best").config.strengths.lam == 0.1


def test_a_pace_counts_no_compilation_and_few_reports(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def fit(*_, started, every, **__):
        """Steps of 0.1 s, reports of 0.5 s; every call compiles for 9 s."""
        asked.append(every)
        for step in range(every, 1000 * every, every):
            now[0] += 0.1 * every + 0.5 + 9.0 * (step == every)
            if step == every:
                started(9.0)
            yield mock.Mock(step=step), {}

    monkeypatch.setattr(training, "fit", fit)
    measured = compare.pace(runs.prepare(config()), 24.0)
    assert asked == [1, 10]  # steps of 0.6 s, as far as one report a step can tell
    np.testing.assert_allclose([measured["step_s"], measured["compile_s"]], [0.15, 18.0])


PLAN = compare.Plan("linf", 0.1, seconds=1.0, trials=2, trial_seconds=0.5, seeds=2, best=1)
RECIPES = {
    "plain": compare.Recipe("j0", [{"train.learning_rate": 0.1}, {"train.learning_rate": 0.01}]),
    "steep": compare.Recipe("j2", [{"strengths.eps": 0.1}, {"strengths.eps": 1}], approach="C"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


def compared(folder):
    paces = {"step_s": 0.1, "compile_s": 3.0}
    with mock.patch.object(compare, "pace", return_value=paces) as pace:
        return compare.train(RECIPES, config(), PLAN, folder, silent=True), pace.call_count


def test_every_recipe_gets_the_same_time_and_trials_and_the_best_have_all_seeds(folder):
    found, paced = compared(folder)
    assert paced == 2
    for name, trained in found.items():
        trials = [folder / f"points/{name}/trial-{k}" for k in (0, 1)]
        assert [runs.load(trial).steps for trial in trials] == [5, 5]
        assert trained.k == np.argmin([compare.error(trial) for trial in trials])
        final = runs.load(trained.runs[0])
        assert final.steps == 10
        for field, value in RECIPES[name].settings[trained.k].items():
            section, field = field.split(".")
            assert final.config[section][field] == value
    assert sorted(len(trained.runs) for trained in found.values()) == [1, 2]
    seeds = next(trained.runs for trained in found.values() if len(trained.runs) == 2)
    assert [runs.load(run).config.seed for run in seeds] == [0, 1]
    assert compare.error(seeds[0]) <= min(compare.error(t.runs[0]) for t in found.values())


def test_a_killed_comparison_does_what_is_left_and_nothing_twice(folder, tmp_path):
    compared(folder)  # if no other test has
    shutil.copytree(folder, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/points/plain/seed-0")
    with mock.patch.object(runs, "train_run", wraps=runs.train_run) as train_run:
        found, paced = compared(tmp_path / "again")
    assert paced == 0
    assert [Path(call.args[1]).name for call in train_run.call_args_list] == ["seed-0"]
    assert found["plain"].runs[0].is_relative_to(tmp_path)


def test_a_folder_of_another_comparison_is_refused_even_if_nothing_but_its_pace_is_there(
    folder, tmp_path
):
    compared(folder)  # if no other test has
    shutil.copytree(folder / "pace", tmp_path / "pace")
    other = config(**{"train.batch_size": 8})
    with pytest.raises(ValueError, match=r"train.batch_size \(16 there, 8 asked\)"):
        compare.train(RECIPES, other, PLAN, tmp_path, silent=True)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (compare.Recipe("j0", [{}]), "odd has 1 settings; give one for each of 2 trials"),
        (compare.Recipe("j2", [{}, {}]), "strengths.eps = nan: it is not given"),
        (compare.Recipe("j0", [{"train.lr": 1}] * 2), "j0: train.lr: no such field"),
        (compare.Recipe("j0", [{"train.clip": "x"}] * 2), "j0: train.clip = x: "),
        (compare.Recipe("j9", [{}, {}]), "No objective 'j9'"),
    ],
)
def test_a_recipe_that_is_none_is_refused_before_anything_is_trained(recipe, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        compare.train({**RECIPES, "odd": recipe}, config(), PLAN, tmp_path / "new", silent=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"train.accumulate": 6}, r"odd in 0.5 s: .*train.accumulate = 6; the run has 5 steps"),
        ({"train.optimizer": "local_entropy(period=6)"}, "its first move is after 6 steps"),
        (
            {"train.ramp": 0.01, "train.ramped": "eps"},
            "train.ramp = 0.01; of the run's 5 steps that is none",
        ),
    ],
)
def test_a_recipe_that_has_not_the_time_is_refused_before_anything_is_trained(
    setting, told, tmp_path
):
    odd = {"odd": compare.Recipe("j2", [{"strengths.eps": 0.1, **setting}] * 2)}
    paces = {"step_s": 0.1, "compile_s": 3.0}
    with (
        mock.patch.object(compare, "pace", return_value=paces),
        pytest.raises(ValueError, match=told),
    ):
        compare.train(RECIPES | odd, config(), PLAN, tmp_path, silent=True)
    assert not (tmp_path / "points").exists()


def test_a_recipe_may_have_a_network_of_its_own():
    fields = {"model.name": "CNN", "model.settings": {"channels": (2, 3)}}
    made = compare.point(config(), compare.Recipe("j0", [{}], fields), 0, PLAN, steps=1)
    assert made.model.settings.to_dict() == {"channels": (2, 3)}
    build.parts(made)
    bare = compare.Recipe("j0", [{}], {"model.name": "CNN"})
    assert {*compare.point(config(), bare, 0, PLAN, steps=1).model.settings} == set()


def test_a_recipe_may_have_the_tanh_head_and_nothing_else_of_the_configs_row():
    plain, bent = (
        compare.point(config(), compare.Recipe(row, [{}]), 0, PLAN, steps=1)
        for row in ("j0", "j0_tanh")
    )
    assert (plain.model.head, bent.model.head) == ("linear", "tanh")
    assert bent.strengths.to_dict() == bent.options.to_dict() == {}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10"])
def test_every_recipe_of_the_table_has_four_settings_that_its_objective_takes(
    norm, data, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    files = [importlib.import_module(f"configs.{name}") for name in ("compare", data)]
    base = files[1].get_config("j0")
    plan = PLAN._replace(norm=norm, trials=4)
    table = files[0].recipes(norm, 0.1, 64, files[1].STRENGTHS, base.train)
    assert {recipe.objective for recipe in table.values()} == {*objectives.__all__} - {"grad_lp"}
    seen = set()
    for recipe in table.values():
        settings = [compare.point(base, recipe, k, plan, steps=1) for k in range(plan.trials)]
        texts = {json.dumps(setting.to_dict(), sort_keys=True) for setting in settings}
        assert len(texts) == 4
        assert not texts & seen
        seen |= texts
        for setting in settings:
            build.parts(setting)


def test_recipes_have_the_rate_and_the_optimizer_of_the_config(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    recipes = importlib.import_module("configs.compare").recipes
    for fields in ({"optimizer": "adamw", "learning_rate": 1e-3}, {"momentum": 0.8}):
        base = config(**{f"train.{name}": value for name, value in fields.items()})
        table = recipes("l2", 0.1, 16, {}, base.train)
        made = {
            name: compare.point(base, table[name], 0, PLAN, steps=1)
            for name in ("j0", "j2", "sam", "lipschitz_aol", "deep_relaxation")
        }
        for name, its in made.items():
            build.parts(its)
            if name != "lipschitz_aol":
                assert its.train.learning_rate == base.train.learning_rate
                assert optimizers.nested(its.train.optimizer)[-1][0] == base.train.optimizer


def test_a_setting_that_diverges_at_once_leaves_the_pace_to_the_next(tmp_path):
    fast = {"step_s": 0.1, "compile_s": 1.0}
    with mock.patch.object(compare, "pace", side_effect=[{}, fast]):
        paced = compare._paced(RECIPES["plain"], config(), PLAN, tmp_path / "plain")
    assert paced == fast | {"epoch_steps": 3}
    with (
        mock.patch.object(compare, "pace", return_value={}),
        pytest.raises(ValueError, match="odd: the first steps of its 2 settings are not finite"),
    ):
        compare._paced(RECIPES["plain"], config(), PLAN, tmp_path / "odd")


def test_a_pace_without_finite_steps_is_none_and_later_ones_are_not_needed(monkeypatch):
    finite = [0]

    def fit(*_, every, **__):
        for step in range(every, 10 * every, every):
            if step > finite[0]:
                raise training.Diverged("Step: loss is nan.", (0,))
            yield mock.Mock(step=step), {}

    monkeypatch.setattr(training, "fit", fit)
    assert compare.pace(runs.prepare(config()), 1e-9) == {}
    finite[0] = 5
    assert compare.pace(runs.prepare(config()), 1e9)["step_s"] > 0


def test_an_outsiders_recipe_is_written_in_one_line():
    name, recipe = compare.own("parts:mine strengths.eps=0.1,0.2 train.clip=1 name=x approach=A")
    assert name == "x"
    assert recipe == compare.Recipe(
        "parts:mine",
        [{"strengths.eps": 0.1, "train.clip": 1}, {"strengths.eps": 0.2, "train.clip": 1}],
        approach="A",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("j0 name=a,b", "name=a,b; one name"),
        ("j0 name=../x", "name=../x; one name"),
        ("j0 approach=Z", "approach=Z; choose one of A, B, C, -"),
        ("j0 train.learning_rate=0.1,0.1", "a value is there twice"),
    ],
)
def test_a_recipe_that_is_written_wrongly_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        compare.own(text)


@pytest.mark.parametrize("field", ["seed", "train.steps", "report.pgd.eps", "data.seed"])
def test_what_all_recipes_share_is_not_set_by_one(field):
    _, recipe = compare.own(f"j0 {field}=3")
    with pytest.raises(ValueError, match=f"j0: {field}: the comparison sets it"):
        compare.point(config(), recipe, 0, PLAN, steps=1)


def test_a_recipe_tries_each_setting_at_every_rate_but_where_its_settings_are_rates():
    radii = compare.Recipe("j1", [{"strengths.eps": 0.1}, {"strengths.eps": 0.2}])
    tried = [tuple(setting.values()) for setting in compare.rated(radii, 0.2, [1, 0.5]).settings]
    assert tried == [(0.1, 0.2), (0.1, 0.1), (0.2, 0.2), (0.2, 0.1)]
    slow = radii._replace(fields={"train.learning_rate": 0.01, "train.optimizer": "adam"})
    rates = [s["train.learning_rate"] for s in compare.rated(slow, 0.2, [1, 0.5]).settings]
    assert rates == [0.01, 0.005] * 2
    made = compare.point(config(), compare.rated(slow, 0.2, [0.5]), 0, PLAN, steps=1)
    assert made.train.learning_rate == 0.005
    assert compare.rated(RECIPES["plain"], 0.2, [1, 0.5]) is RECIPES["plain"]
    _, fixed = compare.own("j1 strengths.eps=0.1,0.2 train.learning_rate=0.3")
    rates = [s["train.learning_rate"] for s in compare.rated(fixed, 0.2, [1, 0.5]).settings]
    assert rates == [0.3, 0.15] * 2


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"a": [10.0], "b": [12.0]}, {"a": "best", "b": "+2, spread unknown"}),
        ({"a": [10, 12], "b": [12, 14]}, {"a": "best", "b": "within the spread"}),
        ({"a": [10, 12], "b": [14, 16]}, {"a": "best", "b": "+4"}),
        ({"a": [10.0], "b": [11, 13]}, {"a": "best", "b": "within the spread"}),
        ({"a": [], "b": []}, {"a": "diverged", "b": "diverged"}),
    ],
)
def test_a_difference_within_the_spread_of_the_seeds_is_said_to_be(errors, said):
    assert comparison.against_best(errors) == said


def judged(logits_fn, x, y, *, radii, **_):
    """A stand-in for attacks: AutoAttack breaks three images of four, PGD-20 two, in every norm."""

    def outcome(broken):
        by = np.where(np.arange(len(y)) % 4 < broken, 1, -1)
        return Outcome(x, by, ("clean", "apgd"))

    at = lambda broken: {norm: {v: outcome(broken) for v in radii[norm]} for norm in radii}
    return evaluation.Evaluation(
        "autoattack",
        np.zeros(len(y), bool),
        distances={norm: {} for norm in radii},
        outcomes=at(3),
        checks={norm: () for norm in radii},
        radii={norm: tuple(values) for norm, values in radii.items()},
        others={norm: {"PGD-20": by_radius} for norm, by_radius in at(2).items()},
        nearest_points={},
        left_out={norm: () for norm in radii},
    )


def test_the_table_has_a_row_for_each_recipe_and_says_how_it_was_made(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "judged")
    found, _ = compared(tmp_path / "judged")
    for run in found["steep"].runs:  # as if it had overfitted
        rows = [row | {FGSM: 0.2, PGD: 0.2 + row["step"] / 20} for row in logs.metrics(run)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for run in found["plain"].runs:  # as if a program had run beside the measurement of its pace
        rows = [row | {"seconds": 0.6 * PLAN.seconds} for row in logs.metrics(run)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lost = tmp_path / "judged/points/lost"
    lost.mkdir()
    (lost / "point.json").write_text('{"failed": "Step 3: loss is nan."}')
    found["steep"].runs.append(lost)
    radii = {"linf": 0.1, "l2": 0.3}  # of the comparison, not of the runs' configs
    options = {"radii": radii, "examples": 8, "note": "Noise for images"}
    with mock.patch.object(evaluation, "evaluate", wraps=judged) as evaluate:
        text, files = comparison.report(found, PLAN, tmp_path / "judged", **options)
        again, _ = comparison.report(found, PLAN, tmp_path / "judged", **options)
    assert again == text
    places = [call.kwargs["folder"] for call in evaluate.call_args_list]
    assert len(places) == len(set(places))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    table = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:4]}
    assert table.keys() == {"plain", "steep"}
    for name, row in table.items():
        trained = len(found[name].runs) - (name == "steep")
        for norm, eps in radii.items():
            assert row[f"% AutoAttack {norm} {eps}"] == ("75 ± 0" if trained > 1 else "75")
            assert row[f"% PGD-20 {norm} {eps}"] == ("50 ± 0" if trained > 1 else "50")
        assert row["seeds"] == f"{trained}" + f" of {trained + 1}" * (name == "steep")
        assert row["against the best"] in ("best", "within the spread")
    assert table["plain"]["overfitted"] == "-"
    assert table["steep"]["overfitted"].startswith("step 5 of 10")  # 0.2 above 0.2 + 1/20
    assert table["steep"]["setting"].startswith("eps ")
    for words in ("Noise for images.", "8 test images at linf 0.1 and l2 0.3", "0.5 s each"):
        assert words in text
    assert f"fifth off the {PLAN.seconds:g} s, as multiples of them: plain (0.6)" in text
    assert "C: a penalty" in text  # the deck's approaches; plain is of none
    assert "gap, % error" in text
    record = json.loads((tmp_path / "judged/compare.json").read_text())
    assert record["plan"]["trials"] == 2
    assert {"command", "commit", "machine"} <= record["about"].keys()
    assert all(path.is_file() for path in files)


def test_a_guest_shows_only_what_was_measured_as_the_others_were(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "hosts")
    found, _ = compared(tmp_path / "hosts")
    seeds = [tmp_path / f"guest/seed-{seed}" for seed in range(2)]
    for seed in seeds:  # as train.py leaves a run: another attack, no seconds, no best epoch
        shutil.copytree(found["plain"].runs[0], seed)
        shutil.rmtree(seed / "best", ignore_errors=True)
        config = json.loads((seed / "config.json").read_text())
        config["report"]["pgd"] = {"norm": "l2", "eps": 0.1, "steps": 10}
        (seed / "config.json").write_text(json.dumps(config))
        rows = [dict(row) for row in logs.metrics(seed)]
        for row, error in zip(rows, [0.0] + [0.01] * len(rows), strict=False):
            row.pop("seconds")
            row[build.ROBUST] = error  # far below the others', and least at the first report
        (seed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        point = json.loads((seed / "point.json").read_text()) | {build.ROBUST: 0.01}
        (seed / "point.json").write_text(json.dumps(point))
    guest = compare.Trained(compare.Recipe("", [{}]), 0, seeds, {})
    options = {"radii": {"linf": 0.1}, "examples": 8}
    with mock.patch.object(evaluation, "evaluate", judged):
        text, _ = comparison.report(found | {"guest": guest}, PLAN, tmp_path / "hosts", **options)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    (row,) = [line for line in lines if line[:1] == ["guest"] and len(line) == len(lines[0])]
    told = dict(zip(lines[0], row, strict=True))
    for column in ("seconds", "best epoch", "% AutoAttack linf 0.1, best epoch"):
        assert told[column] == "-"
    assert told["% AutoAttack linf 0.1"] == "75 ± 0"
    last = [line for line in lines if line][-1]  # of the table by validation
    assert (last[0], last[-1]) == ("guest", "-")


def test_a_comparison_that_is_cut_has_a_table_of_what_was_attacked(folder, tmp_path):
    compared(folder)
    shutil.copytree(folder, tmp_path / "cut")
    found, _ = compared(tmp_path / "cut")
    options = {"radii": {"linf": 0.1}, "examples": 8}

    def cut(*args, folder, **kwargs):
        if "steep" in str(folder):
            raise KeyboardInterrupt
        return judged(*args, **kwargs)

    with mock.patch.object(evaluation, "evaluate", cut), pytest.raises(KeyboardInterrupt):
        comparison.report(found, PLAN, tmp_path / "cut", **options)
    text = (tmp_path / "cut/compare.md").read_text()
    attacked, validated = text.split("Not attacked yet: steep.")
    assert "| plain | " in attacked
    assert "| steep | " not in attacked
    for name, trained in found.items():
        (row,) = [line for line in validated.splitlines() if line.startswith(f"| {name} | ")]
        error = 100 * np.mean([compare.error(run) for run in comparison._whole(trained)])
        assert row.split(" | ")[-1].startswith(f"{error:.3g}"[:4])
    with mock.patch.object(evaluation, "evaluate", judged):
        whole, _ = comparison.report(found, PLAN, tmp_path / "cut", **options)
    assert "Not attacked yet" not in whole
    assert (tmp_path / "cut/compare.md").read_text() == whole


def test_a_proved_bound_of_the_loss_is_above_its_largest_gradient(tmp_path):
    prepared = runs.prepare(config(**{"train.steps": 2}))
    runs.train_run(prepared, tmp_path / "run", silent=True)
    with mock.patch.object(evaluation, "evaluate", judged):
        found = measure(tmp_path / "run", radii={"l2": 0.1}, examples=8)
    assert 0 < found["estimate"] <= found["certified"] < math.inf
    assert found["gap"] == {"error": 0.0, "loss": 0.0}  # the splits are the same images
    assert found["epochs"] == 2 / 3
    with pytest.raises(ValueError, match="examples = 99; the test split has 48"):
        measure(tmp_path / "run", radii={"l2": 0.1}, examples=99)


def test_the_gap_of_generalisation_is_the_tests_less_the_trainings(tmp_path, monkeypatch):
    prepared = runs.prepare(config(**{"train.steps": 2}))
    runs.train_run(prepared, tmp_path / "run", silent=True)
    loaded, load = runs.load(tmp_path / "run"), datasets.load
    x = datasets.to_unit(load("digits", "test").x)
    right = np.array(loaded.logits_fn(x).argmax(1), np.int32)

    def labelled(name, split, **options):
        found = load(name, split, **options)
        y = right if split == "train" else (right + 1) % 3
        return found._replace(y=y[: len(found.y)])

    monkeypatch.setattr(datasets, "load", labelled)
    with mock.patch.object(evaluation, "evaluate", judged):
        found = measure(tmp_path / "run", radii={"l2": 0.1}, examples=8)
    assert found["gap"]["error"] == 1.0
    assert found["gap"]["loss"] > 0
    loss = lambda x: losses.cross_entropy(loaded.logits_fn(x), jnp.asarray((right[:8] + 1) % 3))
    slopes = lipschitz.gradient_norms(loss, x[:8])
    np.testing.assert_allclose(found["estimate"], slopes.max(), rtol=1e-5)


def test_gaps_are_drawn_with_the_step_at_which_overfitting_begins():
    rows = curve((0.5, 0.6), (0.1, 0.9))
    figure = comparison_plots.gaps({"j0": curve((0.5, 0.6)), "j1": rows, "j2": [{"step": 1}]})
    lines = [[np.asarray(line.get_xdata()) for line in axes.lines] for axes in figure.axes]
    assert [len(each) for each in lines] == [2, 3, 2]
    assert lines[1][2].tolist() == [20, 20]


# The launcher with the first attack of AutoAttack alone: tests/test_evaluation.py has them all.
LAUNCHED = """
import runpy, sys
from lipreg.evaluation import measure
every, auto = measure.stages, measure.PROTOCOLS["autoattack"]
measure.stages = lambda *args, **options: every(*args, **options)[:1]
measure.PROTOCOLS["autoattack"] = auto._replace(masking=False)
sys.path.insert(0, "experiments")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_launcher_compares_recipes_on_digits(tmp_path):
    program = f"import sys; sys.argv = ['experiments/compare.py', *sys.argv[1:]]\n{LAUNCHED}"
    argv = [sys.executable, "-W", "ignore", "-c", program, "--silent", f"--workdir={tmp_path}/out"]
    argv += ["--config=experiments/configs/digits.py", "--config.model.settings.channels=(2,)"]
    argv += ["--eps=0.05", "--seconds=1", "--trials=1", "--seeds=1", "--examples=8"]
    argv += ["--norms=linf", "--rows=j1", "--rates=0.5"]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert "\n| j1 | C | eps 0.05, learning_rate 0.025 | " in done.stdout
    (seed,) = json.loads((tmp_path / "out/compare.json").read_text())["seeds"]["j1"]
    last = seed["rows"][-1]
    assert last["seconds"] > 0
    assert last["step"] == seed["last"]["asked"]["step"] > 20
    assert FGSM in last
    assert (tmp_path / "out/errors.png").is_file()
