"""The launchers as processes that can be killed, what a run comes to, and small disks."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lipreg import runs, training
from lipreg.runs import storage
from lipreg.trees import digest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CONFIG = (
    f"--config={EXPERIMENTS}/configs/digits.py:j2_lip_tanh",
    "--config.train.epochs=5",
    "--config.evaluation.batch_size=60",
)


def command(launcher: str, *arguments: str) -> list[str]:
    return [sys.executable, f"{EXPERIMENTS}/{launcher}.py", *arguments, "--silent"]


def launched(workdir: Path) -> list[str]:
    return command("train", *CONFIG, f"--workdir={workdir}")


def run(argv: Sequence[str], seconds: float | None = None) -> str:
    """Run a program, killed by signal 9 after `seconds`; what it says if it fails by itself."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return ""
    return said.strip() or "no word" if process.returncode else ""


def timed(argv: Sequence[str]) -> float:
    start = time.perf_counter()
    if said := run(argv):
        raise RuntimeError(said)
    return time.perf_counter() - start


def restored(workdir: Path, template: training.State, at_most: int | None = None) -> str:
    """A hash of the newest sound checkpoint, read and verified."""
    with storage.checkpoints(workdir) as manager:
        state = storage.restore(manager, template, at_most)
    return digest(state)


def numbers(workdir: Path, template: training.State) -> tuple[bytes, str]:
    """What a run comes to: its log, and its last state."""
    return (workdir / "metrics.jsonl").read_bytes(), restored(workdir, template)


def steps(workdir: Path) -> list[int]:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


class Unbroken(NamedTuple):
    """The run that nothing happens to."""

    workdir: Path
    seconds: float
    template: training.State
    numbers: tuple[bytes, str]


def unbroken(workdir: Path) -> Unbroken:
    seconds = timed(launched(workdir))
    template = runs.prepare(storage.read_config(workdir)).state
    return Unbroken(workdir, seconds, template, numbers(workdir, template))


def went_on(workdir: Path, reference: Unbroken) -> str:
    """Train again, to the end, and compare."""
    if said := run(launched(workdir)):
        return f"failed ({said.splitlines()[-1]})"
    return "same" if numbers(workdir, reference.template) == reference.numbers else "WRONG"


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)
