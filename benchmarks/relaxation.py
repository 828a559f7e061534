"""SGD against Deep Relaxation: table and picture of the sweeps that results/relaxation.sh trains.

    python benchmarks/relaxation.py --runs=runs/relaxation --out=results/relaxation

Validation error against gradients: mean ± standard deviation over seeds, in the picture the mean in
a band from the least to the largest. Runs of one seed begin with the same weights and see the same
batches, so errors are compared with SGD's in pairs.
"""

import json
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lipreg import curves, files
from lipreg.reports import style
from lipreg.runs import logs, storage, sweep

_RUNS = flags.DEFINE_string("runs", "runs/relaxation", "folder of the sweeps, NETWORK/OPTIMIZER")
_OUT = flags.DEFINE_string("out", "runs/relaxation/report", "where to write")

_FILE = Path(__file__).parents[1] / "experiments" / "configs" / "relaxation.py"
_CONFIG = runpy.run_path(str(_FILE))
_PLAIN = "sgd"

History = tuple[np.ndarray, np.ndarray]  # gradients [T], % validation error [seeds, T]


def finished(folder: Path) -> set[str]:
    """The runs of a sweep over seeds that are done and did not diverge."""
    runs = (folder / "seeds" / "points").glob("seed=*")
    return {run.name for run in runs if sweep.CLEAN in sweep.outcome(run)}


def history(folder: Path, seeds: Sequence[str]) -> History:
    """Of these runs of a sweep over seeds."""
    runs = [logs.metrics(folder / "seeds" / "points" / seed) for seed in seeds]
    kept = [[row for row in rows if sweep.CLEAN in row] for rows in runs]
    errors = np.array([[100 * row[sweep.CLEAN] for row in rows] for rows in kept])
    return np.array([row["gradients"] for row in kept[0]]), errors


def histories(folder: Path) -> dict[str, History]:
    """Of each optimiser that has runs, those of the seeds that all of these have."""
    done = {name: finished(folder / name) for name in _CONFIG["OPTIMIZERS"]}
    done = {name: seeds for name, seeds in done.items() if seeds}
    shared = sorted(set.intersection(*done.values())) if done else []
    return {name: history(folder / name, shared) for name in done if shared}


def first(of: History, target: float) -> str:
    """The gradients after which the mean error is first at `target` or below.

    >>> first((np.array([10, 20]), np.array([[3.0, 2.0], [3.0, 1.0]])), 1.6)
    '20'
    """
    reached = np.flatnonzero(of[1].mean(0) <= target)
    return str(of[0][reached[0]]) if len(reached) else "–"


def _run(folder: Path) -> Path:
    return folder / "seeds" / "points" / min(finished(folder))


def tried(folder: Path) -> str:
    """Each learning rate of a sweep with its error; nothing where there was no sweep."""
    path = folder / "sweep.json"
    points = files.read(path)["points"] if path.exists() else {}
    return ", ".join(
        f"{name.partition('=')[2]}: {100 * point.get(sweep.CLEAN, np.inf):.2f}"
        for name, point in points.items()
    )


def table(of: Mapping[str, History], folder: Path) -> str:
    plain, rows = of[_PLAIN], {}
    for name, (gradients, errors) in of.items():
        config = files.read(_run(folder / name) / "config.json")
        rows[name] = {"rate": config["train"]["learning_rate"]}
        # The last report before the rate falls, after 30 % of training, and the last of all.
        for at in (max(int(0.3 * len(gradients)), 1) - 1, -1):
            rows[name][f"% error after {gradients[at]}"] = curves.spread(errors[:, at])
            apart = errors[:, at] - plain[1][:, at]
            rows[name][f"{gradients[at]}, minus SGD's"] = curves.spread(apart)
        rows[name] |= {
            "gradients to SGD's last": first((gradients, errors), plain[1][:, -1].mean()),
            "rates tried, % error": tried(folder / name / "rates"),
        }
    return curves.to_markdown(rows)


@style.drawn
def figure(networks: Mapping[str, Mapping[str, History]]) -> Figure:
    drawn = Figure(figsize=(4.6 * len(networks), 3.6), layout="constrained")
    panels = drawn.subplots(1, len(networks), squeeze=False)[0]
    for axes, (network, of) in zip(panels, networks.items(), strict=True):
        for number, (name, (gradients, errors)) in enumerate(of.items()):
            look = style.look(number)
            axes.plot(gradients, errors.mean(0), label=name, **look)
            band = errors.min(0), errors.max(0)
            axes.fill_between(gradients, *band, alpha=0.15, color=look["color"])
        axes.set_title(network)
        axes.set_xlabel("gradients")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        style.legend(axes)
    panels[0].set_ylabel("validation error (%)")
    return drawn


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    runs, out = Path(_RUNS.value), Path(_OUT.value)
    networks = {name: histories(runs / name) for name in _CONFIG["NETWORKS"]}
    networks = {name: found for name, found in networks.items() if _PLAIN in found}
    if not networks:
        raise app.UsageError(f"no finished runs of {_PLAIN} in {runs}")
    parts = [
        f"**{name}**, {len(found[_PLAIN][1])} seeds\n\n{table(found, runs / name)}"
        for name, found in networks.items()
    ]
    commits = {
        f"{network},{name}": files.read(_run(runs / network / name) / "about.json")["commit"]
        for network, found in networks.items()
        for name in found
    }
    about = storage.about() | {"trained by": commits}
    text = "\n\n".join([*parts, f"`{json.dumps(about)}`"]) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / "table.md", text)
    print(text)
    style.save(figure(networks), out / "curves")


if __name__ == "__main__":
    app.run(main)
