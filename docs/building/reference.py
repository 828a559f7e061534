"""The reference: a page for each room of the library, and one for the launchers."""

import ast
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from building import public
from building.docstrings import rest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LONGEST = 12  # lines of a constant that are shown


def title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def named(node: ast.stmt) -> set[str]:
    """The names that a statement assigns, or imports from another library."""
    if isinstance(node, ast.ImportFrom):
        foreign = not str(node.module).startswith("lipreg")
        return {alias.asname or alias.name for alias in node.names} if foreign else set()
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    names = (name for target in targets if target for name in ast.walk(target))
    return {name.id for name in names if isinstance(name, ast.Name)}


def definition(name: str, value: object) -> str:
    """The lines that define a constant, in whatever module, with the comment above them."""
    for module in map(importlib.import_module, public.modules()):
        text = inspect.getsource(module)
        lines = text.splitlines()
        for node in ast.parse(text).body if vars(module).get(name) is value else ():
            if name in named(node):
                start = node.lineno - 1
                while lines[start - 1].startswith("#"):
                    start -= 1
                shown = lines[start : node.end_lineno]
                more = ["    ..."] if len(shown) > LONGEST else []
                return "\n".join(shown[:LONGEST] + more)
    raise ValueError(f"{name} is neither function nor class, and no module assigns it.")


def entry(place: str, name: str) -> str:
    """The directive that documents a function or class, or the definition of a constant."""
    value = getattr(importlib.import_module(place), name)
    if str(getattr(value, "__module__", "")).startswith("lipreg"):
        if inspect.isclass(value):
            return f".. autoclass:: {place}::{name}\n   :members:\n"
        if inspect.isroutine(inspect.unwrap(value)):
            return f".. autofunction:: {place}::{name}\n"
    return definition(name, value)


def constants(place: str, names: Iterable[str], code: str) -> str:
    """The directive for the constants that one statement defines."""
    head = ".. py:data:: " + "\n             ".join(names) + f"\n   :module: {place}\n\n"
    return f"{head}   .. code-block:: python\n\n{textwrap.indent(code, ' ' * 6)}\n"


def section(place: str, line: str) -> str:
    """A module: its docstring, and the names that no module above it has."""
    # Where a function has its module's name, lipreg.attacks.apgd, that name is the function's.
    above, _, last = place.rpartition(".")
    index = "   :no-index:\n" if last in public.entries(above) else ""
    texts = [title(place, line), f".. automodule:: {place}\n{index}"]
    for text, names in itertools.groupby(public.entries(place), partial(entry, place)):
        texts.append(text if text.startswith("..") else constants(place, names, text))
    return "\n".join(texts)


def launchers() -> str:
    """What each program of experiments/ says of itself."""
    sections = [title("Launchers", "=")]
    for path in sorted(EXPERIMENTS.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if f"experiments/{path.name}" in text:
            sections += [title(path.name, "-"), rest(text, {}), ""]
    return "\n".join(sections)


def own_rooms() -> list[str]:
    return [place for place in public.modules() if place.count(".") == 1]


def pages() -> dict[str, str | bytes]:
    """The text of every page, by the name of its file."""
    texts: dict[str, str | bytes] = {"launchers.rst": launchers()}
    for room in own_rooms():
        parts = [place for place in public.modules() if place.startswith(f"{room}.")]
        sections = [section(room, "="), *(section(part, "-") for part in parts)]
        texts[f"{room.removeprefix('lipreg.')}.rst"] = "\n".join(sections)
    return texts


def rooms() -> str:
    """A table of the rooms, each with the first line of its docstring."""
    lines = ["| room | what it holds |", "|---|---|"]
    for room in own_rooms():
        first = (importlib.import_module(room).__doc__ or "").split("\n\n")[0]
        name = room.removeprefix("lipreg.")
        lines.append(f"| [{name}](reference/{name}.rst) | {' '.join(first.split())} |")
    return "\n".join(lines)
