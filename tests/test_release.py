"""What is released says one version, and holds every package."""

from pathlib import Path

import yaml

import lipreg

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_citation_and_the_newest_in_the_changelog():
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert version == lipreg.__version__
    headings = [h for h in (ROOT / "CHANGELOG.md").read_text().splitlines() if h.startswith("## ")]
    assert [h.split()[1] for h in headings[:2]] == ["[Unreleased]", f"[{version}]"]


def test_every_folder_of_the_library_is_a_package_and_so_in_the_wheel():
    folders = {file.parent for file in (ROOT / "src" / "lipreg").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
