"""The main job in three minutes: train J0, J1, J2 and J2-Lip & tanh on digits, attack, compare.

`python experiments/demo.py --workdir=runs/demo [--seeds=5]`. A row is what train.py and
evaluate.py do with experiments/configs/digits.py; one that is finished is not done again.
"""

from pathlib import Path

from absl import flags

import cli
from configs import digits
from lipreg import reports, runs
from lipreg.runs.config import label

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "where the runs and the table go")
_SEEDS = flags.DEFINE_integer("seeds", 1, "runs per row")
_SILENT = flags.DEFINE_bool("silent", False, "no progress bars")

ROWS = ("j0", "j1", "j2", "j2_lip_tanh")


def main(_: list[str]) -> None:
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


if __name__ == "__main__":
    cli.run(main)
