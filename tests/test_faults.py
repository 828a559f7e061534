"""Kills, damage, full disks, planted code: a run goes on, or says so in one line."""

import io
import itertools
import json
import os
import pickle
import resource
import shutil
import signal
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from forked import EXPERIMENTS, FORKED, launch
from test_storage import CONFIG, a_state, assert_same

from lipreg import datasets, reports, runs
from lipreg.evaluation.store import Store
from lipreg.runs import logs, storage
from lipreg.runs.config import base_config

TRAIN = (
    str(EXPERIMENTS / "train.py"),
    f"--config={EXPERIMENTS}/configs/digits.py:j0",
    "--config.model.settings.channels=(2,)",
    "--config.train.epochs=5",
    "--config.report.every_steps=1",
    "--config.report.examples=16",
    "--config.report.pgd.steps=1",
    "--compile_cache=",
    "--silent",
)
IDENTITY = {"seed": 0}
PER_EPOCH = 20  # of 1,294 images in batches of 64


def limited(argv: list[str], log: str, largest_file: int) -> None:
    """In a child: `python argv` with a limit on what it may write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    launch(argv, log)


def start(workdir: Path, *arguments: str, largest_file: int = resource.RLIM_INFINITY):
    argv = [*TRAIN, f"--workdir={workdir}", *arguments]
    process = FORKED.Process(target=limited, args=(argv, f"{workdir}.log", largest_file))
    process.start()
    return process


def finish(process) -> int:
    process.join(60)
    process.kill()  # one that hangs
    process.join()
    return process.exitcode


def fill_a_log(workdir: str) -> None:
    """In a child: write rows until there is no space."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 << 10, 40 << 10))
    with logs.Log(workdir) as log:
        for step in itertools.count():
            log.write(step, dict.fromkeys("abcde", 0.5))


def test_a_run_holds_its_folder_and_after_kill_nine_goes_on_to_the_same_numbers(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unbroken, first = start(whole), start(killed)
    while not (killed / "checkpoints" / str(PER_EPOCH)).is_dir():
        assert first.is_alive(), Path(f"{killed}.log").read_text()
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(ValueError, match=r"killed is in use by another process"):
        storage.lock(killed).__enter__()
    os.kill(first.pid, signal.SIGKILL)
    assert finish(first) == -signal.SIGKILL
    assert PER_EPOCH <= len(logs.metrics(killed)) < 5 * PER_EPOCH
    assert finish(start(killed)) == 0
    assert finish(unbroken) == 0
    assert len(logs.metrics(whole)) == 5 * PER_EPOCH
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


# A file that may not grow any more stands for a disk that is full: the same calls fail.


def one_line(workdir: Path) -> str:
    message = Path(f"{workdir}.log").read_text()
    assert len(message.splitlines()) == 1, message
    return message


def test_no_space_for_the_log_is_one_line(tmp_path):
    late = "--config.report.checkpoint_every_epochs=5"
    assert finish(start(tmp_path / "run", late, largest_file=8 << 10)) == 2
    assert "[Errno 27] File too large" in one_line(tmp_path / "run")


def test_no_space_for_a_checkpoint_is_one_line_and_with_room_the_run_goes_on(tmp_path):
    workdir = tmp_path / "run"
    assert finish(start(workdir, largest_file=24 << 10)) == 2
    assert "checkpoints" in one_line(workdir)
    assert finish(start(workdir)) == 0
    assert len(logs.metrics(workdir)) == 5 * PER_EPOCH


def test_a_log_without_space_fails_and_never_waits(tmp_path):
    """TensorBoard's file grows faster than the other, and is the first that cannot."""
    process = FORKED.Process(target=fill_a_log, args=(str(tmp_path),))
    process.start()
    assert finish(process) == 1
    sizes = [f.stat().st_size for f in (tmp_path / "tensorboard").iterdir()]
    assert sum(sizes) > (tmp_path / "metrics.jsonl").stat().st_size


def test_a_kill_in_the_middle_of_the_claim_leaves_a_folder_that_can_be_claimed(tmp_path):
    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, storage.lock(tmp_path / "run"):
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            storage.claim(tmp_path / "run", CONFIG)
    storage.claim(tmp_path / "run", CONFIG)
    assert storage.read_config(tmp_path / "run").to_dict() == CONFIG


@pytest.mark.parametrize("work", ["evaluate", "certify", "train", "table"])
def test_a_read_only_folder_is_refused_before_the_work(work, tmp_path, monkeypatch):
    config = base_config("j0", {"j0": {}})
    config.evaluation.examples = 3
    images = datasets.Dataset(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, np.int32), 10)
    loaded = runs.Loaded(config, None, images, 1, 1)  # of no network, so no work can be done
    do = {
        "evaluate": lambda: reports.evaluate(loaded, tmp_path),
        "certify": lambda: reports.certify(loaded, tmp_path, examples=3),
        "train": lambda: storage.check_workdir(tmp_path / "run", config.to_dict()),
        "table": lambda: reports.table([tmp_path], tmp_path / "table"),
    }
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match=rf"cannot be written: {tmp_path} is read-only"):
        do[work]()
    assert not list(tmp_path.iterdir())


