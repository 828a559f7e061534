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

    Of several processes the first one writes; all of them know the `rows`. `config` goes to those
    that show it.

    Raises: ValueError for a log whose package is not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        step: int = 0,
        logs: Sequence[str] = ("jsonl", "tensorboard"),
        config: Mapping[str, Any] | None = None,
    ):
        self.workdir = Path(workdir)
        self.rows = [row for row in metrics(workdir) if row["step"] <= step]
        self.config, self.stack = dict(config or {}), ExitStack()
        logs = logs if parallel.is_main() else ()
        self._writes = [LOGS[name](self, step) for name in logs]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **row})
        for write in self._writes:
            write(step, row)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def _jsonl(log: Log, step: int) -> Write:
    path = log.workdir / "metrics.jsonl"
    files.write(path, "".join(json.dumps(row) + "\n" for row in log.rows))
    file = log.stack.enter_context(path.open("a", buffering=1))

    def write(step: int, row: Mapping[str, float]) -> None:
        file.write(json.dumps({"step": step, **row}) + "\n")

    return write


def _tensorboard(log: Log, step: int) -> Write:
    # Here and not above: tensorboardX imports torch where torch is installed. Its SummaryWriter
    # has a thread that dies on a full disk, and would let the run wait for it.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    folder = log.workdir / "tensorboard"
    folder.mkdir(exist_ok=True)
    board = EventsWriter(str(folder / "events"))
    log.stack.callback(board.close)

    def event(step: int, **content: Any) -> None:
        made: Any = event_pb2.__dict__["Event"]  # a class that no checker can see
        board.write_event(made(wall_time=time.time(), step=step, **content))

    def write(step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            event(step, summary={"value": [{"tag": name, "simple_value": value}]})

    event(step + 1, session_log={"status": "START"})  # hides what came after
    return write


def _wandb(log: Log, step: int) -> Write:
    """Weights & Biases; WANDB_MODE=offline needs no network."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "report.logs has wandb, which is not installed: pip install -e '.[wandb]'."
        ) from None
    mode: Any = os.environ.get("WANDB_MODE", "online")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "lipreg"),
        name=log.workdir.name,
        dir=log.workdir,
        config=log.config,
        mode=mode,
        settings=wandb.Settings(silent=True),
    )
    log.stack.callback(run.finish)
    return lambda step, row: run.log(dict(row), step=step)


LOGS: dict[str, Callable[..., Write]] = {
    "jsonl": _jsonl,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
