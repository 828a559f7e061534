"""The documentation site; `make docs` builds it into build/docs, warnings as errors, offline.

Its sources are where they are in the repository: the Markdown of docs and results, and the
notebooks with their outputs. So a link between two files works on the site as it does in a
checkout. What is not written by hand is made by the modules in docs/building.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs" / "building")]

import lipreg

project, author = "lipreg", "The lipreg authors"
version = release = lipreg.__version__
root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/reference/*.rst", "notebooks/*.ipynb", "results/**.md"]
include_patterns += ["CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "benchmarks", "build", "experiments", "runs", "src", "tests"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "docstrings",
    "formulas",
    "reference",
]
# A notebook is shown as it was kept: a test runs them all.
nb_execution_mode = "off"
nb_output_stderr = "remove"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
suppress_warnings: list[str] = []

add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "lipreg"
html_static_path = ["building/style.css"]
html_css_files = ["style.css"]
html_extra_path = ["root"]
html_show_sphinx = False
