"""benchmarks/compare_torch.py: the network goes there and back; attacks stay where they may."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lipreg import datasets, models, runs
from lipreg.runs import compare, logs
from lipreg.runs.build import ROBUST
from lipreg.runs.config import base_config
from lipreg.training.overfitting import PGD

torch = pytest.importorskip("torch")


@pytest.fixture
def theirs(benchmark):
    return benchmark("compare_torch")


@pytest.mark.parametrize(("batch_norm", "head"), [(False, "linear"), (True, "tanh")])
def test_weights_come_back_from_torch_as_they_went(theirs, batch_norm, head):
    config = base_config("j0" + "_tanh" * (head == "tanh"), {"j0": {}})
    settings = {"channels": (3, 5), "hidden": 7, "batch_norm": batch_norm}
    net = models.network(models.build("CNN", classes=4, head=head, **settings))
    x = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3))
    params, state = net.init(jax.random.key(1), x)
    images = datasets.Dataset(np.asarray(x), np.zeros(2, np.int32), 4)
    bound = jax.tree_util.Partial(lambda *_: None, params, state)
    network = theirs.CNN(runs.Loaded(config, bound, images, 0, 0))
    back = theirs.returned(network)
    assert jax.tree.structure(back) == jax.tree.structure((params, state))
    jax.tree.map(np.testing.assert_array_equal, back, (params, state))
    logits = network(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)))
    ours, _ = net.apply(*back, x, False, None)
    np.testing.assert_allclose(logits.numpy(), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("norm", "size"), [("linf", np.inf), ("l2", 2)])
def test_the_attack_fills_the_ball_and_leaves_neither_it_nor_the_box(theirs, norm, size):
    torch.manual_seed(0)
    x, w = torch.rand(16, 1, 4, 4), torch.randn(16, 2)
    x[0] = 0.5
    x_adv = theirs.attack(norm, 0.1, steps=10, step_size=0.025)(
        lambda x: x.flatten(1) @ w, x, torch.zeros(16, dtype=torch.int64)
    )
    moved = np.linalg.norm((x_adv - x).flatten(1).numpy(), size, axis=1)
    assert moved.max() <= 0.1 + 1e-6
    np.testing.assert_allclose(moved[0], 0.1, rtol=1e-4)  # no end of the box is near
    up = w[:, 1] - w[:, 0]  # raises the loss of class 0
    most = 0.1 * torch.linalg.vector_norm(up, 1 if norm == "linf" else 2)
    assert (x_adv - x)[0].flatten() @ up > 0.9 * most
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_crops_and_flips_are_those_of_the_padded_image(theirs):
    x = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1).repeat(64, 0)
    data = base_config("j0", {"j0": {}}).data
    data.update({"pad": 1, "flip": True})
    crops = theirs.augmented(np.random.default_rng(0), x, data)
    padded = np.pad(x[0, :, :, 0], 1)
    every = [
        side[r : r + 3, c : c + 4]
        for side in (padded, np.pad(x[0, :, ::-1, 0], 1))
        for r in range(3)
        for c in range(3)
    ]
    assert {crop[..., 0].tobytes() for crop in crops} <= {one.tobytes() for one in every}
    assert len({crop.tobytes() for crop in crops}) > 10


def test_a_config_that_the_loop_does_not_follow_is_refused(theirs):
    config = base_config("j0", {"j0": {}})
    theirs.check(config)
    config.train.ema = 0.99
    with pytest.raises(ValueError, match=r"config.train.ema = 0.99; this loop has 0.0 only"):
        theirs.check(config)


def test_a_recipe_is_trained_and_its_run_is_one_of_ours(theirs, tmp_path):
    root = Path(__file__).parents[1]
    argv = [sys.executable, "benchmarks/compare_torch.py", "--recipe=pgd", "--eps=0.0625"]
    argv += [f"--config={root}/experiments/configs/digits.py", "--seconds=0.4", "--trials=2"]
    argv += ["--config.model.settings.channels=(4,8)", f"--workdir={tmp_path}"]
    for _ in range(2):  # the second finds what is there
        done = subprocess.run(
            argv, cwd=root, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}
        )
        assert done.returncode == 0, done.stderr
        errors = [compare.error(tmp_path / f"trial-{k}") for k in range(2)]
        assert f"seed-0: rate {theirs.RATES[int(np.argmin(errors))]:g}, " in done.stdout
    found = runs.load(tmp_path / "seed-0")
    assert found.config.report.pgd.eps == 0.0625
    last = logs.metrics(tmp_path / "seed-0")[-1]
    assert {ROBUST, PGD, "seconds"} <= last.keys()
    assert last["step"] == found.step == found.config.train.steps
