"""The reports of a run as it trains: metrics.jsonl, and for those who watch, other logs."""

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lipreg import files, parallel

__all__ = ["LOGS", "Log", "metrics"]

Write = Callable[[int, Mapping[str, float]], None]


def metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of metrics.jsonl up to the first that is none, with a warning.

    A last line cut short by a kill is left out without a word.
    """
    rows = []
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "step" not in row:
            if number < len(lines):
                lost = f"{path}: line {number} is no report; it and those after it are left out."
                warnings.warn(lost, stacklevel=2)
            break
        rows.append(row)
    return rows


class Log:
    """Appends rows to metrics.jsonl and other `logs`; old rows after `step` are dropped.

    Of several processes the first one writes. `config` goes to those that show it.

    Raises: ValueError for a log whose package is not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        step: int = 0,
        logs: Sequence[str] = ("jsonl", "tensorboard"),
        config: Mapping[str, Any] | None = None,
    ):
        self._stack, self._writes = ExitStack(), []
        if parallel.is_main():
            self._writes = [LOGS[name](Path(workdir), step, config, self._stack) for name in logs]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        for write in self._writes:
            write(step, row)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _jsonl(workdir: Path, step: int, config: Any, stack: ExitStack) -> Write:
    kept = [row for row in metrics(workdir) if row["step"] <= step]
    files.write(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
    file = stack.enter_context((workdir / "metrics.jsonl").open("a", buffering=1))

    def write(step: int, row: Mapping[str, float]) -> None:
        file.write(json.dumps({"step": step, **row}) + "\n")

    return write


def _tensorboard(workdir: Path, step: int, config: Any, stack: ExitStack) -> Write:
    # Here and not above: tensorboardX imports torch where torch is installed. Its SummaryWriter
    # has a thread that dies on a full disk, and would let the run wait for it.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    (workdir / "tensorboard").mkdir(exist_ok=True)
    board = EventsWriter(str(workdir / "tensorboard" / "events"))
    stack.callback(board.close)

    def event(step: int, **content: Any) -> None:
        made: Any = event_pb2.__dict__["Event"]  # a class that no checker can see
        board.write_event(made(wall_time=time.time(), step=step, **content))

    def write(step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            event(step, summary={"value": [{"tag": name, "simple_value": value}]})

    event(step + 1, session_log={"status": "START"})  # hides what came after
    return write


def _wandb(workdir: Path, step: int, config: Any, stack: ExitStack) -> Write:
    """Weights & Biases; WANDB_MODE=offline needs no network."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "report.logs has wandb, which is not installed: pip install 'lipreg[wandb]'."
        ) from None
    mode: Any = os.environ.get("WANDB_MODE", "online")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "lipreg"),
        name=workdir.name,
        dir=workdir,
        config=dict(config or {}),
        mode=mode,
        settings=wandb.Settings(silent=True),
    )
    stack.callback(run.finish)
    return lambda step, row: run.log(dict(row), step=step)


LOGS: dict[str, Callable[..., Write]] = {
    "jsonl": _jsonl,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
