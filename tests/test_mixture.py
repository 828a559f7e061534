"""Batches of real and synthetic examples: each has its share, and both sets fit together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import batching, datasets, runs, training
from lipreg.runs.config import base_config

KEY = jax.random.key(0)
# Every row has a number of its own: 0 to 19, and 100 to 104.
REAL = datasets.Dataset(np.arange(20.0, dtype=np.float32)[:, None], np.zeros(20, np.int32), 3)
MADE = datasets.Dataset(100 + REAL.x[:5], np.full(5, 2, np.int32), 3)


def test_a_batch_has_so_many_rows_of_each_set_and_an_epoch_none_of_the_first_twice():
    rows = batching.mixed_batches(KEY, 20, 500, 8, 0.7)
    assert (rows.shape, rows.dtype) == ((2, 8), np.int32)
    assert (rows[:, 2:] >= 20).all()  # round(0.7 * 8) = 6
    assert len(set(rows[:, :2].ravel())) == 4
    drawn = np.stack([batching.mixed_batches(jax.random.key(k), 20, 5, 8, 0.7) for k in range(40)])
    assert set(drawn[..., 2:].ravel()) == set(range(20, 25))
    assert set(drawn[..., :2].ravel()) == set(range(20))
    with pytest.raises(ValueError, match=r"share = 0.1; of a batch of 4, it is 0 examples"):
        batching.mixed_batches(KEY, 20, 5, 4, 0.1)


def trained(steps, first=0):
    """What each step of a run sees of a mixture: their sum, how many are made, classes."""

    def step(state, strengths, batch):
        x, y = batch
        seen = {"objective": x.sum(), "made": (x >= 100).sum(), "classes": y.sum()}
        return dataclasses.replace(state, step=state.step + 1), seen

    state = training.State({}, {}, {}, None, jnp.int32(first), KEY)
    dataset = datasets.mixture(REAL, MADE, 0.7)
    fit = training.fit(step, state, {}, dataset, batch_size=10, steps=steps, every=1, key=KEY)
    return [parts for _, parts in fit]


def test_training_sees_the_share_in_each_batch_and_an_epoch_counts_the_real_examples():
    seen = trained(4)
    assert len(datasets.mixture(REAL, MADE)) == datasets.size(datasets.mixture(REAL, MADE)) == 20
    assert [parts["made"] for parts in seen] == 4 * [7]
    assert [parts["classes"] for parts in seen] == 4 * [14]
    sums = [float(parts["objective"]) for parts in seen]
    assert len(set(sums)) == 4
    assert [float(parts["objective"]) for parts in trained(4, first=3)] == sums[3:]


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("image", "label")])
def test_a_file_needs_no_test_split(names, tmp_path):
    x, y = np.full((3, 4, 4), 9, np.uint8), np.array([0, 4, 1])
    np.savez(tmp_path / "made.npz", **dict(zip(names, (x, y), strict=True)))
    made = datasets.training("made.npz", dir=tmp_path)
    assert (made.x.shape, made.x.dtype, made.classes) == ((3, 4, 4, 1), np.uint8, 5)
    np.testing.assert_array_equal(made.y, y)
    np.savez(tmp_path / "other.npz", x_train=x)
    with pytest.raises(ValueError, match=r"other.npz has no x_train and y_train, and no image and"):
        datasets.training("other.npz", dir=tmp_path)


@pytest.mark.parametrize(
    ("made", "share", "told"),
    [
        (MADE, 1.0, r"share = 1.0; of a batch, it must be greater than 0, less than 1"),
        (MADE._replace(x=np.zeros((5, 3), np.float32)), 0.5, r"inputs are float32\[3\], and the"),
        (MADE._replace(x=np.zeros((5, 1), np.uint8)), 0.5, r"uint8\[1\], and .* float32\[1\]"),
        (MADE._replace(y=np.full(5, 3, np.int32)), 0.5, r"has a class 3, and the real one 3 cla"),
    ],
)
def test_sets_that_do_not_fit_together_are_refused(made, share, told):
    with pytest.raises(ValueError, match=told):
        datasets.mixture(REAL, made, share)


def made_digits():
    """An outsider's function: eight images of digits, all of class 7."""
    x = np.zeros((8, 8, 8), np.uint8)
    return {"x_train": x, "y_train": np.full(8, 7)}


def digits():
    """The real data under another name."""
    x, y, *_ = datasets.training("digits")
    return {"x_train": x, "y_train": y}


def config(**changes):
    config = base_config("j0", {"j0": {}})
    config.data.synthetic = f"{__name__}:made_digits"
    config.model.name, config.model.settings = "MLP", {"widths": (2,)}
    config.update_from_flattened_dict(changes)
    return config


def test_a_config_names_the_second_source():
    prepared = runs.prepare(config())
    assert isinstance(prepared.training, datasets.Mixture)
    assert prepared.training.share == 0.7
    assert len(prepared.training.x) == len(prepared.training) + 8
    assert prepared.steps == 10 * (len(prepared.training) // 128)


def test_a_file_of_the_second_source_lies_in_the_folder_of_the_data(tmp_path):
    np.savez(tmp_path / "made.npz", image=np.zeros((3, 8, 8), np.uint8), label=np.zeros(3, int))
    changes = {"data.synthetic": "made.npz", "data.dir": str(tmp_path)}
    mixed = runs.prepare(config(**changes)).training
    assert isinstance(mixed, datasets.Mixture)
    assert len(mixed.synthetic.y) == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.synthetic": "none.npz"}, r"config.data.synthetic = none.npz: No data set 'none"),
        ({"data.synthetic_share": 1.5}, "config.data.synthetic_share = 1.5; it must be less than"),
        (
            {"data.synthetic": "digits"},
            "synthetic = digits; 144 of the 144 validation ex.* of d",
        ),
        (
            {"data.synthetic": f"{__name__}:digits"},
            "digits; 144 of the 144 validation examples",
        ),
        ({"data.synthetic_share": 0.001}, "synthetic_share = 0.001; a batch of 128 has no such"),
    ],
)
def test_a_second_source_that_cannot_be_mixed_is_told_in_one_line(changes, told):
    with pytest.raises(ValueError, match=told) as raised:
        runs.prepare(config(**changes))
    assert "\n" not in str(raised.value)
