"""The figures of the notebooks, each with a link to the cell that draws it."""

import base64
import json
from pathlib import Path

Cell = dict  # of a notebook


def paragraph(cell: Cell) -> str:
    """The first paragraph of a cell of text, but for its heading."""
    paragraphs = "".join(cell["source"]).split("\n\n")
    return next(text for text in paragraphs if not text.startswith("#"))


def png(cell: Cell) -> bytes | None:
    """The last picture of a cell."""
    data = [output.get("data", {}).get("image/png") for output in cell.get("outputs", [])]
    shown = [base64.b64decode("".join(picture)) for picture in data if picture]
    return shown[-1] if shown else None


def pictures(folder: Path) -> dict[str, str | bytes]:
    """notebooks.txt, with a section for each notebook, and the pictures that it shows."""
    contents: dict[str, str | bytes] = {}
    sections = []
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        heading, text = "".join(cells[0]["source"]).splitlines()[0], ""
        sections.append(f"#{heading}\n\n:::::{{container}} gallery")
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "markdown":
                text = paragraph(cell)
            if (picture := png(cell)) is not None:
                name = f"{path.stem}_{number}.png"
                contents[name] = picture
                link = f'<a href="../notebooks/{path.stem}.html#cell-{number}">The code.</a>'
                sections.append(f":::{{figure}} made/{name}\n:width: 100%\n\n{text} {link}\n:::")
        sections.append(":::::\n")
    return contents | {"notebooks.txt": "\n".join(sections)}
