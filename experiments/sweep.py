"""Train a config at many points: `experiments/sweep.py --config=FILE.py:ROW --workdir=DIR ...`.

    python experiments/sweep.py --config=experiments/configs/digits.py:j2_lip \\
        --workdir=runs/sweep --sweep 'strengths.lam=0,0.01,0.1,1' --sweep 'seed=0:5'

Every combination of the `--sweep` axes is trained; without them, those of the config file's
`get_sweep()`. Then DIR gets one table, a picture of clean error against error under attack, and the
best point by validation. Finished points are not trained again. Points that differ in seed and
strengths alone compile once: on CPU they run one after the other, on accelerators all at once,
unless `--engine` says otherwise. `--engine=ray` gives each a process of its own. `--sweep_index=N`
trains the N-th point alone, for SLURM arrays; the command without it writes the report.
"""

from absl import flags

import cli
from lipreg.files import check_writable
from lipreg.reports import sweeps
from lipreg.runs import sweep

_CONFIG = cli.config_file()
_WORKDIR = flags.DEFINE_string("workdir", None, "the sweep's folder", required=True)
_SWEEP = flags.DEFINE_multi_string("sweep", [], "NAME=VALUE,VALUE,... or NAME=START:STOP")
_ENGINE = flags.DEFINE_enum("engine", "auto", sweep.ENGINES, "how the points are trained")
_INDEX = flags.DEFINE_integer("sweep_index", None, "train this point alone, from 0", lower_bound=0)
_SILENT = flags.DEFINE_bool("silent", False, "no progress bar")


def _axes() -> dict:
    if _SWEEP.value:
        return sweep.parse(_SWEEP.value)
    with cli.in_config_file() as defined:
        axes = defined.get("get_sweep", dict)()
    if not axes:
        raise ValueError(
            "No axes: give --sweep=NAME=VALUE,VALUE, or the config file a get_sweep()."
        )
    return axes


def main(_: list[str]) -> None:
    axes, workdir, silent = _axes(), _WORKDIR.value, _SILENT.value
    check_writable(workdir)  # before anything is said
    points = sweep.points(_CONFIG.value, axes)
    if _INDEX.value is not None:
        if flags.FLAGS["engine"].present:
            raise ValueError(f"--engine={_ENGINE.value}: the point of --sweep_index has none.")
        if _INDEX.value >= len(points):
            raise ValueError(f"--sweep_index={_INDEX.value}; choose one of 0 to {len(points) - 1}.")
        points = dict([list(points.items())[_INDEX.value]])
        print(f"Point {_INDEX.value}: {next(iter(points))}")
        sweep.run(points, workdir, engine="loop", silent=silent)
        return
    print(f"{len(points)} points in {workdir}/points")
    sweep.run(points, workdir, engine=_ENGINE.value, silent=silent)
    text, files = sweeps.report(points, axes, workdir)
    print(text)
    print("Written:", *files, sep="\n  ")


if __name__ == "__main__":
    cli.run(main)
