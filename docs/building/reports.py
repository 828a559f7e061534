"""The reports in results/, as pages of the site."""

from pathlib import Path
from typing import Any


def listed(results: Path) -> str:
    """A table of contents for each folder; its README, where it has one, comes first."""
    pages = sorted(results.rglob("*.md"), key=lambda path: (path.name != "README.md", path))
    sections = []
    for folder in sorted({path.parent for path in pages} - {results}):
        name = folder.relative_to(results).as_posix()
        items = [f"../results/{name}/{path.stem}" for path in pages if path.parent == folder]
        named = [i if i.endswith("README") else f"{Path(i).name} <{i}>" for i in items]
        sections.append("\n".join([f"## {name}\n", "```{toctree}", *named, "```\n"]))
    return "\n".join(sections)


def titled(app: Any, page: str, content: list[str]) -> None:
    """A report that is nothing but a table is called by its name."""
    if page.startswith("results/") and not content[0].startswith("#"):
        content[0] = f"# {page.removeprefix('results/')}\n\n{content[0]}"
