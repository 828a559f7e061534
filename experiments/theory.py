"""Run a theorem of 1808.09540: `experiments/theory.py --config=FILE.py:NAME --out=DIR`.

NAME is an experiment of experiments/configs/theory.py (covering, clean, discrepancy, noisy,
off_manifold, random_labels, label_correction); `--config.repeats=5` and the like override its
settings. Prints the table with the sentences on it, and writes it (Markdown, CSV) with the picture
(PNG, SVG) into DIR.
"""

from functools import partial
from pathlib import Path

from absl import flags
from tqdm import tqdm

import cli
from configs.theory import get_config
from lipreg import theory
from lipreg.files import check_writable
from lipreg.theory import pictures

_CONFIG = cli.config_file()
_OUT = flags.DEFINE_string("out", None, "the folder to write to", required=True)
_SILENT = flags.DEFINE_bool("silent", False, "no progress bar")


def main(_: list[str]) -> None:
    config, out = _CONFIG.value, Path(_OUT.value)
    check_writable(out)  # before the work
    if "name" not in config:
        raise ValueError("--config names no experiment; choose experiments/configs/theory.py:NAME.")
    if config.keys() != get_config(config.name).keys():
        raise ValueError(f"Choose the experiment by the config's row: FILE.py:{config.name}.")
    progress = partial(tqdm, desc=config.name, unit="run", disable=_SILENT.value)
    study = getattr(theory, config.name)(config, progress)
    text, files = pictures.write(study, config.to_dict(), out)
    print(text)
    print("Written:", *files, sep="\n  ")


if __name__ == "__main__":
    cli.run(main, resumes=False)
