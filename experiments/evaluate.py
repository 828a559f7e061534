"""Attack a run: `python experiments/evaluate.py --run=DIR [--examples=1000 --steps=20 ...]`.

Finds each test image's smallest perturbation in l_2 and in the maximum norm by PGD, and writes
into the run: distances.npz (per image), curve.jsonl (error at each radius), the table's row, and
pictures of both curves and of attacked images. The distances are upper bounds of the true ones: a
stronger attack can only lower them.
"""

from functools import partial

from absl import flags
from tqdm import tqdm

import cli
from lipreg import curves, experiment, report
from lipreg.config import label

_RUN = flags.DEFINE_string("run", None, "a run that has a checkpoint", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "tune on validation only")
_EXAMPLES = flags.DEFINE_integer("examples", None, "images, from the first; default: the config's")
_STEPS = flags.DEFINE_integer("steps", None, "steps of PGD; default: the config's")
_RESTARTS = flags.DEFINE_integer("restarts", None, "of PGD; default: the config's")
_SEED = flags.DEFINE_integer("seed", 0, "of the attack")
_SILENT = flags.DEFINE_bool("silent", False, "no progress bar")


def main(_: list[str]) -> None:
    overrides = {"examples": _EXAMPLES.value, "steps": _STEPS.value, "restarts": _RESTARTS.value}
    for name, value in overrides.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value}; it must be at least 1.")
    loaded = experiment.load(_RUN.value, _SPLIT.value)
    loaded.config.evaluation.update({k: v for k, v in overrides.items() if v is not None})
    progress = partial(tqdm, desc=label(loaded.config), unit="batch", disable=_SILENT.value)
    row = report.evaluate(
        loaded, _RUN.value, split=_SPLIT.value, seed=_SEED.value, progress=progress
    )
    print(curves.to_markdown({label(loaded.config): row}))
    print(f"Written to {_RUN.value}: curve.jsonl, distances.npz, curve_*.png, attacked_l2.png")


if __name__ == "__main__":
    cli.run(main)
