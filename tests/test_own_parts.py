"""A config names an outsider's parts; their run is read without what trained it."""

import json
import shutil
import sys
from functools import partial

import jax
import numpy as np
import pytest

from lipreg import datasets, norms, objectives, reports, runs
from lipreg.runs import build, storage
from lipreg.runs.checks import check
from lipreg.runs.config import base_config, complete, differing, label, options, strengths

OBJECTIVE = '''
import jax
import jax.numpy as jnp
from lipreg.losses import cross_entropy, kl
from lipreg.norms import LINF


def noisy(logits_fn, x, y, *, eps, beta: float, key, loss=cross_entropy, frozen=None, norm=LINF,
          bounds=(0.0, 1.0), steps=3, clip=True, form="kl", transform=None, distance=kl):
    """A random step in place of TRADES' ascent."""
    x_adv = jnp.clip(x + eps * norm.direction(jax.random.normal(key, x.shape)), *bounds)
    logits, aux = logits_fn(x)
    attacked, _ = logits_fn(x_adv)
    value, gap = loss(logits, y).mean(), distance(attacked, jax.nn.softmax(logits)).mean()
    return value + beta * gap, {"loss": value, "gap": gap, "aux": aux}


def smoothed(logits, y, *, by=0.1):
    return (1 - by) * cross_entropy(logits, y) - by * jax.nn.log_softmax(logits).mean(-1)


def bare(logits_fn, x, y):
    return 0.0, {}


def broken(logits_fn, x, y, *, loss=cross_entropy, frozen=None, rate=float("nan")):
    return undefined


number = 3
'''
NETWORK = """
from flax import nnx


class Net(nnx.Module):
    def __init__(self, features, classes, width=4, *, rngs):
        self.first = nnx.Linear(features, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x.reshape(len(x), -1)))))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of an outsider, with an objective in one file and a network in another."""
    (tmp_path / "my_objectives.py").write_text(OBJECTIVE)
    (tmp_path / "my_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("my_objectives", "my_networks"):
        sys.modules.pop(name, None)
    build._parts.cache_clear()


@pytest.fixture
def features(monkeypatch):
    """Forty vectors of five features between -3 and 3, of two classes."""

    def load(name, split, *, bounds, **_):
        assert bounds == (-3.0, 3.0)
        rng = np.random.default_rng(len(split))
        x = rng.uniform(-3, 3, (40, 5)).astype(np.float32)
        return datasets.Dataset(x, (x[:, 0] > 0).astype(np.int32), 2)

    monkeypatch.setattr(datasets, "load", load)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers and floats
        yield


def config(**changes):
    config = base_config("my_objectives:noisy", {})
    config.strengths.update({"eps": 0.1, "beta": 2.0})
    config.options.bounds = config.data.bounds = (-3.0, 3.0)
    config.model.name = "my_networks:Net(features=5, width=3)"
    config.loss = "my_objectives:smoothed(by=0.2)"
    config.train.update({"optimizer": "adamw(b2=0.95)", "epochs": 2, "batch_size": 8, "ema": 0.5})
    config.train.update({"ramp": 0.5, "ramped": "beta", "learning_rate": 0.01})
    config.report.update({"examples": 8, "every_steps": 5})
    config.evaluation.update({"examples": 8, "batch_size": 8, "steps": 2, "radii": 3})
    config.update_from_flattened_dict(changes)
    return config


def test_strengths_and_options_of_an_objective_are_read_from_its_signature(folder):
    assert strengths("my_objectives:noisy") == ("eps", "beta")
    held = {"norm": "linf", "bounds": (0.0, 1.0), "steps": 3, "clip": True, "form": "kl"}
    assert options("my_objectives:noisy") == held  # and neither None nor a function
    row = base_config("my_objectives:noisy", {})
    assert np.isnan(list(row.strengths.values())).all()
    row.lock().strengths.eps = 0.1
    with pytest.raises(ValueError, match=r"strengths.beta = nan: it is not given, and my_objec"):
        check(row)
    assert label(row) == "noisy"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": "my_objectives:number"}, "my_objectives:number is a int; a loss is"),
        ({"loss": "my_objectives:smoothed(of=1)"}, "No option 'of' of .*; it takes by"),
        ({"model.name": "my_networks:Nets"}, "my_networks has no 'Nets'"),
        ({"model.name": "my_networks:Net(features=5, depth=3)"}, "No option 'depth'"),
        ({"model.name": "my_networks:Net(features=5, classes=3)"}, "the data has its classes"),
        (
            {"model.name": "my_networks:Net(features=7)"},
            r"Net\(.*\) cannot be made for inputs \[5\]",
        ),
        ({"model.head": "tanh"}, "head = 'tanh', and Net takes no head"),
        ({"model.activation": "softplus"}, "activation = 'softplus', and Net takes no activation"),
        ({"train.optimizer": "adamw(clip=1)"}, r"adamw\(clip=1\); write config.train.clip = 1"),
        ({"train.optimizer": "adamw(b9=1)"}, "No option 'b9' of the optimizer 'adamw'"),
        ({"train.optimizer": "adam", "train.momentum": 0.5}, r"train.momentum = 0.5; only sgd"),
        (
            {"train.optimizer": "sgd_of:mine", "train.momentum": 0.5},
            "train.momentum = 0.5; only sgd",
        ),
        ({"train.ramped": "lam"}, r"has no lam to grow: it has beta, eps, and"),
        ({"data.bounds": (1.0, -1.0)}, r"config.data.bounds = \(1.0, -1.0\); .* \(low, high\)"),
        ({"data.flip": True}, r"config.data.flip = True; it is for images, .* shape \[5\]"),
    ],
)
def test_parts_that_do_not_fit_are_told_in_one_line(changes, told, folder, features):
    with pytest.raises(ValueError, match=told) as raised:
        runs.prepare(config(**changes))
    assert "\n" not in str(raised.value)