def test_an_identity_that_is_none_is_named(tmp_path):
    (tmp_path / "identity.json").write_text("[]")
    with pytest.raises(ValueError, match=r"identity\.json cannot be read: it is no evaluation's"):
        Store(tmp_path, IDENTITY)


DAMAGE = {
    "a bit is flipped": lambda content: (
        content[: (n := len(content) // 2)] + bytes([content[n] ^ 1]) + content[n + 1 :]
    ),
    "the second half is gone": lambda content: content[: len(content) // 2],
    "the content is gone": lambda content: b"",
    "the file is gone": None,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    with storage.checkpoints(folder) as manager:
        for step in (1, 2):
            storage.save(manager, step, a_state(float(step)))
    return folder


def outcome(folder: Path) -> str:
    """What `restore` makes of the two checkpoints: sound or older, both verified, or refused."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with storage.checkpoints(folder) as manager:
                found = storage.restore(manager, a_state(0.0))
        except ValueError as error:
            return f"refused: {error}"
    warned = any("Checkpoint 2 " in str(w.message) for w in caught)
    assert_same(found, a_state(1.0 if warned else 2.0))
    return "older" if warned else "sound"


@pytest.mark.parametrize("kind", DAMAGE)
def test_no_damage_to_any_file_of_a_checkpoint_is_silent(kind, saved, tmp_path):
    found = {}
    for file in [f for f in (saved / "checkpoints" / "2").rglob("*") if f.is_file()]:
        folder = shutil.copytree(saved, tmp_path / str(len(found)))
        damaged = folder / file.relative_to(saved)
        if change := DAMAGE[kind]:
            damaged.write_bytes(change(file.read_bytes()))
        else:
            damaged.unlink()
        found[str(file.relative_to(saved))] = outcome(folder)
    assert not any("\n" in text for text in found.values())
    assert found["checkpoints/2/_CHECKPOINT_METADATA"] != "sound"
    assert found["checkpoints/2/state/manifest.ocdbt"] == "older"
    assert "sound" in found.values()


class Bomb:
    """When unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def a_pickle(file: Path) -> bytes:
    return pickle.dumps(Bomb(file))


def an_array_of_objects(file: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, l2=np.array([Bomb(file)]), linf=np.zeros(1))
    return buffer.getvalue()


def code(file: Path) -> bytes:
    return f"open({str(file)!r}, 'w')".encode()


def half_a_file(file: Path) -> bytes:
    return an_array_of_objects(file)[:200]


PGD = "evaluations/pgd_test_3"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run with a checkpoint and all that an evaluation leaves to be read."""
    run = tmp_path_factory.mktemp("runs") / "run"
    config = base_config("j0", {"j0": {}})
    config.model.settings = {"channels": (2,), "batch_norm": False}
    storage.claim(run, config.to_dict())
    with jax.numpy_dtype_promotion("standard"), storage.checkpoints(run) as manager:
        storage.save(manager, 1, runs.prepare(config).state)
    Store(run / PGD / "step_1", IDENTITY).put("l2-0", found=np.zeros(3))
    np.savez_compressed(run / PGD / "distances.npz", l2=np.zeros(3), linf=np.zeros(3))
    (run / PGD / "evaluation.json").write_text(json.dumps({"row": {}}))
    runs.load(run)
    return run


READERS = {
    "config.json": runs.load,
    "checkpoints/1/**/*": runs.load,
    f"{PGD}/distances.npz": lambda run: reports.table([run], run / "table"),
    f"{PGD}/evaluation.json": lambda run: reports.table([run], run / "table"),
    f"{PGD}/step_1/identity.json": lambda run: Store(run / PGD / "step_1", IDENTITY),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint 1 .* is damaged")
@pytest.mark.parametrize("planted", [a_pickle, an_array_of_objects, code, half_a_file])
@pytest.mark.parametrize("files", READERS)
def test_what_is_planted_in_a_run_is_not_executed_but_named(files, planted, evaluated, tmp_path):
    run, proof = shutil.copytree(evaluated, tmp_path / "run"), tmp_path / "executed"
    for file in [f for f in run.glob(files) if f.is_file()]:
        file.write_bytes(planted(proof))
    with pytest.raises(ValueError) as caught:
        READERS[files](run)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert (files if "*" not in files else "None of the checkpoints [1]") in message
    assert not proof.exists()


@pytest.mark.parametrize("planted", [a_pickle, an_array_of_objects, code, half_a_file])
def test_what_is_planted_among_an_evaluations_results_counts_as_missing(planted, tmp_path):
    store, proof = Store(tmp_path / "store", IDENTITY), tmp_path / "executed"
    store.put("l2-0", found=np.arange(3))
    np.testing.assert_array_equal(store.get("l2-0")["found"], np.arange(3))
    (tmp_path / "store" / "l2-0.npz").write_bytes(planted(proof))
    assert store.get("l2-0") is None
    assert not proof.exists()


def test_the_planted_pickles_would_have_shown_themselves(tmp_path):
    proof = tmp_path / "executed"
    pickle.loads(a_pickle(proof))
    assert proof.exists()
    proof.unlink()
    with np.load(io.BytesIO(an_array_of_objects(proof)), allow_pickle=True) as file:
        dict(file)
    assert proof.exists()
