"""benchmarks/relaxation.py: what its table says of sweeps whose errors are known."""

import itertools
import json
from pathlib import Path

import pytest

from lipreg.runs import build

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(benchmark):
    return benchmark("relaxation")


def write(folder, errors, rate, tried):
    """A sweep over rates, and one over seeds whose runs validate at 30, 60 and 90 gradients."""
    points = {f"learning_rate={rate}": {"validation_error": e} for rate, e in tried.items()}
    for name in ("rates", "seeds"):
        (folder / name).mkdir(parents=True)
        (folder / name / "sweep.json").write_text(json.dumps({"points": points, "about": {}}))
    for seed, row in enumerate(errors):
        run = folder / "seeds" / "points" / f"seed={seed}"
        run.mkdir(parents=True)
        rows = [{"step": 10, "gradients": 10, "loss": 1.0}]
        rows += [{"step": n, "gradients": n, "validation_error": e} for n, e in row]
        (run / "point.json").write_text('{"validation_error": 0, "validation_error_pgd": 0}')
        (run / "config.json").write_text(json.dumps({"train": {"learning_rate": rate}}))
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_the_table_pairs_seeds_and_counts_the_gradients_to_sgds_last_error(program, tmp_path):
    at = lambda *errors: list(zip((30, 60, 90), errors, strict=True))
    write(tmp_path / "sgd", [at(0.5, 0.3, 0.1), at(0.5, 0.3, 0.2)], 3.0, {1.0: 0.2, 3.0: 0.1})
    write(tmp_path / "hj", [at(0.4, 0.1, 0.05), at(0.4, 0.2, 0.15)], 1.0, {1.0: 0.3})
    unpaired = tmp_path / "hj" / "seeds" / "points" / "seed=2"
    unpaired.mkdir()
    (unpaired / "point.json").write_text('{"validation_error": 0, "validation_error_pgd": 0}')
    histories = program.histories(tmp_path)
    *_, sgd, hj = program.table(histories, tmp_path).splitlines()
    assert sgd.split(" | ")[1:7] == ["3", "50 ± 0", "0 ± 0", "15 ± 7.1", "0 ± 0", "90"]
    assert hj.split(" | ")[1:7] == ["1", "40 ± 0", "-10 ± 0", "10 ± 7.1", "-5 ± 0", "60"]
    assert "1.0: 20.00, 3.0: 10.00" in sgd
    panel = program.figure({"mlp": histories}).axes[0]
    assert [line.get_label() for line in panel.lines] == ["sgd", "hj"]


def test_every_row_of_the_config_is_a_network_and_an_optimizer_of_the_library(program):
    config = program._CONFIG
    for row in itertools.product(config["NETWORKS"], config["OPTIMIZERS"]):
        build.parts(config["get_config"](",".join(row)))
    with pytest.raises(ValueError, match="No row 'mlp,adam'; choose NETWORK,OPTIMIZER of mlp, le"):
        config["get_config"]("mlp,adam")
