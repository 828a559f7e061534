"""From a config to a run that can be trained, and from a run to its network and numbers.

`prepare` turns a config into checked parts and writes nothing; `train.train_run` does the work in a
folder; `load` reads a run back, for which its objective and optimiser are not needed.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg import datasets, files, optimizers, parallel, training
from lipreg.datasets import streamed
from lipreg.doors import told
from lipreg.runs import build, storage
from lipreg.runs.config import Config
from lipreg.training import State

__all__ = ["Experiment", "Loaded", "check_steps", "key_for", "load", "prepare"]


class Experiment(NamedTuple):
    """A config, checked and made into parts; see `prepare`."""

    config: Config
    training: datasets.Dataset | datasets.Mixture | streamed.Stream
    validation: datasets.Dataset
    program: build.Program
    state: State
    steps: int

    @property
    def epoch_steps(self) -> int:
        """The steps of one pass over the training data."""
        train = self.config.train
        return datasets.size(self.training) // train.batch_size * train.replay


def key_for(config: Config, use: str) -> Array:
    """One key for each use of the seed."""
    uses = ("init", "step", "batches", "report")
    return jax.random.fold_in(jax.random.key(config.seed), uses.index(use))


def _split(config: Config, split: str, examples: int) -> Any:
    """A split as the config has it; of a streamed set, but for training, so many images of it."""
    d = config.data
    if not d.side:
        options = {name: d[name] for name in ("dir", "seed", "validation", "bounds")}
        return datasets.load(d.name, split, **options)
    options = {
        name: d[name] for name in ("dir", "side", "seed", "validation", "threads", "workers")
    }
    stream = streamed.load(d.name, split, **options)
    return stream if split == "train" else stream.sample(min(examples, len(stream)))


def prepare(config: Config) -> Experiment:
    """Data, network, step and first state of a config; ValueError with one sentence for a bad one.

    The whole step is traced (not compiled), so that what does not fit together is found before
    anything is written. Configs that differ in seed and strengths alone share one step, and so one
    compilation.
    """
    parts, d, t = build.parts(config), config.data, config.train
    train = _split(config, "train", 0)
    shown = max(config.report.examples, config.report.gap_examples)
    validation = _split(config, "validation", shown)
    if validation.classes < 2:
        raise ValueError(f"config.data.name = {d.name}; all of it is of one class.")
    if d.wrong_labels:
        if d.side:
            raise ValueError(
                f"config.data.wrong_labels = {d.wrong_labels}; of a streamed set it is 0."
            )
        train = datasets.wrong_labels(train, d.wrong_labels, seed=config.seed)
    if d.synthetic:
        train = _mixed(config, train, validation)
    size = datasets.size(train)
    _check_sizes(config, size, validation.x.shape[1:])
    steps = t.steps or t.epochs * (size // t.batch_size) * t.replay
    check_steps(config, steps)
    program = build.program(parts, validation, steps)
    with told(f"The network {config.model.name} cannot be initialised"):
        state = program.init(key_for(config, "init"), key_for(config, "step"))
    if t.ema_statistics != "running" and not jax.tree.leaves(state.model_state):
        raise ValueError(
            f"config.train.ema_statistics = {t.ema_statistics}; {config.model.name} keeps none: it "
            "has no batch normalisation, or has it off."
        )
    x = jax.ShapeDtypeStruct((t.batch_size, *validation.x.shape[1:]), validation.x.dtype)
    batch = (x, jax.ShapeDtypeStruct(x.shape[:1], np.int32))
    with told(f"A step of {config.objective} with {config.model.name} cannot be traced"):
        jax.eval_shape(program.step, state, config.strengths.to_dict(), batch)
    return Experiment(config, train, validation, program, state, steps)


def check_steps(config: Config, steps: int) -> None:
    """ValueError for what so many steps are too few for."""
    t = config.train
    if t.accumulate > steps:
        raise ValueError(
            f"config.train.accumulate = {t.accumulate}; the run has {steps} steps: its weights "
            "would not move."
        )
    period = t.accumulate * optimizers.period(*optimizers.nested(t.optimizer)[0])
    if period > steps:
        raise ValueError(
            f"config.train.optimizer = {t.optimizer}; its first move is after {period} steps, and "
            f"the run has {steps}."
        )
    if t.ramp and not round(t.ramp * steps):
        raise ValueError(f"config.train.ramp = {t.ramp}; of the run's {steps} steps that is none.")


def _mixed(config: Config, train: Any, validation: datasets.Dataset) -> datasets.Mixture:
    d, batch_size = config.data, config.train.batch_size
    if d.side:
        raise ValueError(f"config.data.synthetic = {d.synthetic}; a streamed set has none.")
    if round(d.synthetic_share * batch_size) in (0, batch_size):
        raise ValueError(
            f"config.data.synthetic_share = {d.synthetic_share}; a batch of {batch_size} has no "
            "such part."
        )
    try:
        more = datasets.training(d.synthetic, dir=d.dir, bounds=d.bounds)
        mixed = datasets.mixture(train, more, d.synthetic_share)
    except ValueError as error:
        raise ValueError(f"config.data.synthetic = {d.synthetic}: {error}") from error
    held_out = {x.tobytes() for x in validation.x}.difference(x.tobytes() for x in train.x)
    shared = held_out.intersection(x.tobytes() for x in more.x)
    if shared:
        raise ValueError(
            f"config.data.synthetic = {d.synthetic}; {len(shared)} of the {len(held_out)} "
            f"validation examples of {d.name} are in it, and would be trained on."
        )
    return mixed


def _check_sizes(config: Config, size: int, shape: tuple[int, ...]) -> None:
    """Batches have examples for all devices, and augmentation has images that it leaves visible."""
    d, batch_size = config.data, config.train.batch_size
    if batch_size > size:
        raise ValueError(
            f"config.train.batch_size = {batch_size}; {d.name} has {size} training examples."
        )
    if parallel.multiple(batch_size) != batch_size:
        raise ValueError(
            f"config.train.batch_size = {batch_size}; it must be a multiple of the "
            f"{jax.device_count()} devices."
        )
    for name in ("flip", "pad", "cutout"):
        if d[name] and len(shape) != 3:
            raise ValueError(
                f"config.data.{name} = {d[name]}; it is for images, and an input of {d.name} has "
                f"shape {list(shape)}."
            )
    for name in ("pad", "cutout"):
        if d[name] and d[name] >= min(shape[:2]):  # it could hide the whole image
            raise ValueError(
                f"config.data.{name} = {d[name]}; it must be less than the sides of the images, "
                f"{shape[0]} x {shape[1]} pixels."
            )


class Loaded(NamedTuple):
    """A run read back.

    Attributes:
      config: the run's config.
      logits_fn: its model as a function of images.
      dataset: a split of its data.
      step: the step of the checkpoint that was read.
      steps: all steps of the training; `step` is less before its end or where the last checkpoint
        is damaged.
    """

    config: Config
    logits_fn: jax.tree_util.Partial
    dataset: datasets.Dataset
    step: int
    steps: int


def load(workdir: str | Path, split: str = "test", examples: int | None = None) -> Loaded:
    """A run's config, its `logits_fn` at the newest sound checkpoint, and a split of its data.

    Of a set that is streamed, that is its first `examples` images, by default the evaluation's.
    """
    config = storage.read_complete(workdir)
    if not (Path(workdir) / "checkpoints").is_dir():
        raise ValueError(f"{workdir} has no checkpoint yet: let its training reach the first.")
    dataset = _split(config, split, examples or config.evaluation.examples)
    network = build.network(config)(dataset.classes, dataset.x.shape[1:])
    x = jax.ShapeDtypeStruct((1, *dataset.x.shape[1:]), jnp.float32)
    params, model_state = jax.eval_shape(network.init, jax.random.key(0), x)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    template = {"params": params, "model_state": model_state, "step": step}
    averages = {"ema": params, "ema_state": model_state}
    with storage.checkpoints(workdir) as manager:
        restored = storage.restore(
            manager, template | averages, fields=tuple(template), optional=tuple(averages)
        )
    if restored is None:
        raise ValueError(f"{workdir} has no checkpoint yet: let its training reach the first.")
    unread: Any = None  # what only training needs
    state = State(**restored, opt_state=unread, key=unread)
    step, path = int(state.step), Path(workdir) / "about.json"
    about = files.read(path) if path.is_file() else {}
    if not isinstance(about, dict):
        raise ValueError(f"{path} cannot be read: it says nothing about a run.")
    about = {"steps": step} | about  # earlier versions did not record it
    return Loaded(config, training.logits_fn(network.apply, state), dataset, step, about["steps"])
