"""README.md and docs/: every block of Python runs by itself, and every command of a page in turn.

Commands run in a folder that holds what a checkout does, made small as SMALLER says, as children
of one process that has paid for the imports. A command for a cluster, an accelerator or a data set
that has to be prepared, or one that another test runs (ELSEWHERE), is parsed: its flags and its
config's fields are there.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import QUICK
from test_launchers import DRIVER

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text() for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
# What `make demo` says to try next.
DEMO = re.findall(r'NEXT = r"""(.*?)"""', (ROOT / "experiments/demo.py").read_text(), re.DOTALL)
PAGES["demo"] = f"```{DEMO[0]}```"
OWN = PAGES.pop("your_own")  # which tests/test_your_own.py runs
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "console", "sh")

# What is added to a command, where the page's own numbers are for a reader.
TRAINED = (
    "--config.train.epochs=1",
    "--config.model.settings.channels=(2,)",
    "--config.report.examples=16",
    "--config.report.pgd.steps=1",
)
SMALLER = {
    "train": [*TRAINED, "--silent"],
    "evaluate": ["--examples=8", "--norms=l2", "--silent"],
    "table": ["--norms=l2"],
    "inspect_step": [*TRAINED, "--devices=2"],
}
# Words of commands that run for longer, and the test that runs such a one.
ELSEWHERE = {
    "experiments/certify.py": "test_your_own.py",
    "experiments/sweep.py": "test_sweep.py",
    "experiments/theory.py": "test_theory.py",
    "my_parts": "test_your_own.py",
    "--processes": "test_parallel.py",
    "--protocol=": "test_experiment.py",
}
# Programs of others, and words of the shell.
OTHERS = {"cd", "do", "done", "export", "gcloud", "git", "ray", "sbatch", "for", "wait"}
# `python parsed.py SCRIPT --flags`: no more than reading the flags, for the config file too.
PARSED = """import os, runpy, sys
from absl import flags
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
try:
    runpy.run_path(sys.argv[0])
except ModuleNotFoundError as missing:
    sys.exit(missing.name != "torch")  # of the extra `peers`
assert sys.argv[0] == "experiments/table.py" or len(flags.FLAGS(sys.argv)) == 1, "stray arguments"
"""


def commands(block):
    """The commands of a shell's block as lists of words, those inside of a quoted word too."""
    text = re.sub(r"(^|\s)#.*", r"\1", block, flags=re.MULTILINE).replace("\\\n", " ")
    words = shlex.shlex(text, posix=True, punctuation_chars="&;\n")
    words.whitespace, words.whitespace_split = " \t", True
    found, inner = [[]], []
    for word in words:
        if not word.strip("&;\n"):
            found.append([])
            continue
        found[-1].append(word)
        if " python " in word:
            inner += commands(word.partition("=")[2])
    return [command for command in found + inner if command]


COMMANDS = {
    page: [c for language, b in FENCED.findall(text) if language in SHELL for c in commands(b)]
    for page, text in PAGES.items()
}


def launches(found):
    """What follows `python`; `...` are the arguments of that program's first command."""
    first = {}
    for argv in [c[c.index("python") + 1 :] for c in found if "python" in c]:
        if "..." in argv:
            argv = [argv[0], *first[argv[0]], *(a for a in argv[1:] if a != "...")]
        first.setdefault(argv[0], argv[1:])
        yield argv


LAUNCHED = {page: list(launches(found)) for page, found in COMMANDS.items()}


def parsed_only(argv):
    script, *flags = argv
    prepared = any("/configs/" in f and not re.search(r"/(digits|theory)\.py", f) for f in flags)
    return (
        not script.startswith("experiments/") or prepared or any(w in f"{argv}" for w in ELSEWHERE)
    )


def first(page):
    """The first page that runs the same commands, once for all of them."""
    ran = {p: [argv for argv in found if not parsed_only(argv)] for p, found in LAUNCHED.items()}
    return next(p for p in ran if ran[p] == ran[page])


def smaller(argv, page):
    """A command as the test runs it; its runs are the page's own."""
    script, *flags = [argument.replace("runs/", f"runs/{page}/") for argument in argv]
    if parsed_only(argv):
        return ["parsed.py", script, *(re.sub(r"\$\w+", "0", flag) for flag in flags)]
    return [script, *flags, *SMALLER[Path(script).stem]]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Exit code and error output of every command, by page."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("experiments", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "parsed.py").write_text(PARSED)
    (folder / "my_parts.py").write_text(
        next(b for name, b in FENCED.findall(OWN) if name == "python")
    )
    smalls = {
        page: [tuple(smaller(argv, first(page))) for argv in found]
        for page, found in LAUNCHED.items()
    }
    every = dict.fromkeys(argv for found in smalls.values() for argv in found)
    calls = [(argv, str(folder / f"log{i}")) for i, argv in enumerate(every)]
    settings = {
        "PYTHONPATH": str(ROOT / "src"),
        "XLA_FLAGS": QUICK,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | settings,
        check=True,
    )
    ends = [(argv, Path(f"{log}.stderr").read_text()) for argv, log in calls]
    outcomes = dict(zip(every, zip(map(int, done.stdout.split()), ends, strict=True), strict=True))
    return {page: [outcomes[argv] for argv in found] for page, found in smalls.items()}


@pytest.mark.parametrize("page", [page for page, found in LAUNCHED.items() if found])
def test_the_commands_of_a_page_work_one_after_the_other(page, launched):
    failed = [(argv, err[-1000:]) for code, (argv, err) in launched[page] if code]
    assert failed == []


@pytest.mark.parametrize("page", [page for page, found in COMMANDS.items() if found])
def test_every_program_of_a_page_is_known_and_so_is_what_it_makes_and_installs(page):
    makefile, setup = (ROOT / "Makefile").read_text(), (ROOT / "setup.cfg").read_text()
    for command in COMMANDS[page]:
        assert {"python", "make", "pip"} & {*command} or command[0] in OTHERS, command
        if command[0] == "make":
            assert all(f"\n{target}:" in makefile for target in command[1:]), command
        if "pip" in command:
            named = re.findall(r"\[([\w,]+)\]", " ".join(command))
            assert all(f"\n{extra} =" in setup for e in named for extra in e.split(",")), command
            assert "-c" not in command or (ROOT / command[command.index("-c") + 1]).is_file()


NAMES = {  # of a block that several pages have, the last one
    block: f"{page} {number}"
    for page, text in PAGES.items()
    for number, (language, block) in enumerate(FENCED.findall(text))
    if language == "python"
}
PYTHON = {name: block for block, name in NAMES.items()}


@pytest.mark.parametrize("name", PYTHON)
def test_a_block_of_python_runs_by_itself(name, capsys):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(PYTHON[name], {})  # with a reader's settings, not the tests' strict ones
    said = capsys.readouterr().out
    assert ("print(" in PYTHON[name]) == bool(said)
    assert "nan" not in said


def test_pages_link_to_files_that_are_there():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    links = {link for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())}
    assert links
    assert [link for link in sorted(links) if not (ROOT / link).exists()] == []
