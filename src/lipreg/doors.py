"""What a config names: a part of the library, or an outsider's as `package.module:name`."""

import ast
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["called", "named", "told"]


def named(kind: str, name: str, own: Mapping[str, Any]) -> Any:
    """`own[name]`, or what `package.module:name` imports, on `sys.path` or in the working folder.

    `kind` says what it is in an error: "objective".

    Raises: ValueError, in one line, with the library's names or the reason why the import failed.

    >>> import math
    >>> named("function", "math:floor", {}) is math.floor
    True
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in own:
            raise ValueError(
                f"No {kind} {name!r}; choose one of {', '.join(own)}, or name your own as "
                "package.module:name."
            )
        return own[name]
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever an outsider's module raises
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"No {kind} {name!r}: {module} cannot be imported ({why}).") from error
    if not hasattr(imported, attribute):
        file = getattr(imported, "__file__", None)  # not the one that was meant, perhaps
        place = f"; it is {file}" if file else ""
        raise ValueError(f"No {kind} {name!r}: {module} has no {attribute!r}{place}.")
    return getattr(imported, attribute)


@contextmanager
def told(what: str) -> Iterator[None]:
    """What an outsider's code raises in the block, as a ValueError of one line that says `what`.

    A ValueError goes on as it is: most are the library's own.

    >>> with told("The network Net cannot be traced"):
    ...     {}["weights"]
    Traceback (most recent call last):
    ValueError: The network Net cannot be traced (KeyError: 'weights').
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{what} ({type(error).__name__}: {why}).") from error


def called(text: str) -> tuple[str, dict[str, Any]]:
    """A name and its options: `name`, or `name(option=value, ...)` with plain Python values.

    >>> called("adamw(b2=0.95)"), called("my_parts:Net")
    (('adamw', {'b2': 0.95}), ('my_parts:Net', {}))
    """
    name, bracket, _ = text.partition("(")
    if not bracket:
        return text, {}
    try:
        call = ast.parse("_" + text[len(name) :], mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        if not all(word.arg for word in call.keywords):  # **options
            raise ValueError
        return name, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(f"{text!r}: write name(option=value, ...) with plain values.") from None
