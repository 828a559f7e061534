"""How long a stage may run, and whether it runs at toy size."""

import time
from typing import NamedTuple

import jax


class Clock(NamedTuple):
    """The end of a stage, in `time.monotonic` seconds."""

    end: float

    @classmethod
    def lasting(cls, seconds: float) -> "Clock":
        """A clock that runs out after `seconds`."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """The seconds left, below 0 when time is up."""
        return self.end - time.monotonic()


def shared() -> None:
    """RuntimeError on a TPU: one process has it, and what a stage starts would run on the CPU."""
    if jax.default_backend() == "tpu":
        raise RuntimeError(
            "a TPU serves one process, and this stage starts others; use the launchers instead."
        )


def toy() -> bool:
    """Whether stages are made small: without an accelerator they only show that programs run."""
    return jax.default_backend() == "cpu"
