"""The examples of all docstrings run as written."""

import doctest
import importlib
import pkgutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipreg

MODULES = [m.name for m in pkgutil.walk_packages(lipreg.__path__, "lipreg.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run_as_written(name):
    module = importlib.import_module(name)
    names = {"jax": jax, "jnp": jnp, "np": np, "flax": flax}
    result = doctest.testmod(module, extraglobs=names)
    assert result.failed == 0


def test_every_attack_has_an_example():
    tests = {
        name: doctest.DocTestFinder().find(getattr(lipreg.attacks, name), name)
        for name in lipreg.attacks.__all__
    }
    assert [name for name, found in tests.items() if not found[0].examples] == []
