"""The attacks against those of torchattacks and foolbox: same weights, images and settings.

    pip install -e '.[peers]'    # without constraints.txt: torchattacks asks for an old requests
    python benchmarks/parity.py RUN RUN RUN --out=results/parity

RUNs are folders of experiments/train.py that hold the library's CNN; the weights are moved into a
torch module. What is measured is the robust accuracy of all images at the run's table radius, or
their smallest distances, 0 for a misclassified image and inf for a failure; means over the turns,
each with a seed of its own. Points are classified again by the network of the framework that they
come from. Seconds are medians over turns that the programs take within one process, the
classification included; ours compile first, on one batch, which is timed apart. Attacks at a
radius, but the shortest, run as a cascade behind two steps of PGD, which can only find more, and
packs the images that are left. The peers run eagerly, batch after batch.
"""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peers
import torch  # pyright: ignore[reportMissingImports]
from absl import app, flags, logging
from cases import SLOW, Case, cases
from torch_networks import CNN

from lipreg import batching, curves, datasets, runs
from lipreg.evaluation import cascade
from lipreg.keys import example_keys
from lipreg.losses import cross_entropy
from lipreg.norms import Norm
from lipreg.runs import storage
from lipreg.runs.config import label
from lipreg.training import cpu

_IMAGES = flags.DEFINE_integer("images", 1000, "of the test split, from the first", lower_bound=1)
_OUT = flags.DEFINE_string("out", "results/parity", "where to write table.md and table.csv")
_REPEATS = flags.DEFINE_integer("repeats", 3, "turns of each program", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "attacks, as the table names them; default: all")
_SLOW = flags.DEFINE_bool("slow", False, "the attacks that see decisions alone, too")
_SHARE = flags.DEFINE_float("share", 1.0, "of every attack's steps, for a quick look", 0, 1)
_BATCH = flags.DEFINE_integer("batch", 250, "images of a batch, ours and theirs", lower_bound=1)

POINTS, RATIO = 0.5, 1.02  # what counts as equal: of robust accuracy, of median distances
ENOUGH_S = 30  # of an attack on a network: then no further turn


class Network(NamedTuple):
    """A run in both frameworks, with the first test images."""

    name: str
    logits_fn: jax.tree_util.Partial
    module: CNN
    x: np.ndarray
    y: np.ndarray
    classes: int
    radii: dict[str, float]  # the table's, by the name of the norm


class Row(NamedTuple):
    """An attack on a network: values (robust accuracy in %, or median distance) and seconds."""

    case: Case
    model: str
    ours: float
    theirs: dict[str, float]
    ours_s: float
    theirs_s: dict[str, float]
    turns: int
    first_s: float

    @property
    def strongest(self) -> str:
        return min(self.theirs, key=lambda name: self.theirs[name])

    @property
    def fastest(self) -> str:
        return min(self.theirs_s, key=lambda name: self.theirs_s[name])

    @property
    def difference(self) -> float:
        """Ours less the strongest peer's, in points; for distances ours over the peer's."""
        best = self.theirs[self.strongest]
        if self.case.at_radius:
            return self.ours - best
        return 1.0 if self.ours == best else self.ours / best

    @property
    def slowness(self) -> float:
        return self.ours_s / self.theirs_s[self.fastest]


def load(workdir: str, like: Network | None) -> Network:
    """A run in both frameworks; its network must be the same function in both."""
    loaded = runs.load(workdir)
    logits_fn, module = loaded.logits_fn, CNN(loaded)
    if like and jax.tree.structure(like.logits_fn.args) == jax.tree.structure(logits_fn.args):
        # One function with other weights: what is compiled for the first run serves the others.
        logits_fn = jax.tree_util.Partial(like.logits_fn.func, *logits_fn.args)
    n = min(_IMAGES.value, len(loaded.dataset.y))
    x, y = np.asarray(datasets.to_unit(loaded.dataset.x[:n])), np.asarray(loaded.dataset.y[:n])
    radii = {norm: loaded.config.evaluation[norm].table for norm in ("l2", "linf")}
    name = label(loaded.config)
    network = Network(name, logits_fn, module, x, y, loaded.dataset.classes, radii)
    for what, most in disagreement(network).items():
        if not most <= 1e-4:
            raise ValueError(f"{workdir}: the {what} of jax and torch differ by {most:.2g}.")
    return network


