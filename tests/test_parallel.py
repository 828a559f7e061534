"""One program on many devices and on several processes: the same numbers."""

import json
import signal
import socket
import time
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK
from forked import EXPERIMENTS, FORKED, launch

from lipreg import attacks, batching, datasets, models, objectives, optimizers, parallel, training
from lipreg.evaluation import Stage, cascade
from lipreg.norms import L2, LINF

KEY = jax.random.key(0)
X = np.asarray(jax.random.randint(jax.random.fold_in(KEY, 1), (96, 6, 6, 1), 0, 256), np.uint8)
Y = np.asarray(jax.random.randint(jax.random.fold_in(KEY, 2), (96,), 0, 3), np.int32)
MODEL = models.build("CNN", classes=3, activation="softplus", channels=(4,), batch_norm=True)
APPLY = models.functional(MODEL)
STEP = training.make_step(APPLY, objectives.j2_lip, optimizers.sgd(0.05))
STRENGTHS = {"eps": 0.3, "lam": 0.1}


def first_state():
    variables = MODEL.init(KEY, jnp.zeros((1, 6, 6, 1)), train=False)
    model_state = {"batch_stats": variables["batch_stats"]}
    return training.init(KEY, variables["params"], model_state, optimizers.sgd(0.05))


def fifty_steps(**options):
    dataset = datasets.Dataset(X, Y, 3)
    fit = partial(training.fit, batch_size=16, steps=50, every=50, key=KEY)
    *_, (state, parts) = fit(STEP, first_state(), STRENGTHS, dataset, **options)
    return jax.device_get((state.params, state.model_state)), parts


def test_two_and_eight_devices_train_the_parameters_of_one():
    expected, parts = fifty_steps()
    for devices in (2, 8):
        with parallel.over(jax.devices()[:devices]):
            found, found_parts = fifty_steps()
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found_parts["lip"], parts["lip"], rtol=1e-4)


def test_several_steps_in_one_program_are_the_same_steps():
    # Up to rounding: each is a program of its own.
    chex.assert_trees_all_close(
        fifty_steps(per_dispatch=4)[0], fifty_steps()[0], rtol=1e-5, atol=1e-6
    )


def test_the_devices_find_the_adversarial_images_of_one():
    w1, w2 = (jax.random.normal(jax.random.fold_in(KEY, n), (36, 36)) for n in (3, 4))
    two_layers = lambda w1, w2, x: jnp.tanh((x.reshape(len(x), -1) - 0.5) @ w1) @ w2
    logits_fn = jax.tree_util.Partial(two_layers, w1, w2)
    x = np.asarray(datasets.to_unit(X[:40]))
    y = np.asarray(logits_fn(x).argmax(1))
    pgd = lambda key, f, x, y, eps, round_: attacks.pgd(key, f, x, y, eps, norm=LINF, steps=5)
    deepfool = jax.jit(partial(attacks.deepfool, norm=L2, steps=10))

    def found():
        outcome = cascade(KEY, logits_fn, x, y, 0.05, [Stage("pgd", pgd)], batch_size=20)
        nearest = batching.map_batches(partial(deepfool, KEY, logits_fn), 10, x, y)
        return outcome.x_adv, outcome.broken_by, nearest

    expected = found()
    assert expected[1].max() > 0  # the attack breaks some
    with parallel.over():
        several = found()
    np.testing.assert_array_equal(several[1], expected[1])
    chex.assert_trees_all_close(several, expected, atol=1e-5)


def test_rows_are_shared_and_a_batch_is_reduced_across_the_devices():
    assert parallel.multiple(10) == 10
    with parallel.over():
        assert parallel.multiple(10) == 16
        rows = parallel.shard(np.arange(16.0, dtype=np.float32))
        assert [shard.data.shape for shard in rows.addressable_shards] == [(2,)] * 8
        assert jax.jit(jnp.max)(rows).sharding.is_fully_replicated
        assert parallel.replicate(np.ones(3)).sharding.is_fully_replicated
        with pytest.raises(ValueError, match="dimension size is 10"):
            parallel.shard(np.zeros(10))
        np.testing.assert_array_equal(parallel.gather(rows), np.arange(16))


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ("somewhere", "write auto or HOST:PORT,COUNT,NUMBER"),
        ("host:1,2", "write auto or HOST:PORT,COUNT,NUMBER"),
        ("host,2,0", "write auto or HOST:PORT,COUNT,NUMBER"),
        ("host:1,2,2", "NUMBER is from 0 to COUNT - 1"),
        *((f"host:{port},2,0", "PORT is from 1 to 65535") for port in ("0", "99999", "-1", "")),
    ],
)
def test_what_names_the_processes_is_checked(processes, message):
    with pytest.raises(ValueError, match=message):
        parallel.start(processes)


# Two real processes, one device each, that talk over the loopback.

SMALL = (
    *(f"--config={EXPERIMENTS}/configs/digits.py:j2_lip_tanh", "--silent"),
    *("--config.train.epochs=3", "--config.train.batch_size=64"),
    *("--config.model.settings.channels=(4,)", "--config.report.every_steps=5"),
)


@pytest.fixture
def launched(tmp_path):
    """Starts one command `count` times, as the processes of one run; returns each and its log."""
    started = []

    def start(script, *arguments, count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        running = []
        for number in range(count):
            log = tmp_path / f"log{len(started)}"
            argv = [str(EXPERIMENTS / script), *arguments]
            argv += [f"--processes={address},{count},{number}"] if count > 1 else []
            options = {"flags": QUICK, "cache": str(tmp_path / "cache")}
            process = FORKED.Process(target=launch, args=(argv, str(log)), kwargs=options)
            process.start()
            started.append(process)
            running.append((process, log))
        return running

    yield start
    for process in started:
        process.kill()
        process.join()


def finish(running):
    for process, log in running:
        process.join(240)
        assert process.exitcode == 0, log.read_text()
    return [log.read_text() for _, log in running]


PGD = "evaluations/pgd_test_50/distances.npz"


def last(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this platform")
def test_two_processes_train_resume_after_a_kill_and_evaluate_as_one(launched, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    finish(launched("train.py", *SMALL, f"--workdir={one}", count=1))

    broken = launched("train.py", *SMALL, f"--workdir={two}", count=2)
    while not list((two / "checkpoints").glob("[0-9]*")) and broken[0][0].is_alive():
        time.sleep(0.05)
    for process, _ in reversed(broken):  # a scheduler does the same when one is gone
        process.kill()
        process.join()
    assert last(two)["step"] < last(one)["step"]

    finish(launched("train.py", *SMALL, f"--workdir={two}", count=2))
    assert last(two).keys() == last(one).keys()
    for name, value in last(one).items():
        np.testing.assert_allclose(last(two)[name], value, rtol=1e-3, atol=2e-2, err_msg=name)

    evaluate = partial(launched, "evaluate.py", "--silent", "--examples=50")
    finish(evaluate(f"--run={one}", count=1))
    said = finish(evaluate(f"--run={two}", count=2))
    assert "l2" in said[0]
    assert "l2" not in said[1]  # one of them writes
    with np.load(one / PGD) as a, np.load(two / PGD) as b:
        for norm in ("l2", "linf"):
            close = np.isclose(a[norm], b[norm], rtol=0.05)
            assert close.mean() > 0.9
