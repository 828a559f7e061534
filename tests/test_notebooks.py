"""Every notebook runs from top to bottom, in a process of its own, as a reader would run it."""

import json
from pathlib import Path

import pytest
from conftest import QUICK
from forked import FORKED, execute

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_and_is_kept_with_its_outputs(path, tmp_path):
    log = tmp_path / "log"
    process = FORKED.Process(target=execute, args=(str(path), str(log), QUICK))
    process.start()
    process.join(600)
    process.kill()  # one that hangs
    process.join()
    assert process.exitcode == 0, log.read_text()[-2000:]

    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) / 2
