"""ImageNet's path at its size, on images of noise: the input pipeline, and training steps.

    python benchmarks/imagenet.py [--batch=8 --row=j2_lip]

Writes JPEGs of 500 x 375 pixels and about 46 kB, as ImageNet has, into a folder that is removed at
the end. Measured are the images a second that `streamed.Stream.batches` delivers, by threads and
worker processes, medians over turns; and training steps of ResNet50 as `experiments/train.py` makes
them, with the share of their time that is spent waiting for input. A class is a tint, which is soon
learnt: what the objective shows is that the whole runs.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from itertools import islice, product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from PIL import Image
from timing import publish, table

from lipreg import objectives, runs, training
from lipreg.datasets import streamed
from lipreg.runs import config
from lipreg.training import cpu

_IMAGES = flags.DEFINE_integer("images", 256, "JPEGs to write", lower_bound=32)
_TURNS = flags.DEFINE_integer("turns", 3, "of the pipelines", lower_bound=1)
_READ = flags.DEFINE_integer("read", 768, "images of a turn", lower_bound=32)
_SIDE = flags.DEFINE_integer("side", 224, "of the squares that are trained on", lower_bound=32)
_ROW = flags.DEFINE_enum("row", "j2", ["j0", "j1", "j2", "j2_lip"], "the objective")
_BATCH = flags.DEFINE_integer("batch", 8, "images of a training step", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 20, "of training", lower_bound=2)
_OUT = flags.DEFINE_string("out", "results/speed/imagenet.md", "where the report goes")

BATCH = 16  # of the pipelines
CLASSES = 8
STRENGTHS = {"eps": 0.5, "lam": 0.1 / 256}


def write_images(folder: Path, n: int) -> float:
    """Smooth colours under noise; returns the mean size of a file, in kB."""
    rng, sizes = np.random.default_rng(0), []
    for i in range(n):
        tint = [127 * (i >> channel & 1) for channel in range(3)]
        path = folder / "train" / f"class{i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 128, (6, 8, 3), np.uint8) + np.array(tint, np.uint8)
        colours = Image.fromarray(colours)
        smooth = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + rng.normal(0, 12, (375, 500, 1)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=75)
        sizes.append(path.stat().st_size)
    return float(np.mean(sizes)) / 1000


def images_per_s(dataset: streamed.Stream, images: int) -> float:
    """What the pipeline delivers, once the batches that it can hold ready are used up."""
    batches: Any = dataset.batches(BATCH, seed=0)
    for _ in range((dataset.threads + 2) * max(dataset.workers, 1)):
        next(batches)
    start = time.perf_counter()
    read = sum(len(y) for _, y in islice(batches, images // BATCH))
    rate = read / (time.perf_counter() - start)
    batches.close()  # Grain's iterator: ends threads and workers
    return rate


def pipeline(folder: Path) -> list[dict[str, str]]:
    """The table's rows: images a second by workers and threads, which take turns."""
    cores = len(os.sched_getaffinity(0))
    pairs = list(product((0, 1, 2), (0, 1, 2, 4)))
    rates: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for _, (workers, threads) in product(range(_TURNS.value), pairs):
        dataset = streamed.load(
            "folder", "train", dir=folder, side=_SIDE.value, threads=threads, workers=workers
        )
        rates[workers, threads].append(images_per_s(dataset, _READ.value))
    return [
        {
            "workers": str(workers),
            "threads": str(threads),
            "images/s": f"{np.median(measured):.0f} ({min(measured):.0f} to {max(measured):.0f})",
            "images/s per core": f"{np.median(measured) / cores:.0f}",
        }
        for (workers, threads), measured in rates.items()
    ]


class Watched:
    """A stream that notes how long each batch is waited for."""

    def __init__(self, dataset: streamed.Stream):
        self.dataset, self.waits = dataset, []

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, *args: Any, **options: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        batches = self.dataset.batches(*args, **options)
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.waits.append(time.perf_counter() - start)
            yield batch


def trained(folder: Path) -> tuple[list[dict[str, str]], str]:
    """The table's rows, step by step, and a sentence."""
    names = objectives.strengths(getattr(objectives, _ROW.value))
    c = config.base_config(_ROW.value, {_ROW.value: {name: STRENGTHS[name] for name in names}})
    c.data.update({"name": "folder", "dir": str(folder), "side": _SIDE.value, "flip": True})
    c.model.name = "ResNet50"
    c.train.update({"batch_size": _BATCH.value, "learning_rate": 0.1 * _BATCH.value / 256})
    c.train.schedule = "constant"
    prepared = runs.prepare(c)
    stream: Any = prepared.training
    watched, begun = Watched(stream), time.perf_counter()
    reports = training.fit(
        prepared.program.step,
        prepared.state,
        c.strengths.to_dict(),
        watched,
        batch_size=_BATCH.value,
        steps=_STEPS.value,
        every=1,
        key=jax.random.key(0),
    )
    rows, seconds = [], []
    for step, (_, parts) in enumerate(reports):
        seconds.append(time.perf_counter() - begun - sum(seconds))
        rows.append(
            {
                "step": str(step + 1),
                "objective": f"{parts['objective']:.3f}",
                "s": f"{seconds[step]:.2f}",
                "of which waited for input, s": f"{watched.waits[step]:.3f}",
            }
        )
    share = sum(watched.waits[1:]) / sum(seconds[1:])
    return rows, (
        f"Median step {np.median(seconds[1:]):.2f} s; after the first, which compiles, "
        f"{100 * share:.2g} % of the time was waiting for input."
    )


def main(argv: list[str]) -> None:
    cpu.tune()
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    with tempfile.TemporaryDirectory() as folder:
        size = write_images(Path(folder), _IMAGES.value)
        rates = table(pipeline(Path(folder)))
        print(rates, flush=True)
        steps, sentence = trained(Path(folder))
    print(f"\n{table(steps)}\n\n{sentence}")
    text = f"""# ImageNet's path at its size

{_IMAGES.value} JPEGs of noise, 500 x 375 pixels, {size:.0f} kB each, cropped at random to \
{_SIDE.value} x {_SIDE.value};
batches of {BATCH}; median, least and most of {_TURNS.value} turns of {_READ.value} images.

{rates}

{_STEPS.value} steps of ResNet50, {_ROW.value}, batch {_BATCH.value}; classes differ in tint.

{table(steps)}

{sentence}
"""
    publish(text, Path(_OUT.value), grain=metadata.version("grain"))


if __name__ == "__main__":
    app.run(main)
