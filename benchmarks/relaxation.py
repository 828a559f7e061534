"""SGD against Deep Relaxation: table and picture of the sweeps that results/relaxation.sh trains.

    python benchmarks/relaxation.py --runs=runs/relaxation --out=results/relaxation

Validation error against gradients; mean and standard deviation over seeds. Runs of one seed begin
with the same weights and see the same batches, so the last errors are compared with SGD's in pairs.
"""

import json
import runpy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from lipreg import curves, files
from lipreg.reports import plots
from lipreg.runs import logs, storage, sweep

_RUNS = flags.DEFINE_string("runs", "runs/relaxation", "folder of the sweeps, NETWORK/OPTIMIZER")
_OUT = flags.DEFINE_string("out", "runs/relaxation/report", "where to write")

_FILE = Path(__file__).parents[1] / "experiments" / "configs" / "relaxation.py"
_CONFIG = runpy.run_path(str(_FILE))
_PLAIN = "sgd"

History = tuple[np.ndarray, np.ndarray]  # gradients [T], % validation error [seeds, T]


def history(folder: Path) -> History:
    """Of the runs of a sweep over seeds."""
    runs = [logs.metrics(run) for run in sorted((folder / "points").iterdir())]
    kept = [[row for row in rows if sweep.CLEAN in row] for rows in runs]
    errors = np.array([[100 * row[sweep.CLEAN] for row in rows] for rows in kept])
    return np.array([row["gradients"] for row in kept[0]]), errors


def first(of: History, target: float) -> str:
    """The gradients after which the mean error is first at `target` or below.

    >>> first((np.array([10, 20]), np.array([[3.0, 2.0], [3.0, 1.0]])), 1.6)
    '20'
    """
    reached = np.flatnonzero(of[1].mean(0) <= target)
    return str(of[0][reached[0]]) if len(reached) else "–"


def tried(folder: Path) -> str:
    """Each learning rate of a sweep with its error; nothing where there was no sweep."""
    path = folder / "sweep.json"
    points = files.read(path)["points"] if path.exists() else {}
    return ", ".join(
        f"{name.partition('=')[2]}: {100 * point.get(sweep.CLEAN, np.inf):.2f}"
        for name, point in points.items()
    )


def table(histories: Mapping[str, History], folder: Path) -> str:
    plain = histories[_PLAIN]
    rows = {}
    for name, (gradients, errors) in histories.items():
        config = files.read(next((folder / name / "seeds" / "points").glob("*/config.json")))
        # The last report before the rate falls, after 30 % of training, and the last of all.
        early, last = max(int(0.3 * len(gradients)), 1) - 1, errors[:, -1]
        rows[name] = {
            "rate": config["train"]["learning_rate"],
            f"% error after {gradients[early]}": curves.spread(errors[:, early]),
            f"after {gradients[-1]}": curves.spread(last),
            "minus SGD's": curves.spread(last - plain[1][:, -1]),
            "gradients to SGD's last": first((gradients, errors), plain[1][:, -1].mean()),
            "rates tried, % error": tried(folder / name / "rates"),
        }
    return curves.to_markdown(rows)


def figure(networks: Mapping[str, Mapping[str, History]]) -> Figure:
    drawn = Figure(figsize=(4.6 * len(networks), 3.6), layout="constrained")
    panels = drawn.subplots(1, len(networks), squeeze=False)[0]
    for axes, (network, histories) in zip(panels, networks.items(), strict=True):
        for number, (name, (gradients, errors)) in enumerate(histories.items()):
            mean, spread, look = errors.mean(0), errors.std(0, ddof=1), plots.style(number)
            axes.plot(gradients, mean, label=name, **look)
            color = look["color"]
            axes.fill_between(gradients, mean - spread, mean + spread, alpha=0.15, color=color)
        axes.set_title(network)
        axes.set_xlabel("gradients")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("validation error (%)")
    panels[0].legend(frameon=False)
    return drawn


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    runs, out = Path(_RUNS.value), Path(_OUT.value)
    networks = {
        network: {
            name: history(runs / network / name / "seeds")
            for name in _CONFIG["OPTIMIZERS"]
            if (runs / network / name / "seeds" / "sweep.json").exists()
        }
        for network in _CONFIG["NETWORKS"]
    }
    networks = {network: found for network, found in networks.items() if _PLAIN in found}
    parts = [f"**{network}**\n\n{table(of, runs / network)}" for network, of in networks.items()]
    trained = {
        f"{network},{name}": files.read(runs / network / name / "seeds" / "sweep.json")["about"]
        for network, found in networks.items()
        for name in found
    }
    commits = {row: about["commit"] for row, about in trained.items()}
    about = storage.about() | {"trained by": commits}
    text = "\n\n".join([*parts, f"`{json.dumps(about)}`"]) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / "table.md", text)
    print(text)
    plots.save(figure(networks), out / "curves")


if __name__ == "__main__":
    app.run(main)
