"""A run's folder: it is claimed once, its log goes on, and damage is found and said."""

import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from lipreg import files, training, trees
from lipreg.runs import logs, storage

CONFIG = {"seed": 0, "train": {"epochs": 3, "sizes": (1, 2)}}


def a_state(scale: float = 1.0, width: int = 64) -> training.State:
    params = {"w": scale * jnp.arange(width, dtype=jnp.float32), "b": jnp.zeros(3)}
    tx = optax.sgd(0.1, 0.9)
    return training.init(
        jax.random.key(7), params, {"batch_stats": {"m": jnp.ones(3)}}, tx, ema=True
    )


def assert_same(a: training.State, b: training.State) -> None:
    def raw(tree):
        key = jax.random.key_data(tree.key)
        return jax.tree.leaves((tree.params, tree.model_state, tree.opt_state, tree.ema, key))

    jax.tree.map(np.testing.assert_array_equal, raw(a), raw(b))


def flip_bytes(folder) -> None:
    """In the middle of every data file of a checkpoint: some hold nothing that is read again."""
    files = [f for f in folder.rglob("d/*") if f.is_file()]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(bytes(content))


def test_a_claimed_folder_is_taken_up_again_by_the_same_config_only(tmp_path):
    workdir = tmp_path / "run"
    storage.claim(workdir, CONFIG)
    storage.claim(workdir, CONFIG)
    assert storage.read_config(workdir).to_dict() == CONFIG
    before = (workdir / "config.json").read_text()
    (workdir / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train\.epochs \(3 there, 4 asked\)"):
        storage.claim(workdir, {"seed": 0, "train": {"epochs": 4, "sizes": (1, 2)}})
    with pytest.raises(ValueError, match=r"seed \(0 there, 'absent' asked\)"):
        storage.claim(workdir, {"train": {"epochs": 3, "sizes": (1, 2)}})
    assert (workdir / "config.json").read_text() == before


def test_a_run_without_a_checkpoint_leaves_its_folder_free(tmp_path):
    storage.claim(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("")
    storage.claim(tmp_path, CONFIG | {"seed": 1})
    assert storage.read_config(tmp_path).seed == 1


def test_a_folder_whose_weights_were_measured_is_that_runs_though_these_are_gone(tmp_path):
    for measured in ("evaluations", "compared"):
        storage.claim(tmp_path / measured, CONFIG)
        (tmp_path / measured / measured).mkdir()
    storage.claim(tmp_path / "certified", CONFIG)
    (tmp_path / "certified" / "certificates.json").write_text("{}")
    for folder in tmp_path.iterdir():
        storage.claim(folder, CONFIG)
        with pytest.raises(ValueError, match="holds a run with another config: seed"):
            storage.claim(folder, CONFIG | {"seed": 1})


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "a package"}'])
def test_a_foreign_config_is_no_run(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: it holds no config"):
        storage.read_config(tmp_path)


def test_reports_that_are_broken_are_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')  # by a kill
    assert logs.metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    for line in ("[]", "{}", "nothing"):
        path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
        with pytest.warns(UserWarning, match="line 2 is no report"):
            assert logs.metrics(tmp_path) == [{"step": 1}]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty and not a run"):
        storage.claim(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="is a file"):
        storage.claim(tmp_path / "thesis.tex", CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_config_that_is_cut_short_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"seed":')
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        storage.read_config(tmp_path)


def test_a_command_is_kept_as_one_writes_it_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for program, kept in (
        (f"{tmp_path}/benchmarks/steps.py", "benchmarks/steps.py"),
        ("train.py", "train.py"),
        ("/elsewhere/train.py", "/elsewhere/train.py"),
    ):
        monkeypatch.setattr("sys.argv", [program, "--minutes=9"])
        assert storage.about()["command"] == f"{kept} --minutes=9"


def test_about_names_the_command_the_commit_and_the_hardware():
    about = storage.about()
    assert about["versions"]["jax"] == jax.__version__
    assert about["devices"] == ["cpu"] * jax.device_count()
    if shutil.which("git"):
        describe = ["git", "describe", "--always", "--dirty"]
        here = Path(storage.__file__).parent
        git = subprocess.run(describe, capture_output=True, text=True, cwd=here, check=False)
        assert about["commit"] == (git.stdout.strip() or "unknown")
    assert re.fullmatch(r"\w+ \(\w+\), \d+ cores", about["machine"])
    assert json.dumps(about)


def test_a_log_forgets_the_steps_that_will_come_again(tmp_path):
    with logs.Log(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, {"loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a kill in the middle of a line
    with logs.Log(tmp_path, step=20) as log:
        log.write(30, {"loss": 0.5})
    assert logs.metrics(tmp_path) == [
        {"step": 10, "loss": 0.1},
        {"step": 20, "loss": 0.05},
        {"step": 30, "loss": 0.5},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    state = a_state(3.0)
    with storage.checkpoints(tmp_path) as manager:
        assert storage.restore(manager, state) is None
        storage.save(manager, 5, state)
    with storage.checkpoints(tmp_path) as manager:
        assert_same(storage.restore(manager, a_state()), state)


def test_a_checkpoint_of_orbaxs_older_interface_is_read(tmp_path):
    state = a_state(3.0)
    leaves = trees.by_path(state)
    meta = {"sha256": trees.digest(leaves), "leaves": storage._shapes(leaves)}
    with orbax.checkpoint.CheckpointManager(tmp_path / "checkpoints") as manager:
        items = {
            "state": orbax.checkpoint.args.StandardSave(leaves),
            "meta": orbax.checkpoint.args.JsonSave(meta),
        }
        manager.save(5, args=orbax.checkpoint.args.Composite(**items))
    with storage.checkpoints(tmp_path) as manager:
        assert_same(storage.restore(manager, a_state()), state)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    with storage.checkpoints(tmp_path, keep=2) as manager:
        for step in (1, 2, 3):
            storage.save(manager, step, a_state(step))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_flipped_bytes_are_found_and_the_checkpoint_before_is_used(tmp_path):
    with storage.checkpoints(tmp_path) as manager:
        storage.save(manager, 1, a_state(1.0, 4096))
        storage.save(manager, 2, a_state(2.0, 4096))
    flip_bytes(tmp_path / "checkpoints" / "2")
    with storage.checkpoints(tmp_path) as manager:
        with pytest.warns(UserWarning, match="Checkpoint 2 .* is damaged"):
            found = storage.restore(manager, a_state(0.0, 4096))
        assert_same(found, a_state(1.0, 4096))
        storage.save(manager, 2, a_state(5.0, 4096))  # the run goes on and comes by step 2 again
    with storage.checkpoints(tmp_path) as manager:
        assert_same(storage.restore(manager, a_state(0.0, 4096)), a_state(5.0, 4096))


def test_when_every_checkpoint_is_damaged_the_run_says_so(tmp_path):
    with storage.checkpoints(tmp_path) as manager:
        storage.save(manager, 1, a_state(1.0, 4096))
    flip_bytes(tmp_path / "checkpoints" / "1")
    with (
        storage.checkpoints(tmp_path) as manager,
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=r"None of the checkpoints \[1\]"),
    ):
        storage.restore(manager, a_state(0.0, 4096))


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        (partial(a_state, width=65), r"ema\.w is \['float32', 64\] there"),
        (
            lambda: jax.tree.map(
                lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, a_state()
            ),
            r"b is \['float32', 3\] there and \['bfloat16', 3\]",
        ),
        (
            lambda: training.init(jax.random.key(0), {"v": jnp.ones(3)}, {}, optax.sgd(0.1, 0.9)),
            "absent",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_naming_the_leaf(tmp_path, change, leaf):
    with storage.checkpoints(tmp_path) as manager:
        storage.save(manager, 1, a_state())
    with storage.checkpoints(tmp_path) as manager, pytest.raises(ValueError, match=leaf):
        storage.restore(manager, change())


def test_weights_and_biases_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with logs.Log(tmp_path, logs=("jsonl", "wandb"), config={"seed": 3}) as log:
        log.write(1, {"loss": 2.0})
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert written.stat().st_size > 0
    assert logs.metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_two_processes_that_write_one_file_do_not_take_each_others(tmp_path, monkeypatch):
    path = tmp_path / "numbers.json"
    with files.replacing(path) as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        files.write(path, "theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.json"]
