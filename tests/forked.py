"""Processes forked from one that has paid for the imports and not touched jax."""

import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import jax
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "forked",
        "lipreg.reports",
        "lipreg.runs",
        "matplotlib.pyplot",
        "matplotlib_inline.backend_inline",
        "sklearn.datasets",
        "tensorboardX",
    ]
)


def launch(argv: list[str], log: str, flags: str | None = None, cache: str | None = None) -> None:
    """In a child: what `python argv` does, its output in a file.

    `flags` are XLA's, and `cache` a folder in which every program is kept.
    """
    prepare(log, flags)
    if cache is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    sys.path.insert(0, str(EXPERIMENTS))
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def prepare(log: str, flags: str | None) -> None:
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if flags is not None:
        os.environ["XLA_FLAGS"] = flags


class Shell(InteractiveShell):
    """IPython without a terminal: what is displayed is formatted, pictures too."""

    def enable_gui(self, gui=None):
        pass


def execute(path: str, log: str, flags: str) -> None:
    """In a child: the cells of a notebook in turn."""
    prepare(log, flags)
    config = Config()
    config.HistoryManager.enabled = False
    shell = Shell.instance(config=config)
    for cell in json.loads(Path(path).read_text())["cells"]:
        if cell["cell_type"] == "code":
            shell.run_cell("".join(cell["source"])).raise_error()
