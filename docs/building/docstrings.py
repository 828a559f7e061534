"""Docstrings and signatures as they stand in the source, in the reST that autodoc expects.

A docstring is plain text. Backticks mean code, `- ` begins an item of a list and `>>>` an example;
a line such as "Attributes:" has names and what they mean below it; what is indented, or set in
columns, is kept as it is.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

from building import public

CODE = re.compile(r"`([^`]+)`")
EMPHASIS = re.compile(r"(?<!\w)\*(\w+)\*(?!\w)")
COLUMNS = re.compile(r"\S {3,}\S")


def plain(text: str) -> str:
    """Text without code: `*one*` word is emphasis, every other mark stands for itself."""
    parts = EMPHASIS.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([\\*|]|_(?!\w))", r"\\\1", parts[i])
    return "*".join(parts)


def words(text: str, links: dict[str, str]) -> str:
    """A paragraph, in which code that is a public name links to it."""
    parts = CODE.split(" ".join(text.split()))
    for i, code in enumerate(parts):
        if i % 2 == 0:
            parts[i] = plain(code)
            continue
        link = f":py:obj:`{code} <{links[code]}>`" if code in links else f"``{code}``"
        parts[i] = link + ("" if parts[i + 1][:1].isspace() else "\\ ")
    return "".join(parts)


def named(block: str, links: dict[str, str]) -> str:
    """The items below a line such as "Attributes:" as a definition list."""
    title, *lines = block.splitlines()
    result = [f"**{title.removesuffix(':')}**\n"]
    for item in re.split(r"\n(?=\S)", textwrap.dedent("\n".join(lines))):
        name, _, meaning = item.partition(": ")
        result.append(f"``{name}``\n    {words(meaning, links)}")
    return "\n".join(result)


def rest(text: str, links: dict[str, str]) -> str:
    """A docstring as reST, paragraph by paragraph."""
    result = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith(">>>"):
            result.append(block)
        elif block.startswith(" ") or COLUMNS.search(block):
            result.append(".. code-block:: text\n")
            result.append(textwrap.indent(textwrap.dedent(block), "    "))
        elif re.match(r"[A-Z]\w+:\n  ", block):
            result.append(named(block, links))
        else:
            result += [words(part, links) for part in re.split(r"\n(?=- )", block)]
    return "\n\n".join(result)


class InFull(ast.NodeTransformer):
    """Public names in full, so that Sphinx links them; it shows the last part only."""

    def __init__(self, thing: Any) -> None:
        self.names = vars(inspect.getmodule(thing))

    def visit_Name(self, node: ast.Name) -> ast.Name:
        place = public.home(node.id, self.names.get(node.id))
        return ast.Name(f"{place}.{node.id}") if place else node


def signature(
    app: Any, what: str, name: str, thing: Any, options: Any, old: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """The parameters with the types that the source names, not with what these stand for."""
    thing = inspect.unwrap(thing)
    try:
        definition = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    except (OSError, TypeError, SyntaxError):
        return old, returns
    full = InFull(thing)
    fields = [line for line in getattr(definition, "body", ()) if isinstance(line, ast.AnnAssign)]
    if fields and isinstance(definition, ast.ClassDef):
        return f"({', '.join(ast.unparse(full.visit(field)) for field in fields)})", None
    if not isinstance(definition, ast.FunctionDef):
        return old, returns
    arguments, result = definition.args, definition.returns
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation:
            argument.annotation = full.visit(argument.annotation)
    return f"({ast.unparse(arguments)})", ast.unparse(full.visit(result)) if result else None


def links(place: str) -> dict[str, str]:
    """What docstrings of a module call public names, `attacks.pgd` or just `pgd`."""
    known = public.targets()
    short = {name.removeprefix("lipreg."): target for name, target in known.items()}
    start = f"{place}."
    bare = {name.removeprefix(start): known[name] for name in known if name.startswith(start)}
    return known | short | bare


def docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """`lines` as reST, in place."""
    place = name if what == "module" else getattr(thing, "__module__", None) or name
    own = inspect.signature(thing).parameters if what in ("function", "method") else ()
    known = {text: to for text, to in links(place).items() if to != name and text not in own}
    lines[:] = rest("\n".join(lines), known).splitlines()


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Fields of a record are in its docstring."""
    return True if type(thing).__name__ in ("_tuplegetter", "member_descriptor") else None
