"""A run of an earlier version still loads, resumes, evaluates and certifies.

tests/golden/run was trained at commit 9ffae4e by the command in its about.json; logits.npy
beside it holds its logits of the first eight test images.
"""

import shutil
from pathlib import Path

import chex
import numpy as np
import pytest

from lipreg import certificates, datasets, reports, runs
from lipreg.reports import kept
from lipreg.runs import logs, storage
from lipreg.runs.config import complete

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(GOLDEN / "run", tmp_path / "run")


def test_its_network_gives_the_logits_that_it_gave(run):
    loaded = runs.load(run)
    assert (loaded.step, loaded.steps) == (40, 40)
    logits = loaded.logits_fn(datasets.to_unit(loaded.dataset.x[:8]))
    np.testing.assert_allclose(logits, np.load(GOLDEN / "logits.npy"), rtol=1e-5, atol=1e-5)


def test_it_goes_on_from_its_last_checkpoint_and_from_the_one_before(run):
    prepared = runs.prepare(complete(storage.read_config(run)))
    with storage.checkpoints(run) as manager:
        before = storage.restore(manager, prepared.state)
    rows = logs.metrics(run)
    ended = runs.train_run(prepared, run, silent=True)
    chex.assert_trees_all_equal(ended.params, before.params)
    assert logs.metrics(run) == rows
    shutil.rmtree(run / "checkpoints" / "40")
    again = runs.train_run(prepared, run, silent=True)
    assert int(again.step) == 40
    chex.assert_trees_all_close(again.params, before.params, rtol=1e-4, atol=1e-5)
    for row, expected in zip(logs.metrics(run), rows, strict=True):
        row = {name: row[name] for name in expected}  # later versions report more
        chex.assert_trees_all_close(row, expected, rtol=1e-4, atol=1e-5)


def test_it_is_evaluated_and_certified(run):
    loaded = runs.load(run)
    loaded.config.evaluation.update({"examples": 8, "batch_size": 8, "steps": 2, "radii": 3})
    reports.evaluate(loaded, run)
    images, labels = datasets.to_unit(loaded.dataset.x[:8]), loaded.dataset.y[:8]
    wrong = np.asarray(loaded.logits_fn(images)).argmax(1) != labels
    _, _, arrays = kept.read(kept.folder_of(run, "pgd", "test", 8, kept.USUAL))
    np.testing.assert_array_equal(arrays["l2"] == 0, wrong)
    assert not np.isnan(arrays["l2"]).any()
    x, y = datasets.to_unit(loaded.dataset.x[:4]), loaded.dataset.y[:4]
    certified = certificates.interval_bound(loaded.logits_fn, x, y)
    assert certified.kind == "certified"
    assert ((certified.radius > 0) <= (loaded.logits_fn(x).argmax(1) == y)).all()
    assert (certified.radius > 0).any()
