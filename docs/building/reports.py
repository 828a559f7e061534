"""The reports in results/, as pages of the site."""

from pathlib import Path
from typing import Any


def listed(results: Path) -> str:
    """A table of contents for each folder; its README, where it has one, comes first."""
    sections = []
    for folder in sorted({path.parent for path in results.rglob("*.md")} - {results}):
        name = folder.relative_to(results).as_posix()
        pages = sorted(path.stem for path in folder.glob("*.md") if path.name != "README.md")
        items = [f"{name}/{page} <../results/{name}/{page}>" for page in pages]
        if (folder / "README.md").exists():
            items.insert(0, f"../results/{name}/README")
        sections += [f"## {name}\n", "```{toctree}", ":maxdepth: 1\n", *items, "```\n"]
    return "\n".join(sections)


def titled(app: Any, page: str, content: list[str]) -> None:
    """A report that is nothing but a table is called by its name."""
    if page.startswith("results/") and not content[0].startswith("#"):
        content[0] = f"# {page.removeprefix('results/')}\n\n{content[0]}"
