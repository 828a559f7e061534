"""The documentation site: every public name and every page is in it, and it is built."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

import lipreg
from building import docstrings, gallery, reference, reports

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}


def test_every_public_name_has_an_entry_in_the_reference():
    text = "\n".join(reference.pages().values())
    entries = re.findall(r"^\.\. auto(?:class|function):: ([\w.]+)::(\w+)$", text, re.MULTILINE)
    for names, place in re.findall(r"^\.\. py:data:: ([\w\s]+?)\n   :module: (.+)$", text, re.M):
        entries += [(place, name) for name in names.split()]
    assert len(set(entries)) == len(entries)
    documented = {id(getattr(importlib.import_module(place), name)) for place, name in entries}

    for found in pkgutil.walk_packages(lipreg.__path__, "lipreg."):
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            assert isinstance(value, ModuleType) or id(value) in documented, (found.name, name)


def test_every_module_has_a_section_and_every_room_a_line():
    pages = reference.pages()
    for found in pkgutil.walk_packages(lipreg.__path__, "lipreg."):
        room = found.name.split(".")[1]
        assert f".. automodule:: {found.name}\n" in pages[f"{room}.rst"]
        assert f"(reference/{room}.rst)" in reference.rooms()
    for path in (ROOT / "experiments").glob("*.py"):
        assert path.name == "cli.py" or f"\n{path.name}\n---" in pages["launchers.rst"]


def test_every_page_is_in_a_table_of_contents():
    texts = [*WRITTEN.values(), reports.listed(ROOT / "results")]
    trees = re.findall(r"```\{toctree\}\n(.*?)```", "\n".join(texts), re.DOTALL)
    listed = [re.sub(r".*<(.*)>", r"\1", line) for tree in trees for line in tree.splitlines()]
    pages = [*DOCS.glob("*.md"), *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("results/**/*.md")]
    for page in pages:
        inside = page.is_relative_to(DOCS)
        name = page.relative_to(DOCS) if inside else Path("..") / page.relative_to(ROOT)
        shown = str(name.with_suffix(""))
        assert shown == "index" or any(fnmatch(shown, entry) for entry in listed if entry), shown


@pytest.mark.parametrize("page", WRITTEN)
def test_a_page_links_to_files_that_are_there(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|\{figure\} (\S+)", WRITTEN[page])
    assert [link for pair in links if (link := "".join(pair)) and not (DOCS / link).exists()] == []


def test_a_docstring_becomes_rest():
    links = {"pgd": "lipreg.attacks.pgd"}
    cases = {
        "`a_b` is `pgd`'s": "``a_b`` is :py:obj:`pgd <lipreg.attacks.pgd>`\\ 's",
        "l_ and *one* of |x|, 2 * 3": "l\\_ and *one* of \\|x\\|, 2 \\* 3",
        "Two\n  or:\n- a\n  b\n- c": "Two or:\n\n- a b\n\n- c",
        "Attributes:\n  x, y: `[B]`, the\n    images.\n  z: one.": (
            "**Attributes**\n\n``x, y``\n    ``[B]``\\ , the images.\n``z``\n    one."
        ),
        "RUN/a     1\nRUN/bc    2": ".. code-block:: text\n\n\n    RUN/a     1\n    RUN/bc    2",
        "    f(x, y)": ".. code-block:: text\n\n\n    f(x, y)",
        ">>> f(2 * 3)\n'`a`'": ">>> f(2 * 3)\n'`a`'",
    }
    for text, rest in cases.items():
        assert docstrings.rest(text, links) == rest


def test_a_signature_has_the_types_of_the_source_and_the_names_of_the_reference():
    arguments, result = docstrings.signature(
        None, "function", "", lipreg.attacks.fgsm, None, "(...)", None
    )
    assert list(inspect.signature(lipreg.attacks.fgsm).parameters) == re.findall(
        r"(\w+):", arguments
    )
    assert "eps: ArrayLike, *, norm: lipreg.norms.NormLike=LINF" in arguments
    assert result == "Array"
    assert docstrings.signature(None, "class", "", lipreg.norms.Norm, None, "", None) == (
        "(name: str, p: float, size: Callable[[Array], Array], dual: Callable[[Array], Array], "
        "direction: Callable[[Array], Array], project: Callable[[Array, ArrayLike], Array])",
        None,
    )


def test_every_notebook_with_pictures_is_in_the_gallery():
    contents = gallery.pictures(ROOT / "notebooks")
    text = contents.pop("notebooks.txt")
    assert contents
    assert set(re.findall(r"made/(\S+)\n", text)) == set(contents)
    assert all(picture.startswith(b"\x89PNG") for picture in contents.values())


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "read"]
    # A third of the time would go into names of objects in each page's table of contents.
    command += ["-D", "toc_object_entries=0"]
    done = subprocess.run(
        [*command, "-c", DOCS, ROOT, tmp_path / "site"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = [page.read_text() for page in (tmp_path / "site" / "docs").rglob("*.html")]
    # Nothing is fetched from elsewhere: no script, style, font or picture.
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', "".join(pages))
    assert "<math" in (tmp_path / "site" / "docs" / "theory.html").read_text()
