"""The arrows of the house point one way, and its core needs jax, optax, numpy and scipy only."""

import ast
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "src/lipreg"

# A room imports rooms of lines above its own.
CORE = (
    {"convolution", "doors", "files", "float64", "keys", "norms", "parallel", "progress"}
    | {"rows", "tracing", "trees"},
    {"batching", "box", "folding", "losses"},
    {"contracts"},
    {"boundary"},
    {"curves"},
    {"attacks", "lipschitz"},
    {"certificates", "evaluation", "objectives"},
)
LAYERS = (
    *CORE,
    {"datasets", "models", "optimizers"},
    {"training"},
    {"runs"},
    {"reports"},
    {"theory"},
)
OUTSIDE = {"jax", "numpy", "optax", "scipy"}


def room(path):
    """The folder or file of the house that a file belongs to."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports anywhere, in full: `lipreg.norms`, `jax.numpy`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            inside = node.module == "lipreg"
            yield from (f"lipreg.{a.name}" for a in node.names) if inside else (str(node.module),)


FILES = sorted(path for path in HOUSE.rglob("*.py") if path.parent != HOUSE or path.stem[0] != "_")


def test_every_room_has_its_place():
    assert sorted({room(path) for path in FILES}) == sorted(set.union(*LAYERS))
    assert sum(map(len, LAYERS)) == len(set.union(*LAYERS))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: ",".join(sorted(layer)))
def test_a_room_imports_rooms_of_earlier_layers_only(layer):
    earlier = set().union(*LAYERS[: LAYERS.index(layer)])
    for path in FILES:
        if room(path) in layer:
            inside = {name.split(".")[1] for name in imports(path) if name.startswith("lipreg.")}
            odd = inside - earlier - {room(path)}
            assert not odd, f"{path.relative_to(HOUSE)} imports {', '.join(sorted(odd))}"


@pytest.mark.parametrize("layer", CORE, ids=lambda layer: ",".join(sorted(layer)))
def test_the_core_imports_nothing_but_jax_optax_numpy_and_scipy(layer):
    for path in FILES:
        if room(path) in layer:
            outside = (name for name in imports(path) if not name.startswith("lipreg."))
            packages = {name.split(".")[0] for name in outside}
            odd = packages - OUTSIDE - set(sys.stdlib_module_names)
            assert not odd, f"{path.relative_to(HOUSE)} imports {', '.join(sorted(odd))}"