def test_what_is_no_objective_is_told_in_one_line(folder, features):
    with pytest.raises(ValueError, match=r"number is a int; an objective is a function of"):
        base_config("my_objectives:number", {})
    other = base_config("my_objectives:bare", {})
    other.model.name, other.data.bounds = "my_networks:Net(features=5)", (-3.0, 3.0)
    other.train.batch_size = 8
    with pytest.raises(ValueError, match=r"A step of my_objectives:bare .* \(TypeError: bare\(\)"):
        runs.prepare(other)
    other.objective, other.options = "my_objectives:broken", options("my_objectives:broken")
    with pytest.raises(ValueError, match=r"A step of my_objectives:broken .* \(NameError: name"):
        runs.prepare(other)
    assert not differing(other, other.copy_and_resolve_references())  # NaN among its options


def test_a_run_is_read_and_evaluated_without_what_trained_it(folder, features):
    trained = runs.train_run(runs.prepare(config()), folder / "run", silent=True)
    before = runs.load(folder / "run")
    assert "my_objectives" in sys.modules
    (folder / "my_objectives.py").unlink()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    del sys.modules["my_objectives"]
    written = json.loads((folder / "run" / "config.json").read_text())
    written["train"]["optimizer"] = "gone:fastest"
    (folder / "run" / "config.json").write_text(json.dumps(written))
    loaded = runs.load(folder / "run")
    x = loaded.dataset.x[:8]
    np.testing.assert_array_equal(loaded.logits_fn(x), before.logits_fn(x))
    jax.tree.map(np.testing.assert_array_equal, loaded.logits_fn.args[0], trained.ema)
    reports.evaluate(loaded, folder / "run")
    assert reports.evaluated(folder / "run")
    with pytest.raises(ValueError, match="my_objectives cannot be imported"):
        runs.prepare(loaded.config)


def test_a_run_goes_on_when_its_objective_has_new_options_and_lost_old_ones(folder, features):
    ended = runs.train_run(runs.prepare(config()), folder / "run", silent=True)
    text = OBJECTIVE.replace('form="kl"', "rate=0.5")
    (folder / "my_objectives.py").write_text(text)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    del sys.modules["my_objectives"]
    assert runs.load(folder / "run").config.options.rate == 0.5
    last = max((folder / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(last)
    again = runs.train_run(runs.prepare(config()), folder / "run", silent=True)
    assert int(again.step) == int(last.name)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, again.params, ended.params)
    with pytest.raises(ValueError, match=r"options.rate \(0.5 there, 0.25 asked\)"):
        storage.check_workdir(folder / "run", config(**{"options.rate": 0.25}).to_dict())


@pytest.mark.parametrize(
    ("objective", "method", "own", "now"),
    [
        ("j2", "difference", {"h": 0.01, "order": 1}, "difference"),
        ("j2", "difference", {"h": 0.01, "order": 2}, "difference(order=2)"),
        ("j2", "attack", {"h": 0.5, "order": 2}, "attack"),
        ("lip_excess", "pairs", {"steps": 9, "bounds": (0.0, 1.0)}, "pairs(steps=9)"),
    ],
)
def test_options_that_a_method_took_over_are_its_own(objective, method, own, now):
    takes = objectives.strengths(getattr(objectives, objective))
    old = base_config(objective, {objective: dict.fromkeys(takes, 0.1)})
    old.options = {"method": method, "norm": "l2"} | own
    assert complete(old).options.to_dict() == {"method": now, "norm": "l2"}
    bound = build.bound_objective(old)
    assert bound.keywords["norm"] is norms.L2
    assert bound.keywords["method"] == objectives.method(now)
    check(old)
