"""The documentation site; `make docs` builds it into build/docs, offline, warnings as errors.

Its sources are where they are in the repository: the Markdown of docs and results, and the
notebooks with the outputs that they are kept with. So a link between two files works on the site
as it does in a checkout. What is not written by hand is made by the modules in docs/building:
docs/reference and docs/made, which git ignores.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs")]

import lipreg
from building import docstrings, files, formulas, gallery, links, reference, reports

project, author = "lipreg", "The lipreg authors"
version = release = lipreg.__version__
root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/reference/*.rst", "notebooks/*.ipynb", "results/**.md"]
include_patterns += ["CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "benchmarks", "build", "experiments", "runs", "src", "tests"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
nb_execution_mode = "off"  # a test runs every notebook
nb_output_stderr = "remove"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
suppress_warnings = ["myst.header"]  # reports have a title and sections two levels below it
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

add_module_names = False
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "lipreg"
html_static_path = ["building/style.css"]
html_css_files = ["style.css"]
html_extra_path = ["root"]  # an index.html that leads to docs/index.html
html_copy_source = html_show_copyright = html_show_sphinx = False


def setup(app: Sphinx) -> None:
    files.replace(ROOT / "docs" / "reference", reference.pages())
    made = {"rooms.txt": reference.rooms(), "reports.txt": reports.listed(ROOT / "results")}
    files.replace(ROOT / "docs" / "made", made | gallery.pictures(ROOT / "notebooks"))
    app.add_html_math_renderer("mathml", (formulas.inline, None), (formulas.block, None))
    app.connect("source-read", reports.titled)
    app.connect("doctree-read", links.to_reference, priority=0)
    app.connect("doctree-read", links.to_cells)
    app.connect("doctree-read", links.to_papers)
    app.connect("autodoc-process-docstring", docstrings.docstring)
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("autodoc-skip-member", docstrings.skip)
