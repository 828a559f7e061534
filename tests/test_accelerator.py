"""benchmarks/accelerator.py: its stages at toy size, and how failures are reported."""

import os
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import jax
import pytest
from absl import flags

from lipreg import files
from lipreg.runs import storage
from lipreg.runs.config import base_config

ROOT = Path(__file__).parents[1]
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@pytest.fixture
def accelerator(benchmark, monkeypatch):
    monkeypatch.setattr("sys.argv", ["accelerator.py"])
    module = benchmark("accelerator")
    flags.FLAGS.mark_as_parsed()  # at their defaults
    return module


@pytest.fixture
def program(accelerator, monkeypatch, tmp_path):
    """Replaces a stage's process by a program."""

    def write(text):
        (tmp_path / "stage.py").write_text(text)
        monkeypatch.setattr(accelerator, "__file__", str(tmp_path / "stage.py"))

    return write


def test_a_stage_that_fails_leaves_one_line_and_its_log(accelerator, program, tmp_path):
    program("raise ValueError('no kernel')")
    line = accelerator.stage("price", 60.0, tmp_path)
    assert line.startswith("| price | ")
    assert line.endswith("| failed: ValueError: no kernel |")
    assert "Traceback" in (tmp_path / "price.log").read_text()


def test_a_stage_that_overruns_is_ended_with_all_that_it_has_started(
    accelerator, program, tmp_path
):
    program(
        "import pathlib, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', "
        f"\"import time; time.sleep(6); open('{tmp_path}/late', 'w')\"])\n"
        f"pathlib.Path('{tmp_path}/begun').touch()\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    line = accelerator.stage("deck", 4.0, tmp_path)
    assert line.endswith("| stopped: its time was out |")
    assert time.monotonic() - start < 30  # not the 60 that it would sleep
    assert (tmp_path / "begun").exists()
    time.sleep(3.5)
    assert not (tmp_path / "late").exists()


def test_an_end_of_the_command_ends_the_running_stage(accelerator, tmp_path):
    for name in ("accelerator.py", "timing.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path)
    text = (tmp_path / "accelerator.py").read_text()
    stage = f"import pathlib; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); import time; "
    stage += f"time.sleep(5); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    argv = '[sys.executable, __file__, f"--alone'
    assert argv in text
    text = text.replace(argv, f'[sys.executable, "-c", {stage!r}, f"--alone')
    (tmp_path / "accelerator.py").write_text(text)
    options = ["--stages=deck", f"--out={tmp_path / 'out'}"]
    with subprocess.Popen([sys.executable, str(tmp_path / "accelerator.py"), *options]) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
    assert process.returncode == 143
    time.sleep(6)
    assert not (tmp_path / "late").exists()


def test_a_stage_that_starts_others_refuses_a_tpu(accelerator, monkeypatch, tmp_path):
    from stages import comparison, deck
    from stages.clock import Clock

    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for stage in (deck, comparison):
        with pytest.raises(RuntimeError, match="a TPU serves one process"):
            next(stage.run(Clock.lasting(60.0), tmp_path))


def test_a_deck_that_would_not_see_an_epoch_is_not_trained(accelerator, monkeypatch, tmp_path):
    from stages import deck
    from stages.clock import Clock

    monkeypatch.setattr(deck, "toy", lambda: False)
    monkeypatch.setattr(deck, "fitting", lambda seconds: 80)
    with pytest.raises(RuntimeError, match=r"135 s are 0.2 epochs a row; give it more"):
        next(deck.run(Clock.lasting(135.0), tmp_path))


def test_rows_of_the_deck_are_spread_over_the_cards(accelerator, monkeypatch, tmp_path):
    from stages import deck
    from stages.clock import Clock

    seen = {}

    def launched(command, clock, env):
        seen.setdefault(env.get("CUDA_VISIBLE_DEVICES"), set()).add(env[MEMORY])
        return ""

    monkeypatch.setattr(deck, "launched", launched)
    made = deck.Size(tuple(map(deck.Row.read, deck.ROWS)), "cifar10", (), 20, 4)
    places = {row: tmp_path / row.label for row in made.rows}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    list(deck.at_once(places, made, [], Clock.lasting(9)))
    assert seen == {None: {"0.113"}}  # on CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for cards, memory in (("", "0.113"), ("2,5,7", "0.300")):
        seen.clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
        list(deck.at_once(places, made, [], Clock.lasting(9)))
        named = cards.split(",") if cards else [str(n) for n in range(jax.local_device_count())]
        assert seen.keys() == set(named)
        assert not cards or seen["5"] == {memory}


def test_a_stage_reports_part_by_part_and_ends_when_its_clock_is_out(accelerator, tmp_path):
    from stages import price
    from stages.clock import Clock

    assert list(price.run(Clock.lasting(-1.0), tmp_path)) == []
    first = next(price.run(Clock.lasting(600.0), tmp_path))
    table = [line for line in first.splitlines() if line.startswith("| CNN/4 ")]
    assert [line.split(" | ")[3] for line in table] == ["j0", "j2_lip"]
    assert "Error" not in first


def test_every_objective_and_attack_is_compared_with_the_cpu(accelerator):
    from stages import points, sound

    from lipreg import attacks, objectives

    assert {name for name, _ in sound.OBJECTIVES} == set(objectives.__all__)
    assert {name for name, *_ in points.ATTACKS} == set(attacks.__all__)


def test_the_decks_rows_end_one_by_one_and_a_failure_leaves_the_others(
    accelerator, monkeypatch, tmp_path
):
    from stages import deck
    from stages.clock import Clock

    begun = []

    def launched(command, clock, env):
        launcher, run = command[0], Path(command[1].partition("=")[2])
        begun.append((launcher, run.name, command[-1]))
        if run.name == "j1" and "--norms=linf" in command:
            return "no time left"
        if "--norms=l2" in command:
            errors = {"0.5": {"clean": 0.25, "square": 0.75}}
            measured = {"errors": errors, "checks": [{"status": "pass"}, {"status": "fail"}]}
            record = run / "evaluations" / "autoattack_test_4_l2" / "evaluation.json"
            record.parent.mkdir(parents=True)
            files.write_json(record, {"norms": {"l2": measured}})
        return ""

    monkeypatch.setattr(deck, "launched", launched)
    monkeypatch.setattr(deck, "tabled", lambda places, folder: f"PGD of {len(places)} runs")
    *_, report = deck.run(Clock.lasting(600.0), tmp_path)
    attacked = [run for launcher, run, flag in begun if flag.startswith("--examples")]
    assert attacked == ["j0", "j1"]  # the first row of its head compiles for the other
    assert "PGD of 2 runs" in report
    assert "j1, autoattack linf: no time left." in report
    assert report.count("| 75 | 1 |") == 2


def test_a_row_of_the_deck_has_fields_of_its_own(accelerator, monkeypatch, tmp_path):
    from stages import deck
    from stages.clock import Clock

    told = {}

    def launched(command, clock, env):
        launcher, *rest = command
        place = next(a for a in rest if a.startswith(("--workdir", "--run")))
        told.setdefault(Path(place).name, []).append((launcher, rest))
        return ""

    rows = ["j0", "j2/options.method=penalty", "j2_lip_tanh/model.activation=silu"]
    made = deck.Size(tuple(map(deck.Row.read, rows)), "cifar10", (), 20, 4)
    assert [row.price for row in made.rows] == [3, 6, pytest.approx(5, abs=0.1)]
    read = lambda text: deck.Row.read(text).price
    assert [read(text) for text in ("tikhonov", "pgd_at", "j2_lip/options.top_k=0")] == [6, 24, 11]
    assert read("j1/options.method=difference(h=0.1)") == 8
    assert len({row.network for row in made.rows}) == 2  # a penalty is attacked as j0 is
    assert deck.begun(tmp_path) == 0
    config = base_config("j0", {"j0": {}})
    config.train.steps = 123
    storage.claim(tmp_path / "runs/j0", config.to_dict())
    assert deck.begun(tmp_path) == 123
    monkeypatch.setattr(deck, "launched", launched)
    places = {row: tmp_path / row.label for row in made.rows}
    parts = [(row.label, part) for row, part, _ in deck.at_once(places, made, [], Clock.lasting(9))]
    assert set(parts) == {(row, part) for row in told for part in deck.PARTS}
    assert parts.index(("j0", "pgd")) < parts.index(("j2_penalty", "pgd"))
    train, options = told["j2_lip_tanh_silu"][0]
    assert train == "train"
    assert options[0].endswith("cifar10.py:j2_lip_tanh")
    assert options[-1] == "--config.model.activation=silu"


def test_a_comparison_whose_time_is_out_leaves_what_was_attacked(
    accelerator, monkeypatch, tmp_path
):
    from stages import comparison
    from stages.clock import Clock

    def run(argv, *, timeout, **_):
        place = Path(next(a for a in argv if a.startswith("--workdir")).partition("=")[2])
        place.mkdir(parents=True)
        (place / "compare.md").write_text("| j0 |\n\nNot attacked yet: j2.\n")
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(comparison.subprocess, "run", run)
    (report,) = comparison.run(Clock.lasting(60.0), tmp_path)
    assert "| j0 |" in report
    assert report.endswith("The time was out; the same command goes on from here.\n")


def test_a_comparison_that_fails_leaves_what_was_attacked_and_says_why(
    accelerator, monkeypatch, tmp_path
):
    from stages import comparison
    from stages.clock import Clock

    killed = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(comparison.subprocess, "run", lambda *_, **__: killed)
    parts = comparison.run(Clock.lasting(60.0), tmp_path)
    assert "It failed: no word; the same command" in next(parts)
    with pytest.raises(RuntimeError, match="l2: no word"):
        next(parts)


def test_all_stages_run_at_toy_size_though_one_fails_and_one_overruns(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    stages = tmp_path / "benchmarks/stages"
    (stages / "points.py").write_text("raise ValueError('no kernel')\n")
    (stages / "sweep.py").write_text("import time\n\ntime.sleep(1000)\n")
    minutes, out = 2.0, tmp_path / "out"
    argv = [sys.executable, "benchmarks/accelerator.py", f"--minutes={minutes}", f"--out={out}"]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    subprocess.run(argv, check=True, cwd=tmp_path, env=env)
    lines = [line.split(" | ") for line in (out / "stages.md").read_text().splitlines()[2:]]
    how = {name.removeprefix("| "): end.removesuffix(" |") for name, _, end in lines}
    assert how.pop("points") == "failed: ValueError: no kernel"
    assert how.pop("sweep") == "stopped: its time was out"
    assert sum(float(seconds) for _, seconds, _ in lines) < 1.1 * 60 * minutes
    assert not any(end.startswith("failed") for end in how.values()), how
    said = {  # by a stage that a slow machine has cut, too
        "sound": "16 steps against 8, a checkpoint read back, and 8 more: weights 0e+00 apart",
        "price": "| CNN/4 ",
        "against_torch": "# Against PyTorch",
        "deck": "| j1 | ",
        "comparison": "## l2 0.502",
    }
    assert how.keys() == said.keys()
    reports = {name: (out / f"{name}.md").read_text() for name in said}
    for name, words in said.items():
        assert words in reports[name]
    assert not re.search("Error|nan", reports["sound"] + reports["price"])
    failures = re.findall(r"^\w+, (?:train|pgd|autoattack \w+): (.*)$", reports["deck"], re.M)
    assert {*failures} <= {"no time left."}


def test_the_stages_that_are_replaced_above_and_several_devices(accelerator, tmp_path):
    del accelerator  # it has made the stages importable
    points, sound, sweep, clock = map(
        import_module, ("stages.points", "stages.sound", "stages.sweep", "stages.clock")
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = next(points.run(clock.Clock.lasting(60), tmp_path))  # the first few attacks
        counts = next(sweep.run(clock.Clock.lasting(60), tmp_path))
        apart = sound.sharded()
    rows = [line.split(" | ") for line in found.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == points.AT_ONCE
    assert not any("Error" in cell for row in rows for cell in row), found
    assert len([line for line in counts.splitlines() if line.startswith("| j2_lip | ")]) == 2
    assert "Error" not in counts
    on, off = re.search(r"on (\d+) devices and on one: (\S+) apart", apart).groups()
    assert int(on) == jax.device_count() > 1
    assert float(off) < 1e-5
