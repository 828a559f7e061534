"""Train one run: `experiments/train.py --config=FILE.py:ROW --workdir=DIR [--config.x.y=z ...]`.

ROW is an objective of the config file (j0, j1, j2, j2_lip, ...), `_tanh` appended for the tanh
head, or your own, package.module:name (docs/your_own.md). Every field of lipreg/runs/config.py can
be overridden. The same command on the same folder resumes the run. Each batch is sharded over all
devices, those of all `--processes`.
"""

from absl import flags

import cli
from lipreg import datasets, models, parallel, runs
from lipreg.runs import storage

_CONFIG = cli.config_file()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run's folder: new, or of this very config", required=True
)
_SILENT = flags.DEFINE_bool("silent", False, "no progress bar")


def _tells() -> bool:
    return not _SILENT.value and parallel.is_main()


def main(_: list[str]) -> None:
    storage.check_workdir(_WORKDIR.value, _CONFIG.value.to_dict())  # before the work of preparing
    prepared = runs.prepare(_CONFIG.value)
    if _tells():
        weights = models.count_parameters(prepared.state.params)
        print(f"{prepared.config.model.name}: {weights:,} weights")
        print(
            f"{prepared.config.data.name}: {datasets.size(prepared.training):,} images to train on"
        )
    runs.train_run(prepared, _WORKDIR.value, silent=_SILENT.value)
    if _tells():
        print(f"Next: python experiments/evaluate.py --run={_WORKDIR.value}")


if __name__ == "__main__":
    cli.run(main, devices=True)
