"""Progress as lines of text, where no bar is drawn."""

import sys
import time
from collections.abc import Callable

__all__ = ["lines"]


def lines(every: float = 10.0) -> Callable[[str], None]:
    """A function that prints a message to stderr, at most one in `every` seconds.

    >>> say = lines()
    >>> say("l2 pgd: 250 of 1000 images")
    """
    last = -every

    def say(message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            print(message, file=sys.stderr, flush=True)

    return say
