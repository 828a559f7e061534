"""The published recipes in plain PyTorch, on the network, the data and the seconds of a comparison.

    pip install -e '.[peers]'
    python benchmarks/compare_torch.py --config=experiments/configs/mnist.py --norm=linf --eps=0.1 \
        --seconds=60 --trials=4 --recipe=rs_fgsm --workdir=runs/torch/rs_fgsm
    python experiments/compare.py ... --guests=runs/torch/rs_fgsm

rs_fgsm is fast adversarial training (2001.03994), pgd that of 1706.06083 with ten steps, both with
its cyclic learning rate. Trials differ in the highest rate; as in experiments/compare.py the least
error under PGD-20 on the validation split chooses one, and a run has as many steps as fit into its
seconds. Weights are carried back: the validation, and all that follows, is the library's.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from absl import app, flags, logging
from ml_collections import config_flags
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]
from torch_networks import CNN, returned

from lipreg import files, runs, training
from lipreg.runs import compare, logs, storage
from lipreg.runs.build import ROBUST
from lipreg.runs.config import base_config, leaves
from lipreg.runs.train import validation_errors

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "the folder of seed-0, seed-1, ...", required=True)
_RECIPE = flags.DEFINE_enum("recipe", "rs_fgsm", ["rs_fgsm", "pgd"], "what is trained")
_NORM = flags.DEFINE_enum("norm", "linf", ["l2", "linf"], "of the attack")
_EPS = flags.DEFINE_float("eps", None, "its radius", required=True)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "of training a run", lower_bound=0.1)
_TRIALS = flags.DEFINE_integer("trials", 4, "learning rates that are tried", 1, 4)
_SHARE = flags.DEFINE_float("trial_share", 1.0, "of the seconds, for a trial", 0.01, 1.0)
_SEEDS = flags.DEFINE_integer("seeds", 1, "runs of the best rate", lower_bound=1)

RATES = (0.1, 0.05, 0.2, 0.02)  # the highest of the cycle; 0.2 is the authors' for PreActResNet-18

Attack = Callable[[Any, Any, Any], Any]


def direction(grad: Any, norm: str) -> Any:
    """The norm's steepest."""
    if norm == "linf":
        return grad.sign()
    return grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def project(delta: Any, eps: float, norm: str) -> Any:
    """Onto the ball."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    size = delta.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return delta * (eps / size).clamp(max=1.0)


def start(x: Any, eps: float, norm: str) -> Any:
    """Uniform in the ball."""
    if norm == "linf":
        return torch.empty_like(x).uniform_(-eps, eps)
    radius = eps * torch.rand(len(x), 1, 1, 1) ** (1 / x[0].numel())
    return radius * direction(torch.randn_like(x), norm)


def attack(norm: str, eps: float, *, steps: int, step_size: float) -> Attack:
    """PGD from a random start, the network in training mode as in the authors' code."""

    def attacked(network: Any, x: Any, y: Any) -> Any:
        delta = (x + start(x, eps, norm)).clamp(0, 1) - x
        for _ in range(steps):
            delta.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(network(x + delta), y), delta)
            delta = project(delta.detach() + step_size * direction(grad, norm), eps, norm)
            delta = (x + delta).clamp(0, 1) - x
        return x + delta

    return attacked


def augmented(rng: np.random.Generator, x: np.ndarray, data: Any) -> np.ndarray:
    """Flips and crops of images `[B, H, W, C]`, as `datasets.augment` does."""
    n, height, width, _ = x.shape
    if data.flip:
        x = np.where(rng.random(n)[:, None, None, None] < 0.5, x[:, :, ::-1], x)
    if data.pad:
        p = data.pad
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        rows, columns = (rng.integers(0, 2 * p + 1, (n, 1)) + np.arange(s) for s in (height, width))
        x = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return x


def batches(rng: np.random.Generator, dataset: Any, config: Any) -> Iterator[tuple[Any, Any]]:
    """Shuffled epochs without end, as tensors `[B, C, H, W]` and classes."""
    size = config.train.batch_size
    while True:
        order = rng.permutation(len(dataset.y))
        for first in range(0, len(order) - size + 1, size):
            rows = order[first : first + size]
            x = augmented(rng, dataset.x[rows], config.data).astype(np.float32)
            x = x / 255 if dataset.x.dtype == np.uint8 else x
            x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
            yield x, torch.from_numpy(dataset.y[rows].astype(np.int64))


def network_of(experiment: runs.Experiment) -> CNN:
    """A torch copy of the network before its first step."""
    state = experiment.state
    bound = jax.tree_util.Partial(lambda *_: None, state.params, state.model_state)
    loaded = runs.Loaded(experiment.config, bound, experiment.validation, 0, 0)
    return CNN(loaded).requires_grad_(True).train()


def steps_of(
    experiment: runs.Experiment, attacked: Attack, highest: float, steps: int
) -> Iterator[CNN]:
    """The network after each step of `min E l(x')`, the rate 0, highest, 0 at 0, 2/5 and all."""
    config = experiment.config
    torch.manual_seed(config.seed)
    network = network_of(experiment)
    sgd = torch.optim.SGD(
        network.parameters(), 0.0, momentum=0.9, weight_decay=config.train.weight_decay
    )
    stream = batches(np.random.default_rng(config.seed), experiment.training, config)
    for step in range(steps):
        x, y = next(stream)
        rate = np.interp(step + 1, [0, 0.4 * steps, steps], [0, highest, 0])
        sgd.param_groups[0]["lr"] = float(rate)
        x_adv = attacked(network, x, y)
        sgd.zero_grad()
        F.cross_entropy(network(x_adv), y).backward()
        sgd.step()
        yield network


