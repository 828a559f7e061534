"""What the launchers share: processes, devices, and one line with exit code 2 for a mistake."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from lipreg import parallel
from lipreg.training import cpu

_CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "lipreg")
_COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", _CACHE),
    "where compiled programs are kept for the next start; empty: nowhere",
)
_PROCESSES = flags.DEFINE_string(
    "processes", "", "of one run: auto (SLURM, TPU pod, ...) or HOST:PORT,COUNT,NUMBER"
)
_DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")


def _as_flags(message: str) -> str:
    """A library's `workdir = runs/x` as `--workdir=runs/x`, for those names that are flags here."""

    def flag(assignment: re.Match[str]) -> str:
        name = assignment[1]
        return f"--{name}=" if name in flags.FLAGS else assignment[0]

    return re.sub(r"(?<![\w.-])([\w.]+) = ", flag, message)


def _fail(message: object) -> NoReturn:
    line = _as_flags(" ".join(str(message).split()))
    print(f"{sys.argv[0]}: {line}", file=sys.stderr)
    sys.exit(2)


def _help(argv: list[str]) -> None:
    """Print what the program does and its flags (`--helpfull`: those of all modules), and exit."""
    for full, names in ((False, {"h", "?", "help", "helpshort"}), (True, {"helpfull"})):
        if any(a.startswith("-") and a.removeprefix("-").removeprefix("-") in names for a in argv):
            app.usage(shorthelp=not full, writeto_stdout=True)
            print("" if full else "\n--helpfull: also the flags that all programs share.")
            sys.exit(0)


def _parse(argv: list[str]) -> list[str]:
    """The positional arguments. What config files and ml_collections raise becomes one line."""
    _help(argv[1:])
    try:
        return flags.FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:
        # ml_collections puts the name in quotes, a suggestion on a line of its own, and all of that
        # as a KeyError, whose text is its argument's repr, into an AttributeError.
        why = error.args[0]
        why = str(why.args[0] if isinstance(why, KeyError) else why).replace("\n", ". ")
        _fail(f"No such config field (src/lipreg/runs/config.py lists them all): {why}")
    except OSError as error:
        _fail(f"No such config file: {error.filename or error}.")
    except (flags.Error, ValueError, TypeError, SyntaxError, ImportError) as error:
        # ml_collections quotes the whole traceback of a config file; its last line is the message.
        message = str(error)
        _fail(message.strip().splitlines()[-1] if "Traceback" in message else message)


def _unraisable(raised: Any) -> None:
    # TensorStore's reads and writes that end when Orbax has already said what broke.
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def run(
    main: Callable[[list[str]], None], *, positional: bool = False, devices: bool = False
) -> None:
    """Parse the flags and call `main(positional arguments)`, with `devices` on all there are.

    A program without `positional` refuses such arguments, which absl accepts silently:
    `-config.seed 3` would be ignored.
    """
    logging.set_verbosity(logging.FATAL)  # Orbax tells its progress, and what each thread died of
    sys.unraisablehook = _unraisable
    arguments = _parse(sys.argv)
    if arguments and not positional:
        _fail(f"Unexpected argument {arguments[0]!r}: flags are written --name=value.")
    if _PROCESSES.value and not devices:
        _fail(f"--processes={_PROCESSES.value}: this program runs in one process.")
    cpu.tune()
    if _COMPILE_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", _COMPILE_CACHE.value)
    try:
        parallel.start(_PROCESSES.value)
        with parallel.over() if devices else nullcontext():
            main(arguments)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from the last checkpoint.")
    except (ValueError, FloatingPointError, OSError) as error:
        if _DEBUG.value:
            raise
        _fail(error)
