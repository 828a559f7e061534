"""The main job in three minutes: train J0, J1, J2 and J2-Lip & tanh on digits, attack, compare.

`python experiments/demo.py --workdir=runs/demo [--seeds=5]`. A row is what train.py and
evaluate.py do with experiments/configs/digits.py; one that is finished is not done again. At the
end stands how long it took since `--started`, which `make demo` sets to its own start, so that the
installation counts.
"""

import os
import sys
import time
from pathlib import Path

from absl import flags

import cli
from configs import digits
from lipreg import reports, runs
from lipreg.runs.config import label

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "where the runs and the table go")
_SEEDS = flags.DEFINE_integer("seeds", 1, "runs per row")
_STARTED = flags.DEFINE_float("started", None, "when the clock began, as `date +%s` says; now")
_SILENT = flags.DEFINE_bool("silent", False, "no progress bars")

ROWS = ("j0", "j1", "j2", "j2_lip_tanh")

NEXT = r"""
python experiments/evaluate.py --run=runs/demo/j2_lip_tanh-0 --protocol=autoattack --examples=50
python experiments/train.py --config=experiments/configs/digits.py:j2 --config.strengths.eps=0.8 \
    --workdir=runs/j2_0.8
python experiments/sweep.py --config=experiments/configs/digits.py:j2_lip --workdir=runs/sweep \
    --sweep 'strengths.lam=0,0.01,0.1'
"""


def _next(workdir: Path) -> str:
    """NEXT for these runs, and for the interpreter that found the library."""
    python = min(sys.executable, os.path.relpath(sys.executable), key=len)
    return NEXT.replace("runs/demo", str(workdir)).replace("\npython", f"\n{python}").strip()


def main(_: list[str]) -> None:
    started = time.time() if _STARTED.value is None else _STARTED.value
    if _SEEDS.value < 1:
        raise ValueError(f"--seeds={_SEEDS.value}; it must be at least 1.")
    workdir = Path(_WORKDIR.value)
    finished = []
    for row in ROWS:
        for seed in range(_SEEDS.value):
            config = digits.get_config(row)
            config.seed = seed
            run = workdir / f"{row}-{seed}"
            runs.train_run(runs.prepare(config), run, silent=_SILENT.value)
            if not reports.evaluated(run):
                reports.evaluate(runs.load(run), run)
            print(f"{label(config)}, seed {seed}: trained and attacked in {run}")
            finished.append(run)
    text, files = reports.table(finished, workdir)
    print(f"\n{text}")
    print("Pictures:", *(f for f in files if f.suffix == ".png"), sep="\n  ")
    print(f"\n{time.time() - started:.0f} s from the start to the table and the pictures. Next:\n")
    print(_next(workdir))


if __name__ == "__main__":
    cli.run(main)
