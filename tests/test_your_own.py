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
from conftest import QUICK
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
    "train.py": [
        f"--config.{field}"
        for field in (
            "train.epochs=2",
            "options.steps=2",
            "evaluation.radii=3",
            "report.pgd.steps=2",
        )
    ],
    "evaluate.py": ["--examples=40", "--steps=3", "--norms=l2"],
    "table.py": ["--norms=l2"],
    "certify.py": ["--examples=5"],
}


def test_the_file_is_short_and_so_is_its_objective():
    assert len(CODE.splitlines()) < 80
    functions = {node.name: node for node in ast.parse(CODE).body if hasattr(node, "name")}
    trades = functions["trades"]
    assert trades.end_lineno - trades.lineno + 1 <= 25


def run(folder, commands):
    """Run launchers in forked children of one process that works in `folder`; all succeed."""
    cases = [(argv, str(folder / f"{i}")) for i, argv in enumerate(commands)]
    paths = [str(ROOT / "src"), str(ROOT / "experiments")]
    settings = {
        "PYTHONPATH": os.pathsep.join(paths),
        "XLA_FLAGS": QUICK,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER],  # -P: the folder is not on sys.path
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | settings,
        check=True,
    )
    errors = [Path(f"{out}.stderr").read_text() for _, out in cases]
    codes = done.stdout.split()
    assert codes == ["0"] * len(cases), "\n".join(errors)[-3000:]


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
    (report,) = workdir.glob("evaluations/*/report.md")
    assert "momentum" in report.read_text()
    assert "| trades |" in (folder / "runs" / f"{name}_table" / "table.md").read_text()
    assert "| margin, local | certified |" in (workdir / "certificates.md").read_text()


def test_runs_of_own_parts_that_were_killed_end_as_if_they_had_not_been(folder):
    """The masks of dropout are those that the steps would have drawn."""
    workdirs = [folder / "runs" / name for name in ("images", "features")]
    numbers = lambda: [(w / "metrics.jsonl").read_text().splitlines()[-1] for w in workdirs]
    newest = [max((w / "checkpoints").iterdir(), key=lambda p: int(p.name)) for w in workdirs]
    before = numbers()
    for checkpoint in newest:
        shutil.rmtree(checkpoint)
    run(folder, [[*a, *SMALLER["train.py"]] for a in COMMANDS if a[0].endswith("train.py")])
    assert all(checkpoint.is_dir() for checkpoint in newest)
    assert numbers() == before
