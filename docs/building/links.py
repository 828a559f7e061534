"""Links that mean more on the site than in a checkout."""

import re
from pathlib import PurePosixPath

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

# Of arXiv, since 2007: year, month, four or five digits.
PAPER = re.compile(r"(?<![\w.])((?:0[7-9]|[12]\d)(?:0[1-9]|1[0-2])\.\d{4,5})(?![\w.]\w)")


def to_papers(app: Sphinx, page: nodes.document) -> None:
    """The number of a paper, 1810.00953, leads to it."""
    kept = nodes.reference | nodes.literal | nodes.FixedTextElement
    for text in list(page.findall(nodes.Text)):
        parts = PAPER.split(text)
        if len(parts) > 1 and not isinstance(text.parent, kept):
            links = [nodes.reference("", n, refuri=f"https://arxiv.org/abs/{n}") for n in parts]
            new = [links[i] if i % 2 else nodes.Text(part) for i, part in enumerate(parts)]
            text.parent.replace(text, new)


def to_reference(app: Sphinx, page: nodes.document) -> None:
    """A link to a file of src/lipreg leads to what the reference has on that module."""
    for link in list(page.findall(addnodes.download_reference)):
        path = PurePosixPath(link["reftarget"].lstrip("/"))
        if path.suffix == ".py" and path.parts[0] == "src":
            module = path.relative_to("src").with_suffix("")
            name = ".".join(part for part in module.parts if part != "__init__")
            reference = addnodes.pending_xref(
                "",
                *link.children,
                refdomain="py",
                reftype="obj",
                reftarget=name,
                refexplicit=True,
                refwarn=True,
            )
            link.replace_self(reference)


def to_cells(app: Sphinx, page: nodes.document) -> None:
    """Every cell of a notebook can be linked to, `#cell-3`."""
    for cell in page.findall(nodes.container):
        if "cell_index" in cell:
            cell["ids"].append(f"cell-{cell['cell_index']}")
