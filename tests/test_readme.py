"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_from_top_to_bottom():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # a reader's settings, not the tests' strict ones
        for block in blocks:
            exec(block, names)
        # What it says: an attack does harm, and the model has gradients.
        assert names["curves"].error(names["model"], names["x_adv"], names["y"]) > 0
        assert float(abs(names["grads"]["w"]).max()) > 0


def test_the_readme_links_to_files_that_are_there():
    pages = [README, (ROOT / "CONTRIBUTING.md").read_text()]
    links = {link for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page)}
    assert links
    assert [link for link in sorted(links) if not (ROOT / link).exists()] == []
