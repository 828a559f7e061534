"""Strict arithmetic, warnings as errors (pyproject.toml) and eight CPU devices for every test."""

import gc
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from absl.flags import FLAGS

from lipreg.training import cpu

# Most of the time goes into compiling small programs once: without LLVM's passes that takes a third
# less, with the older of XLA's code generators for fusions another third, and with each program in
# one piece, which else is cut up for many cores, a sixth. Of these two jaxlib may have neither.
QUICK = "--xla_backend_optimization_level=0"
for name, value in (("use_fusion_emitters", "false"), ("parallel_codegen_split_count", "1")):
    if cpu._known(f"xla_cpu_{name}\0"):
        QUICK += f" --xla_cpu_{name}={value}"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Modules of few and long tests: begun last, they would keep one worker while the others wait.
LONG = tuple(
    f"test_{name}.py" for name in ("docs", "notebooks", "pages", "parallel", "sweep", "your_own")
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish():
    """Tracing makes so many objects that the search for cycles would take a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Thousands of compiled programs are more memory maps than Linux gives a process."""
    yield
    jax.clear_caches()


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a program of benchmarks/ for one test: their flags have the same names."""
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module
    rooms = {path.stem for path in folder.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in rooms]:
        del sys.modules[name]
        for flag in list(FLAGS.flags_by_module_dict().get(name, ())):
            delattr(FLAGS, flag.name)
