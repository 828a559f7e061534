"""Kills, damage, full disks: what a run, an evaluation and a sweep are worth after each.

    unshare --map-root-user --mount python benchmarks/faults.py --out=results/faults

The launchers run as processes of their own, on digits with J2-Lip & tanh; when and where they are
hit is drawn from --seed. Whatever was hit must end with the numbers of an unbroken one, bit for bit
(on CPU), or say in one line why it does not: anything else is counted as silently wrong. The small
disks are mounted, which `unshare` allows to every user of Linux and which ends with the program.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags, logging
from launched import (
    CONFIG,
    Unbroken,
    command,
    disk,
    numbers,
    remount,
    restored,
    run,
    steps,
    timed,
    unbroken,
    went_on,
)
from launched import (
    launched as training,
)

from lipreg.runs import storage
from lipreg.trees import digest

_OUT = flags.DEFINE_string("out", "results/faults", "where to write faults.md")
_SEED = flags.DEFINE_integer("seed", 0, "of moments and places")
_KILLS = flags.DEFINE_integer("kills", 20, "runs to kill", lower_bound=1)
_DAMAGES = flags.DEFINE_integer("damages", 50, "checkpoints to damage", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "some of the faults, as the source names them; default: all")


class Row(NamedTuple):
    """A fault, how often it was made, what came of it, and how often that was silently wrong."""

    fault: str
    cases: int
    outcome: str
    wrong: int = 0


def counted(outcomes: Iterable[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in Counter(outcomes).most_common())


def short(said: str) -> str:
    """How a program ended that could not work."""
    if not said:
        return "SILENT"
    return "one line" if "\n" not in said else f"{len(said.splitlines())} lines"


def phase(workdir: Path) -> str:
    """Where a run was when it was killed."""
    if any("tmp" in path.name for path in (workdir / "checkpoints").glob("*")):
        return "while a checkpoint was written"
    return f"with {len(steps(workdir))} checkpoints"


def kills(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """Kill -9 at moments uniform over the time that an unbroken run takes."""
    moments, phases, ends = rng.uniform(0, reference.seconds, _KILLS.value), [], []
    for number, moment in enumerate(moments):
        workdir = folder / f"killed{number}"
        run(training(workdir), moment)
        phases.append(phase(workdir))
        ends.append(went_on(workdir, reference))
    outcome = f"{counted(ends)}; killed {counted(phases)}"
    yield Row("kill -9 while training", len(moments), outcome, ends.count("WRONG"))
    for moment in moments:
        run(training(folder / "often"), moment)
    end = went_on(folder / "often", reference)
    yield Row("one run, killed as often", len(moments), end, int(end == "WRONG"))


def damaged(kind: str, content: bytes, rng: np.random.Generator) -> bytes | None:
    place = int(rng.integers(len(content)))
    if kind == "a flipped bit":
        flipped = content[place] ^ (1 << int(rng.integers(8)))
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    if kind == "missing bytes":
        return content[:place] + content[place + int(rng.integers(1, 64)) :]
    return content[:place] if kind == "a file cut short" else None


def damages(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """Damage to the newest of two checkpoints, in a file drawn by size or like any, by turns."""
    before, newest = steps(reference.workdir)
    older = restored(reference.workdir, reference.template, before)
    kinds = ("a flipped bit", "missing bytes", "a file cut short", "a missing file")
    ends: dict[str, list[str]] = {kind: [] for kind in kinds}
    for number in range(_DAMAGES.value):
        kind, copy = kinds[number % len(kinds)], folder / f"damaged{number}"
        shutil.copytree(reference.workdir / "checkpoints", copy / "checkpoints")
        files = sorted(f for f in (copy / "checkpoints" / str(newest)).rglob("*") if f.is_file())
        sizes = np.array([f.stat().st_size for f in files])
        weights = sizes if number // len(kinds) % 2 else np.ones(len(files))
        file = files[rng.choice(len(files), p=weights / weights.sum())]
        content = damaged(kind, file.read_bytes(), rng)
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                state = restored(copy, reference.template)
            except ValueError as error:
                ends[kind].append(f"refused in {short(str(error))}")
                continue
        warned = any(f"Checkpoint {newest} " in str(w.message) for w in caught)
        names = {(reference.numbers[1], False): "sound", (older, True): "older, with a warning"}
        ends[kind].append(names.get((state, warned), "WRONG"))
    for kind in kinds:
        wrong = ends[kind].count("WRONG")
        yield Row(f"{kind} in a checkpoint", len(ends[kind]), counted(ends[kind]), wrong)


def full_disks(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """Disks that hold a random part of what the run writes; then there is room again."""
    used = sum(f.stat().st_size for f in reference.workdir.rglob("*") if f.is_file())
    said, ends = [], []
    for number, size in enumerate(rng.uniform(0, used, 6)):
        with disk(folder / f"disk{number}", 4096 + int(size)) as place:
            said.append(short(run(training(place / "run"))))
            remount(place, "size=1g")
            ends.append(went_on(place / "run", reference))
    outcome = f"it says so in {counted(said)}; with room, {counted(ends)}"
    yield Row("a full disk", len(said), outcome, ends.count("WRONG") + said.count("SILENT"))


def read_only(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """A run that lacks its last epoch on a disk that turns read-only, and is writable again."""
    with disk(folder / "readonly", 1 << 30) as place:
        workdir = shutil.copytree(reference.workdir, place / "run")
        shutil.rmtree(workdir / "checkpoints" / str(steps(workdir)[-1]))
        remount(place, "ro")
        evaluate = command("evaluate", f"--run={workdir}", "--examples=60")
        said = [short(run(argv)) for argv in (training(place / "new"), training(workdir), evaluate)]
        remount(place, "rw")
        end = went_on(workdir, reference)
    outcome = f"it says so in {counted(said)}; writable again, {end}"
    yield Row("a read-only disk", len(said), outcome, said.count("SILENT") + (end == "WRONG"))


def two_at_once(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """A second process on the folder of a run."""
    workdir = folder / "shared"
    first = subprocess.Popen(training(workdir), stdout=subprocess.DEVNULL)
    while not (workdir / "metrics.jsonl").exists() and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # it is still at it, however long the second takes
    said = run(training(workdir))
    first.send_signal(signal.SIGCONT)
    first.wait()
    end = "same" if numbers(workdir, reference.template) == reference.numbers else "WRONG"
    refused = short(said) if "in use" in said else "SILENT"
    outcome = f"the second is refused in {refused}; the first: {end}"
    yield Row("two on one folder", 1, outcome, (end == "WRONG") + (refused == "SILENT"))


def killed_thrice(
    what: str,
    argv: Callable[[Path], list[str]],
    results: str,
    comes_to: Callable[[Path], Any],
    folders: Sequence[Path],
    rng: np.random.Generator,
) -> Row:
    """Let a program end in one folder; in another kill three starts of it, and let the fourth end.

    `results` are the files of its finished parts, none of which should be made again.
    """
    unkilled, killed = folders
    moments = rng.uniform(0, timed(argv(unkilled)), 3)
    made: dict[Path, int] = {}
    again = 0
    for moment in (*moments, None):
        if said := run(argv(killed), moment):
            raise RuntimeError(said)
        now = {path: path.stat().st_mtime_ns for path in killed.glob(results)}
        again += sum(now.get(path) != made[path] for path in made)
        made = now
    same = comes_to(unkilled) == comes_to(killed)
    outcome = f"{'same' if same else 'WRONG'}; {len(made)} parts, made twice: {again}"
    return Row(f"kill -9 while {what}", len(moments), outcome, int(not same))


def evaluations(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """An evaluation, whose parts are the distances of a batch in a norm."""

    def argv(workdir: Path) -> list[str]:
        return command("evaluate", f"--run={workdir}", "--protocol=deck", "--examples=180")

    place = lambda workdir: workdir / "evaluations/deck_test_180"

    def comes_to(workdir: Path) -> tuple[str, str]:
        with np.load(place(workdir) / "distances.npz") as file:
            return (place(workdir) / "report.md").read_text(), digest(dict(file))

    copies = [shutil.copytree(reference.workdir, folder / f"evaluated{n}") for n in range(2)]
    parts = "evaluations/deck_test_180/step_*/*[0-9].npz"
    yield killed_thrice("evaluating", argv, parts, comes_to, copies, rng)


def sweeping(workdir: Path, engine: str = "auto") -> list[str]:
    sweep = ("--sweep=strengths.lam=0,0.01,0.1", f"--engine={engine}")
    return command("sweep", *CONFIG, *sweep, f"--workdir={workdir}")


def swept(workdir: Path, reference: Unbroken) -> dict[str, Any]:
    """What a sweep comes to: its table and the numbers of its points."""
    points = {p.name: numbers(p, reference.template) for p in (workdir / "points").iterdir()}
    return points | {"table": (workdir / "sweep.csv").read_text()}


def sweeps(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """A sweep, whose parts are the last checkpoints of its points."""
    parts = f"points/*/checkpoints/{steps(reference.workdir)[-1]}"
    folders = [folder / f"sweep{n}" for n in range(2)]
    comes_to = lambda workdir: swept(workdir, reference)
    yield killed_thrice("sweeping", sweeping, parts, comes_to, folders, rng)


def ray_worker(reference: Unbroken, rng: np.random.Generator, folder: Path) -> Iterator[Row]:
    """A worker of Ray killed at its work."""
    name = "kill -9 of a Ray worker"
    if importlib.util.find_spec("ray") is None:
        yield Row(name, 0, "not run: Ray is not installed")
        return
    first, second = folder / "ray0", folder / "ray1"
    timed(sweeping(first))
    environment = os.environ | {"LIPREG_FAULTS": str(second)}  # it marks the workers as ours
    argv = sweeping(second, "ray")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment)
    workers: list[int] = []
    while not workers and process.poll() is None:
        time.sleep(0.1)
        if list((second / "points").glob("*/metrics.jsonl")):
            workers = [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if ours(p)]
    for worker in workers[:1]:
        os.kill(worker, signal.SIGKILL)
    code = process.wait()
    if code and (said := run(argv)):
        raise RuntimeError(said)
    same = swept(first, reference) == swept(second, reference)
    outcome = f"{'same' if same else 'WRONG'}, {'by the next start' if code else 'by itself'}"
    yield Row(name, len(workers[:1]), outcome, int(not same))


def ours(process: int) -> bool:
    """Whether it is a worker that Ray started for the sweep."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
        return words.startswith(b"ray::") and (
            b"LIPREG_FAULTS=" in Path(f"/proc/{process}/environ").read_bytes()
        )
    except OSError:  # it has ended
        return False


