"""docs/your_own.md runs as it stands there, from a folder of its own."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_launchers import DRIVER

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_own.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line.replace("REPO", str(ROOT)))[1:]
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
# The page's numbers are for a reader, these for a test.
SMALLER = {
    "train.py": ["--config.train.epochs=2", "--config.evaluation.radii=5"],
    "evaluate.py": ["--examples=40", "--steps=5"],
    "certify.py": ["--examples=20"],
}


def test_the_file_is_short_and_so_is_its_objective():
    assert len(CODE.splitlines()) < 80
    functions = {node.name: node for node in ast.parse(CODE).body if hasattr(node, "name")}
    trades = functions["trades"]
    assert trades.end_lineno - trades.lineno + 1 <= 25


def run(folder, commands):
    """The outputs of launchers, in forked children of one process that works in `folder`."""
    cases = [(argv, str(folder / f"{i}")) for i, argv in enumerate(commands)]
    kept = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT / "src")}
    kept["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | kept,
        check=True,
    )
    outputs = [Path(f"{out}.stdout").read_text() for _, out in cases]
    errors = [Path(f"{out}.stderr").read_text() for _, out in cases]
    codes = done.stdout.split()
    assert codes == ["0"] * len(cases), "\n".join(errors)[-3000:]
    return outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all commands of the page have run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "my_parts.py").write_text(CODE)
    run(folder, [[*argv, *SMALLER.get(Path(argv[0]).name, [])] for argv in COMMANDS])
    return folder


@pytest.mark.parametrize("name", ["images", "features"])
def test_own_parts_are_trained_attacked_tabled_and_certified(name, folder):
    workdir = folder / "runs" / name
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["objective"] > 0
    assert {"loss", "gap", "validation_error_pgd"} <= set().union(*rows)
    assert (folder / "runs" / f"{name}_table.md").exists() or list(folder.glob(f"runs/{name}_t*"))
    assert (workdir / "certificates.md").is_file()
    (report,) = workdir.glob("evaluations/*/report.md")
    assert "momentum" in report.read_text()


@pytest.mark.parametrize("name", ["images", "features"])
def test_a_run_of_own_parts_that_was_killed_ends_as_if_it_had_not_been(name, folder):
    """The masks of dropout are those that the steps would have drawn."""
    workdir = folder / "runs" / name
    last = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    before = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    shutil.rmtree(last)
    (train,) = [argv for argv in COMMANDS if f"--workdir=runs/{name}" in argv]
    run(folder, [[*train, *SMALLER["train.py"]]])
    after = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.is_dir()
    assert after == before
