"""Links that mean more on the site than in a checkout."""

from pathlib import PurePosixPath

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


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
