"""What the launchers share: processes, devices, and one line with exit code 2 for a mistake."""

import math
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from lipreg import parallel
from lipreg.progress import lines
from lipreg.runs.config import drop_settings, leaves, no_field
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
flags.disclaim_key_flags()  # what is defined below is the program's own, for --help


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


def config_file() -> flags.FlagHolder[Any]:
    """The flag `--config`, which must be given. It reads files that `--flagfile` names at once."""
    try:
        config = config_flags.DEFINE_config_file("config", lock_config=True)
    except flags.Error as error:
        _fail(_in_words(error))
    flags.mark_flag_as_required("config")
    return config


_HELP = ("h", "?", "help", "helpshort", "helpfull")


def finite(*names: str) -> None:
    """Numbers that are flags, as `--seconds`, which a bound does not keep from nan and inf."""
    for name in names:
        known = lambda value: value is None or math.isfinite(value)
        flags.register_validator(name, known, "it must be finite")


def seed(what: str) -> Any:
    """--seed: JAX takes its last 32 bits."""
    return flags.DEFINE_integer("seed", 0, what, lower_bound=0, upper_bound=2**32 - 1)


def _help(argv: list[str], own: Any) -> None:
    """Print what the program does, its flags and, of a config that is named, the fields; exit."""
    asked = [a for a in argv[1:] if a.startswith("-") and a.lstrip("-") in _HELP]
    if not asked:
        return
    full = any(a.endswith("helpfull") for a in asked)
    app.usage(shorthelp=not full, writeto_stdout=True)
    print("" if full else "\n--helpfull: also the flags that all programs share.")
    if own is not None:
        _fields([a for a in argv if a not in asked], own)
    elif "config" in flags.FLAGS:
        print("--config=FILE.py:ROW --help: also the fields of that config.")
    sys.exit(0)


def _fields(argv: list[str], own: Any) -> None:
    """Print the fields of the config that the arguments name, as they have them."""
    config = flags.FLAGS["config"]
    try:
        flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        _fail(_no_field(argv, own, error))
    except flags.IllegalFlagValueError as error:
        if config.value is None:  # else a required flag, which help does not need
            _fail(error)
    _settle(own)
    print("\nFields of the config, each with its value and type:")
    for name, value in leaves(config.value).items():
        print(f"  --config.{name}={value}  ({type(value).__name__})")


def _parse(argv: list[str]) -> list[str]:
    """The positional arguments. What config files and ml_collections raise becomes one line."""
    own = None
    try:
        argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        own = _own_config(argv) if "config" in flags.FLAGS else None
        _help(argv, own)
        positional = flags.FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:
        _fail(_no_field(argv, own, error))
    except (flags.Error, ValueError, TypeError) as error:
        _fail(_in_words(error))
    empty = [name for name in _PLACES if name in flags.FLAGS and flags.FLAGS[name].value == ""]
    if empty:
        _fail(f"--{empty[0]}=: it is empty; name a folder.")
    if "" in positional:
        _fail("An argument is empty; name a folder.")
    if own is not None:
        _settle(own)
    return positional


_PLACES = ("run", "workdir", "out", "surrogate")  # flags of launchers


def _in_words(error: Exception) -> str:
    """What absl says of a flag that is missing, or neither true nor false, as one would say it."""
    missing = re.match(r"flag --(\w+)=None: Flag --\1 must have a value", str(error))
    if missing:
        return f"--{missing[1]} is missing; --help lists the flags."
    message = str(error).removeprefix("ERROR:: ")  # of a file that is not there
    return re.sub(r"\('Non-boolean .*\)$", "it is neither true nor false.", message)


def _file(argv: list[str]) -> tuple[str, list[str]] | None:
    """The file that the flag `--config` names, and its row where it has one."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            path, colon, row = (value if equals else following).partition(":")
            return path, [row] if colon else []
    return None


def _own_config(argv: list[str]) -> Any:
    """The config as its file has it, without the other flags; None where no file is named."""
    named = _file(argv)
    if named is None:
        return None
    path, row = named
    if not os.path.isfile(path):
        _fail(f"--config={path}: no such file.")
    with in_config_file(path) as defined:
        if "get_config" not in defined:
            _fail(f"--config={path}: it defines no get_config().")
        config = defined["get_config"](*row)
    if not isinstance(config, ConfigDict):
        _fail(f"--config={path}: get_config() returns {config!r}; it must return a config.")
    return config


@contextmanager
def in_config_file(path: str = "") -> Iterator[dict[str, Any]]:
    """What the config file defines. Whatever it raises, in the block too, is one line with a place.

    A ValueError that was raised in so many words is for whoever chose the row: it needs no place.
    """
    path = path or config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    try:
        yield runpy.run_path(path)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and (frames[-1].line or "").startswith("raise"):
            _fail(error)
        lines, what = [f.lineno for f in frames if f.filename == path], str(error)
        if isinstance(error, SyntaxError):
            path, lines, what = error.filename or path, [error.lineno], error.msg
        place = f"{path}, line {lines[-1]}" if lines else f"--config={path}"
        _fail(f"{place}: {type(error).__name__}: {what}")


def _no_field(argv: list[str], own: Any, error: Exception) -> str:
    """The full name of a field that is not there, of which ml_collections says the last part."""
    names = list(leaves(own)) if own is not None else []
    given = [a.lstrip("-").partition("=")[0].split(".", 1) for a in argv]
    wrong = [
        end[0]
        for first, *end in given
        if first in ("config", "noconfig") and end and end[0] not in names
    ]
    return f"--config.{wrong[0]}: {no_field(wrong[0], names)}" if wrong else str(error)


def _settle(own: Any) -> None:
    """The flags' config without what the file has set for a network that the flags replace."""
    config = flags.FLAGS["config"]
    given = config_flags.get_override_values(config)
    if given.get("train.steps") and "train.epochs" in given:
        _fail(
            f"--config.train.epochs={given['train.epochs']}: the run has "
            f"--config.train.steps={given['train.steps']} instead; give one of the two."
        )
    if any(field.startswith("model.") for field in given):
        try:
            drop_settings(config.value, own.model.name, given)
        except ValueError as error:
            _fail(error)


def _unraisable(raised: Any) -> None:
    # TensorStore's reads and writes that end when Orbax has already said what broke.
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


@contextmanager
def progress(silent: bool) -> Iterator[Callable[[str], None] | None]:
    """What shows a message: beside a clock on a terminal, else as a line now and then."""
    if silent or not parallel.is_main():
        yield None
    elif not sys.stderr.isatty():
        yield lines()
    else:
        with tqdm(bar_format="{elapsed} {desc}") as bar:
            yield bar.set_description_str


def run(
    main: Callable[[list[str]], None],
    *,
    positional: bool = False,
    devices: bool = False,
    resumes: bool = True,
) -> None:
    """Parse the flags and call `main(positional arguments)`, with `devices` on all there are.

    What is stopped goes on when it is called again if it `resumes`.

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
        _fail("stopped; the same command goes on from what is kept." if resumes else "stopped.")
    except (ValueError, FloatingPointError, OSError) as error:
        if _DEBUG.value:
            raise
        _fail(error)
    except jax.errors.JaxRuntimeError as error:  # of the device: no memory, a port that is taken
        if _DEBUG.value:
            raise
        more = "A smaller batch_size takes less memory; " * ("RESOURCE_EXHAUSTED" in str(error))
        first = (str(error).splitlines() or [type(error).__name__])[0]
        _fail(f"{first} {more}--debug says where.")
