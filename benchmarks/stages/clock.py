"""How long a stage may work, and whether it runs at toy size."""

import time
from typing import NamedTuple

import jax


class Clock(NamedTuple):
    """The end of a stage, in `time.monotonic` seconds."""

    end: float

    @classmethod
    def of(cls, seconds: float) -> "Clock":
        """One that is out in so many seconds."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds, below 0 when it is out."""
        return self.end - time.monotonic()


def toy() -> bool:
    """Without an accelerator every stage is made small: it shows that the programs run."""
    return jax.default_backend() == "cpu"