def carried(experiment: runs.Experiment, network: CNN, step: int) -> training.State:
    """A state of the library with the network's weights."""
    params, model_state = jax.tree.map(jnp.asarray, returned(network))
    return dataclasses.replace(
        experiment.state, params=params, model_state=model_state, step=jnp.asarray(step, jnp.int32)
    )


def train(config: Any, workdir: Path, attacked: Attack, highest: float, steps: int) -> float:
    """A run in its folder, or what is there; its error under PGD-20 on the validation split."""
    if (workdir / "checkpoints").is_dir() and compare.error(workdir) <= 1:
        storage.check_same(workdir, config.to_dict())
        return compare.error(workdir)
    experiment = runs.prepare(config)
    report, program, seconds = config.report, experiment.program, 0.0
    storage.claim(workdir, config.to_dict(), steps=steps, trained_by=f"torch {torch.__version__}")
    with logs.Log(workdir) as log, storage.checkpoints(workdir) as manager:
        begun = time.perf_counter()
        for step, network in enumerate(steps_of(experiment, attacked, highest, steps), 1):
            if step % report.every_steps and step < steps:
                continue
            seconds += time.perf_counter() - begun
            state = carried(experiment, network, step)
            row = validation_errors(experiment, state, program.gap, report.gap_examples)
            if step == steps:
                row |= validation_errors(experiment, state, program.wrong, report.examples)
                storage.save(manager, step, state)
            log.write(step, row | {"seconds": seconds})
            begun = time.perf_counter()
    return compare.error(workdir)


def pace(config: Any, attacked: Attack, seconds: float) -> float:
    """The mean seconds of a step, without the first."""
    taken = steps_of(runs.prepare(config), attacked, RATES[0], 10**9)
    next(taken)
    begun, steps = time.perf_counter(), 0
    while steps < 3 or time.perf_counter() - begun < seconds:
        next(taken)
        steps += 1
    return (time.perf_counter() - begun) / steps


# What the loop above has in one form only.
FIXED = (
    *("loss", "model.settings.dtype", "train.precision"),
    *("data.bounds", "data.cutout", "data.side", "data.synthetic"),
    *("train.optimizer", "train.momentum", "train.nesterov", "train.clip"),
    *("train.ema", "train.ramp", "train.replay", "train.accumulate"),
)


def check(config: Any) -> None:
    """ValueError for what PyTorch would not do, or not on the device that jax has."""
    if jax.default_backend() != "cpu":
        raise ValueError(
            f"PyTorch trains on CPU, jax on {jax.default_backend()}; set JAX_PLATFORMS=cpu."
        )
    given, usual = leaves(config), leaves(base_config("j0", {"j0": {}}))
    for name in FIXED:
        if given[name] != usual[name]:
            raise ValueError(f"config.{name} = {given[name]}; this loop has {usual[name]} only.")


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        check(_CONFIG.value)
        run()
    except ValueError as error:
        raise app.UsageError(str(error)) from None


def run() -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax logs its progress
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    norm, eps, workdir = _NORM.value, _EPS.value, Path(_WORKDIR.value)
    seconds, tried_s = _SECONDS.value, _SHARE.value * _SECONDS.value
    ascents = {"rs_fgsm": 1, "pgd": 10}[_RECIPE.value]
    attacked = attack(norm, eps, steps=ascents, step_size=1.25 * eps if ascents == 1 else eps / 4)
    plan = compare.Plan(norm, eps, seconds, _TRIALS.value, tried_s, _SEEDS.value, 0)

    def config(rate: float, steps: int, seed: int = 0) -> Any:
        recipe = compare.Recipe("j0", [{"train.learning_rate": rate}])
        made = compare.point(_CONFIG.value, recipe, 0, plan, steps=steps, seed=seed)
        made.report.keep_best = False  # the loop above keeps the last epoch alone
        return made

    path = workdir / "pace.json"
    asked = {"recipe": _RECIPE.value, "norm": norm, "eps": eps}
    if not path.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        step_s = pace(config(RATES[0], 1), attacked, min(5.0, seconds / 4))
        files.write_json(path, asked | {"step_s": step_s})
    kept = files.read(path)
    if changed := [name for name in asked if kept[name] != asked[name]]:
        raise ValueError(
            f"workdir = {workdir} has {changed[0]} = {kept[changed[0]]}; name another."
        )
    step_s = kept["step_s"]
    tried, steps = compare.fitting(tried_s, step_s), compare.fitting(seconds, step_s)
    trials = {rate: workdir / f"trial-{k}" for k, rate in enumerate(RATES[: _TRIALS.value])}
    errors = {r: train(config(r, tried), t, attacked, r, tried) for r, t in trials.items()}
    best = min(errors, key=lambda rate: errors[rate])
    for seed in range(_SEEDS.value):
        place = workdir / f"seed-{seed}"
        if seed == 0 and tried == steps and not place.is_dir():  # that trial is the run
            shutil.copytree(trials[best], place)
        error = train(config(best, steps, seed), place, attacked, best, steps)
        print(f"{place}: rate {best:g}, {steps} steps, {ROBUST} {error:.3g}")


if __name__ == "__main__":
    app.run(main)
