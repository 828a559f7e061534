"""Checks and times an accelerator and trains the deck's rows on it, within a given time.

    python benchmarks/accelerator.py --minutes=9 --out=runs/accelerator

Stages run in order of importance, each in a process of its own with a share of the remaining time;
see `stages/`:

    sound          gradients of the objectives against the CPU's, a resumed run, several devices
    points         every attack's points against the CPU's
    price          seconds, images a second and share of the card's peak for J0 to J2-Lip
    against_torch  training steps and attacks beside PyTorch's on the same card
    sweep          many small networks vmapped against one after the other
    deck           J0 to J2-Lip trained on CIFAR-10, attacked, tabled
    comparison     what equal seconds of training buy, by recipe

OUT/STAGE.md is written after each part of a stage, so that one which fails or runs out of time
leaves the report so far; OUT/stages.md says how each ended. Without an accelerator all are of toy
size. The first call spends most of its time compiling; run the same command again, with a warm
cache, to measure.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

# Names, and shares of the remaining time.
STAGES = {
    "sound": 0.15,
    "points": 0.1,
    "price": 0.3,
    "against_torch": 0.1,
    "sweep": 0.05,
    "deck": 0.3,
    "comparison": 0.2,
}

# Compiled programs are kept for the next stage and the next call, as by the launchers; jax leaves
# memory to torch.
ENVIRONMENT = {
    "JAX_COMPILATION_CACHE_DIR": str(Path.home() / ".cache" / "lipreg"),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}

_MINUTES = flags.DEFINE_float("minutes", 9.0, "for all stages", lower_bound=0.01)
_OUT = flags.DEFINE_string("out", "runs/accelerator", "folder of the reports")
_STAGES = flags.DEFINE_list("stages", list(STAGES), f"of {', '.join(STAGES)}")
_ROWS = flags.DEFINE_list(
    "rows", [], "of the stage deck, with fields: j2,j2/options.method=penalty; default: all eight"
)
_FIELD = flags.DEFINE_multi_string(
    "field", [], "of its configs, model.activation=silu for instance"
)
_EPOCHS = flags.DEFINE_integer("epochs", 0, "of its rows; 0: as many as fit", lower_bound=0)
_ALONE = flags.DEFINE_string("alone", "", "run this stage in this process, for --minutes")


@flags.validator("stages", f"choose of {', '.join(STAGES)}")
def _known(stages: list[str]) -> bool:
    return bool(stages) and set(stages) <= set(STAGES)


def alone(name: str, seconds: float, out: Path) -> None:
    """One stage, whose report is written after each part."""
    end = time.monotonic() + seconds  # importing counts
    from stages.clock import Clock
    from timing import publish

    from lipreg.training import cpu

    logging.set_verbosity(logging.ERROR)  # Orbax logs its progress
    cpu.tune()
    for text in importlib.import_module(f"stages.{name}").run(Clock(end), out):
        publish(text, out / f"{name}.md")


def stage(name: str, seconds: float, out: Path, options: Sequence[str] = ()) -> str:
    """Run a stage in a process, killed when its time is up; returns how it ended, in one line."""
    argv = [sys.executable, __file__, f"--alone={name}", f"--minutes={seconds / 60}"]
    argv += [f"--out={out}", *options]
    start = time.monotonic()
    with subprocess.Popen(
        argv,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env=ENVIRONMENT | os.environ,
    ) as process:
        try:
            _, words = process.communicate(timeout=seconds)
            lines = words.strip().splitlines() or ["no word"]
            how = "done" if not process.returncode else f"failed: {lines[-1][:200]}"
            if process.returncode:
                (out / f"{name}.log").write_text(words)
        except subprocess.TimeoutExpired:
            how = "stopped: its time was out"
        finally:
            # The stage and whatever it has started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return f"| {name} | {time.monotonic() - start:.0f} | {how} |"


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the running stage is ended, too
    out, end = Path(_OUT.value).absolute(), time.monotonic() + 60 * _MINUTES.value
    out.mkdir(parents=True, exist_ok=True)
    if _ALONE.value:
        alone(_ALONE.value, 60 * _MINUTES.value, out)
        return
    options = [f"--rows={','.join(_ROWS.value)}", f"--epochs={_EPOCHS.value}"]
    options += [f"--field={field}" for field in _FIELD.value]
    lines = ["| stage | seconds | |", "| --- | --- | --- |"]
    left = {name: share for name, share in STAGES.items() if name in _STAGES.value}
    for name in list(left):
        share = left[name] / sum(left.values())
        del left[name]
        lines.append(stage(name, share * (end - time.monotonic()), out, options))
        print(lines[-1], flush=True)
        (out / "stages.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    app.run(main)