FAULTS = {
    fault.__name__: fault
    for fault in (
        kills,
        damages,
        full_disks,
        read_only,
        two_at_once,
        evaluations,
        sweeps,
        ray_worker,
    )
}


def report(rows: Sequence[Row], seconds: float) -> str:
    lines = [f"Digits, J2-Lip & tanh, 5 epochs, {seconds:.1f} s when unbroken; seed {_SEED.value}."]
    lines += ["", "| fault | cases | what came of it | silently wrong |", "|---|---|---|---|"]
    lines += [f"| {r.fault} | {r.cases} | {r.outcome} | {r.wrong} |" for r in rows]
    return "\n".join([*lines, "", json.dumps(storage.about())]) + "\n"


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    for name in _ONLY.value:
        if name not in FAULTS:
            raise app.UsageError(f"--only={name}; choose some of {', '.join(FAULTS)}")
    logging.set_verbosity(logging.FATAL)  # of Orbax, on damaged files
    out, rows = Path(_OUT.value), []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"  # of the launchers
        reference = unbroken(folder / "unbroken")
        for name in _ONLY.value or FAULTS:
            rng = np.random.default_rng([_SEED.value, *name.encode()])
            try:
                rows += FAULTS[name](reference, rng, folder)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                rows.append(Row(name, 0, f"not run: {str(error).splitlines()[-1]}"))
            (out / "faults.md").write_text(report(rows, reference.seconds))
    print(f"{report(rows, reference.seconds)}\nWritten: {out}/faults.md")


if __name__ == "__main__":
    app.run(main)
