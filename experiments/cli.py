"""What the launchers share: a user's mistake is one line on stderr and exit code 2."""

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags, logging

_DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")


def _fail(message: object) -> NoReturn:
    line = " ".join(str(message).split())
    print(f"{sys.argv[0]}: {line}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    """The positional arguments. What config files and ml_collections raise becomes one line."""
    try:
        return flags.FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:
        _fail(f"No such config field: {error}. src/lipreg/config.py lists them all.")
    except OSError as error:
        _fail(f"No such config file: {error.filename or error}.")
    except (flags.Error, ValueError, TypeError, SyntaxError, ImportError) as error:
        # ml_collections quotes the whole traceback of a config file; its last line is the message.
        message = str(error)
        _fail(message.strip().splitlines()[-1] if "Traceback" in message else message)


def run(main: Callable[[list[str]], None], *, positional: bool = False) -> None:
    """Parse the flags and call `main(positional arguments)`.

    A program without `positional` refuses such arguments, which absl accepts silently:
    `-config.seed 3` would be ignored.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax tells its own progress at INFO
    arguments = _parse(sys.argv)
    if arguments and not positional:
        _fail(f"Unexpected argument {arguments[0]!r}: flags are written --name=value.")
    try:
        main(arguments)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from the last checkpoint.")
    except (ValueError, FloatingPointError, OSError) as error:
        if _DEBUG.value:
            raise
        _fail(error)
