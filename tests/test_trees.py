"""The arrays of a tree by path, and the hash by which checkpoints and evaluations know them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import trees

TREE = {"params": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}, "step": jnp.int32(7)}


def test_leaves_are_named_by_their_paths_and_keys_are_their_words():
    found = trees.by_path({**TREE, "key": jax.random.key(3)})
    assert list(found) == ["key", "params.b", "params.w", "step"]
    np.testing.assert_array_equal(found["key"], jax.random.key_data(jax.random.key(3)))


def test_two_leaves_with_one_path_are_refused():
    with pytest.raises(ValueError, match=r"Two arrays have the path a\.b"):
        trees.by_path({"a": {"b": 1}, "a.b": 2})


def test_a_tree_and_its_leaves_by_path_have_one_digest_on_every_kind_of_array():
    as_numpy = jax.tree.map(np.asarray, TREE)
    assert trees.digest(TREE) == trees.digest(as_numpy) == trees.digest(trees.by_path(TREE))


@pytest.mark.parametrize(
    "changed",
    [
        TREE | {"step": jnp.int32(8)},
        TREE | {"step": jnp.uint32(7)},
        TREE | {"steps": TREE["step"]},
        TREE | {"params": {**TREE["params"], "w": jnp.arange(6.0).reshape(3, 2)}},
        TREE | {"params": {**TREE["params"], "b": -jnp.zeros(3)}},
    ],
    ids=["value", "type", "path", "shape", "sign of a zero"],
)
def test_the_digest_tells_any_change(changed):
    assert trees.digest(changed) != trees.digest(TREE)


def test_the_digest_is_that_of_the_checkpoints_on_disk():
    assert trees.digest(TREE) == (
        "891477f8f6a0f765e0ee2a34016b8faedd2a71f254abe180d588c9ad978bde3c"
    )
