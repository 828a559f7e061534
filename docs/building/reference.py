"""The reference: a page for each room, docs/reference/ROOM.rst, with every public name."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import public
from sphinx.application import Sphinx

LONGEST = 12  # lines of a constant that are shown


def title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def constant(place: str, name: str) -> str:
    """A constant: the lines that define it, wherever they are, with the comment above them."""
    value = getattr(importlib.import_module(place), name)
    for module in map(importlib.import_module, public.modules()):
        text = inspect.getsource(module)
        lines = text.splitlines()
        for node in ast.parse(text).body:
            stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and type(n.ctx) is ast.Store}
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in stored and vars(module).get(name) is value:
                start, end = node.lineno - 1, node.end_lineno
                while lines[start - 1].startswith("#"):
                    start -= 1
                shown = lines[start:end]
                if len(shown) > LONGEST:
                    shown = [*shown[:LONGEST], "    ..."]
                code = textwrap.indent("\n".join(shown), " " * 6)
                return (
                    f".. py:data:: {name}\n   :module: {place}\n\n   .. code-block:: python\n\n{code}\n"
                )
    raise ValueError(f"{place}.{name} is no function, no class, and assigned nowhere.")


def entry(place: str, name: str) -> str:
    value = getattr(importlib.import_module(place), name)
    home = str(getattr(value, "__module__", ""))
    if inspect.isclass(value) and home.startswith("lipreg"):
        kind = "exception" if issubclass(value, Exception) else "class"
        return f".. auto{kind}:: {place}::{name}\n   :members:\n"
    if inspect.isroutine(inspect.unwrap(value)) and home.startswith("lipreg"):
        return f".. autofunction:: {place}::{name}\n"
    return constant(place, name)


def section(place: str, line: str) -> str:
    entries = [entry(place, name) for name in public.entries(place)]
    # Where a function has its module's name, lipreg.attacks.apgd, that name is the function's.
    above, _, last = place.rpartition(".")
    index = "   :no-index:\n" if last in public.entries(above) else ""
    return "\n".join([title(place, line), f".. automodule:: {place}\n{index}", *entries])


def pages() -> dict[str, str]:
    """The text of each room's page."""
    rooms = [place for place in public.modules() if place.count(".") == 1]
    return {
        room.removeprefix("lipreg."): "\n".join(
            [section(room, "=")]
            + [section(m, "-") for m in public.modules() if m.startswith(f"{room}.")]
        )
        for room in rooms
    }


def write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    texts = pages()
    for old in folder.glob("*.rst"):
        if old.stem not in texts:
            old.unlink()
    for room, text in texts.items():
        path = folder / f"{room}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write)
