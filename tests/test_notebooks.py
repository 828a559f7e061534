"""Every notebook runs from top to bottom, in a fresh kernel, as a reader would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_and_is_kept_with_its_outputs(path):
    # In a process of its own: nbclient's kernel inherits neither our devices nor our warnings.
    environment = os.environ | {"XLA_FLAGS": QUICK}
    code = (
        "import sys, nbclient, nbformat\n"
        "nbclient.NotebookClient(nbformat.read(sys.argv[1], 4), timeout=600).execute()"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) / 2