def disagreement(network: Network, n: int = 100) -> dict[str, float]:
    """The largest differences between jax and torch in logits and input gradients."""
    x, y = jnp.asarray(network.x[:n]), jnp.asarray(network.y[:n])
    images, classes = (a[:n] for a in to_torch(network))
    images.requires_grad_()
    logits = network.module(images)
    torch.nn.functional.cross_entropy(logits, classes, reduction="sum").backward()
    slope = jax.grad(lambda x: cross_entropy(network.logits_fn(x), y).sum())(x)
    pairs = {
        "logits": (network.logits_fn(x), logits.detach()),
        "gradients": (slope.transpose(0, 3, 1, 2), images.grad),
    }
    return {what: float(np.abs(a - b.numpy()).max()) for what, (a, b) in pairs.items()}


def to_torch(network: Network) -> tuple[Any, Any]:
    """Images `[N, C, H, W]` and their classes."""
    x = network.x.transpose(0, 3, 1, 2).copy()  # jax's arrays are read-only
    return torch.from_numpy(x), torch.from_numpy(network.y.astype(np.int64))


def ours(case: Case, network: Network) -> Callable[[int], np.ndarray]:
    """A program from a seed to the distances of all images; of a cascade they are 0 or inf."""
    logits_fn, x, y, norm = network.logits_fn, network.x, network.y, case.norm
    size = min(_BATCH.value, len(y))
    if callable(case.ours):
        eps = network.radii[norm.name] if case.at_radius else None
        program = partial(distances(case.ours, norm), logits_fn, eps)
        keys = lambda seed: example_keys(jax.random.key(seed), len(y))
        return lambda seed: batching.map_batches(program, size, keys(seed), x, y)
    stages = case.ours

    def run(seed: int) -> np.ndarray:
        key, radius = jax.random.key(seed), network.radii[norm.name]
        outcome = cascade(key, logits_fn, x, y, radius, stages, norm=norm, batch_size=size)
        return np.where(outcome.broken_by < 0, np.inf, 0.0)

    return run


@cache
def distances(attack: Callable, norm: Norm) -> Callable:
    """`(logits_fn, eps, keys, x, y) -> [B]`, what an attack finds, compiled once for all radii."""

    def run(logits_fn: Any, eps: Any, keys: Any, x: Any, y: Any) -> Any:
        radius = () if eps is None else (eps,)
        return curves.distance(logits_fn, x, y, attack(keys, logits_fn, x, y, *radius), norm=norm)

    return jax.jit(run)


