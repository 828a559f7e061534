"""The Lipschitz constant of data against scikit-learn: `python benchmarks/lipschitz_of_data.py`.

For every image the nearest one of another class in l_2, and 1 over the least of their distances.
scikit-learn's exact search runs class by class: it holds the other classes and is asked for that
class. The programs take turns within one process; what counts is the ratio of their medians, since
the machine's own speed wanders; a first turn, in which ours compiles, is timed apart. Peak memory
is that of a process of its own, above what it held with the images loaded.
"""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from absl import app, flags
from sklearn.neighbors import NearestNeighbors

from lipreg import datasets
from lipreg.lipschitz import of_data
from lipreg.runs import storage

_N = flags.DEFINE_integer("n", 10_000, "images, drawn by seed 0", lower_bound=2)
_DATA = flags.DEFINE_enum("data", "mnist", ["mnist", "random"], "random: uniform, 784 pixels")
_PEERS = flags.DEFINE_multi_enum(
    "peer", ["brute"], ["brute", "kd_tree"], "algorithm of scikit-learn; may be repeated"
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "interleaved repetitions", lower_bound=1)


def images(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    if name == "random":
        rng = np.random.default_rng(0)
        return rng.random((n, 784), np.float32), rng.integers(0, 10, n)
    parts = [datasets.load(name, split) for split in ("train", "validation")]
    x = np.concatenate([part.x for part in parts])[:n]
    y = np.concatenate([part.y for part in parts])[:n]
    return np.asarray(datasets.to_unit(x)).reshape(len(x), -1), y


def nearest_other(x: np.ndarray, y: np.ndarray, algorithm: str) -> np.ndarray:
    """By scikit-learn, `[n]`: the distance to the nearest image of another class."""
    distances = np.empty(len(y))
    for label in np.unique(y):
        own = y == label
        index = NearestNeighbors(n_neighbors=1, algorithm=algorithm, n_jobs=-1).fit(x[~own])
        distances[own] = index.kneighbors(x[own])[0][:, 0]
    return distances


def search(program: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return of_data(x, y).distances if program == "lipreg" else nearest_other(x, y, program)


def timed(program: str, x: np.ndarray, y: np.ndarray) -> float:
    start = time.perf_counter()
    search(program, x, y)
    return time.perf_counter() - start


def _status(field: str) -> float:
    """MiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak(program: str, x: np.ndarray, y: np.ndarray) -> float:
    """MiB at the most, above the start."""
    before = _status("VmRSS")
    search(program, x, y)
    return _status("VmHWM") - before


def in_its_own_process(program: str, x: np.ndarray, y: np.ndarray) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, program, x, y).result()


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    x, y = images(_DATA.value, _N.value)
    programs = ["lipreg", *dict.fromkeys(_PEERS.value)]
    memory = {program: in_its_own_process(program, x, y) for program in programs}
    first = timed("lipreg", x, y)
    distances = {program: search(program, x, y) for program in programs}
    turns = [{p: timed(p, x, y) for p in programs} for _ in range(_REPEATS.value)]

    ours = np.array([turn["lipreg"] for turn in turns])
    print(
        f"{len(x)} images ({_DATA.value}), {x.shape[1]} pixels; "
        f"L0 = {1 / distances['lipreg'].min():.6g}; medians of {_REPEATS.value} in turn; "
        f"lipreg's first call {first:.2f} s\n"
    )
    print("| program | s | s / lipreg's | peak memory, MiB | distances differ by |")
    print("|---|---|---|---|---|")
    for program in programs:
        seconds = np.array([turn[program] for turn in turns])
        low, high = np.quantile(seconds / ours, (0.25, 0.75))
        apart = np.abs(distances[program] - distances["lipreg"]).max()
        name = program if program == "lipreg" else f"scikit-learn, {program}"
        print(
            f"| {name} | {np.median(seconds):.2f} "
            f"| {np.median(seconds) / np.median(ours):.2f} ({low:.2f} to {high:.2f}) "
            f"| {memory[program]:.0f} | {apart:.1g} |"
        )
    print("\n" + json.dumps(storage.about()))


if __name__ == "__main__":
    app.run(main)