def theirs(case: Case, network: Network, peer: peers.Peer) -> Callable[[int], np.ndarray]:
    """The same by a peer."""
    attack = peer(network.module, network.radii[case.norm.name] if case.at_radius else None)
    batches = list(zip(*(a.split(_BATCH.value) for a in to_torch(network)), strict=True))

    def run(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        parts = (peers.distance(network.module, x, y, attack(x, y), case.norm) for x, y in batches)
        return np.concatenate(list(parts))

    return run


def measure(case: Case, network: Network) -> Row:
    """Ours is run on one batch to compile, then all take turns; a turn's number is its seed."""
    programs = {"lipreg": ours(case, network)}
    programs |= {name: theirs(case, network, peer) for name, peer in case.theirs.items()}

    def value(distances: np.ndarray) -> float:
        if not case.at_radius:
            return float(curves.median_distance(distances))
        return 100 * float((distances > network.radii[case.norm.name] * (1 + 1e-5)).mean())

    begun = time.perf_counter()
    ours(case, network._replace(x=network.x[: _BATCH.value], y=network.y[: _BATCH.value]))(0)
    first = time.perf_counter() - begun
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    values: dict[str, list[float]] = {name: [] for name in programs}
    enough = lambda: time.perf_counter() - begun > ENOUGH_S
    while not seconds["lipreg"] or (len(seconds["lipreg"]) < _REPEATS.value and not enough()):
        for name, program in programs.items():
            start = time.perf_counter()
            per_image = program(len(seconds[name]))
            seconds[name].append(time.perf_counter() - start)
            values[name].append(value(per_image))
    turns, medians = len(seconds["lipreg"]), {n: float(np.median(s)) for n, s in seconds.items()}
    means = {n: float(np.mean(v)) for n, v in values.items()}
    mine, mine_s = means.pop("lipreg"), medians.pop("lipreg")
    return Row(case, network.name, mine, means, mine_s, medians, turns, first)


def cells(row: Row) -> dict[str, str]:
    """A line of the table."""
    value = "{:.1f} %" if row.case.at_radius else "{:.4f}"
    toolboxes = ("torchattacks", "foolbox")
    return {
        "attack": row.case.name,
        "norm": row.case.norm.name,
        "model": row.model,
        "ours": value.format(row.ours),
        **{t: value.format(row.theirs[t]) if t in row.theirs else "" for t in toolboxes},
        "difference": f"{row.difference:+.1f}" if row.case.at_radius else f"x {row.difference:.3f}",
        "seconds ours": f"{row.ours_s:.3g}",
        "seconds theirs": f"{row.theirs_s[row.fastest]:.3g} ({row.fastest})",
        "ratio": f"{row.slowness:.2f}",
        "first batch s": f"{row.first_s:.1f}",
    }


def losses(row: Row) -> list[str]:
    """A sentence for what is weaker than the strongest peer and for what is slower than any."""
    what = f"- {row.case.name}, {row.case.norm.name}, {row.model}:"
    lines = []
    if row.case.at_radius and row.difference > POINTS:
        more = f"{row.difference:.1f} points more robust accuracy"
        lines.append(f"{what} weaker, {more} than by {row.strongest}.")
    if not row.case.at_radius and row.difference > RATIO:
        lines.append(f"{what} weaker, {row.difference:.3f} times the distance of {row.strongest}.")
    if row.slowness > 1:
        lines.append(f"{what} slower, {row.slowness:.2f} times the seconds of {row.fastest}.")
    return lines


def report(rows: list[Row], networks: list[Network]) -> str:
    """The table as Markdown, what it loses, and how it was made."""
    table = [cells(row) for row in rows]
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(line.values()) for line in table)]
    lost = [sentence for row in rows for sentence in losses(row)]
    about = storage.about()
    about["versions"] |= {
        name: metadata.version(name) for name in ("torch", "torchattacks", "foolbox")
    }
    radii = "; ".join(f"{n.name}: {n.radii['l2']:g} in l2, {n.radii['linf']:g}" for n in networks)
    text = f"""\
# Attacks against those of torchattacks and foolbox

{len(networks[0].y)} images, batches of {_BATCH.value}, {torch.get_num_threads()} threads of torch.
Robust accuracy in % at the radius ({radii} in linf), the difference in points to the strongest
peer; or the median distance, the difference as the ratio to it. Seconds against the fastest peer.

{chr(10).join(f"| {' | '.join(line)} |" for line in lines)}

## Weaker (by more than {POINTS} points, or {RATIO} times) or slower

{chr(10).join(lost or ["Nowhere."])}
"""
    return f"{text}\n{json.dumps(about)}\n"


def to_csv(rows: list[Row]) -> str:
    """One line per attack, network and toolbox, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["attack", "norm", "model", "toolbox", "value", "seconds", "turns", "first batch s"]
    )
    for row in rows:
        what = (row.case.name, row.case.norm.name, row.model)
        writer.writerow([*what, "lipreg", row.ours, row.ours_s, row.turns, row.first_s])
        for name, value in row.theirs.items():
            writer.writerow([*what, name, value, row.theirs_s[name], row.turns, 0.0])
    return out.getvalue()


def main(argv: list[str]) -> None:
    cpu.tune()
    logging.set_verbosity(logging.WARNING)  # Orbax and foolbox tell of themselves at INFO
    torch.set_num_threads(os.cpu_count() or 1)
    if not argv[1:]:
        raise ValueError("No runs: python benchmarks/parity.py RUN RUN ... --out=DIR.")
    networks: list[Network] = []
    for workdir in argv[1:]:
        networks.append(load(workdir, networks[0] if networks else None))
    known = cases(networks[0].classes, _SHARE.value)
    names = {case.name for case in known}
    for name in _ONLY.value:
        if name not in names:
            raise ValueError(f"--only={name}; choose some of {', '.join(sorted(names))}.")
    wanted = set(_ONLY.value) or names - (set() if _SLOW.value else set(SLOW))
    out, rows = Path(_OUT.value), []
    out.mkdir(parents=True, exist_ok=True)
    for case in known:
        for network in networks if case.name in wanted else ():
            rows.append(measure(case, network))
            print(f"| {' | '.join(cells(rows[-1]).values())} |", flush=True)
            (out / "table.md").write_text(report(rows, networks))  # a run that is stopped has these
            (out / "table.csv").write_text(to_csv(rows))
    print(f"\n{report(rows, networks)}\nWritten: {out}/table.md, {out}/table.csv")


def _main(argv: list[str]) -> None:
    try:
        main(argv)
    except ValueError as error:
        sys.exit(f"{argv[0]}: {error}")


if __name__ == "__main__":
    app.run(_main)
