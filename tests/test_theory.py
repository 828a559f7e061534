"""The theorems at tiny n: what they promise holds in the rows, and the sentences say so."""

import csv
import functools
import json
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_launchers import DRIVER, ROOT

from lipreg import theory
from lipreg.theory import convergence, pictures, rates
from lipreg.theory.study import Curve, Study, check, compare, measure

SCRIPT, CONFIG = "experiments/theory.py", "experiments/configs/theory.py"
get_config = runpy.run_path(str(ROOT / CONFIG))["get_config"]
TINY = {
    "covering": {"sizes": (200, 3200), "reference": 20000},
    "clean": {"sizes": (20, 80), "reference": 400, "network_sizes": (20, 80), "steps": 300},
    "discrepancy": {"sizes": (100, 1000, 10000)},
    "noisy": {"sizes": (20, 80, 320), "reference": 200, "limit": 100},
    "off_manifold": {"sizes": (20, 80, 320), "reference": 400},
}


def tiny(name, **changes):
    config = get_config(name)
    config.update({"repeats": 20 if name == "discrepancy" else 3} | TINY[name] | changes)
    return config


@functools.cache
def study(name, **changes):
    return getattr(theory, name)(tiny(name, **changes))


def keys(sizes, repeats=3):
    """The key of each repeat: it depends on the seed, on n and on the repeat's number."""
    fold = jax.random.fold_in
    return [[fold(fold(jax.random.key(0), n), r) for r in range(repeats)] for n in sizes]


# Covering.


def test_a_uniform_grid_has_its_closed_form_and_the_exponent_of_its_dimension():
    for m in (1, 2, 3):
        grid = study("covering").curves[f"grid, m = {m}"]
        n = np.array(grid.n, float)
        np.testing.assert_allclose(grid.values[:, 0], np.sqrt(m) / 2 * n ** (-1 / m), rtol=1e-6)
        assert (grid.exponent, grid.verdict) == (-1 / m, "in the interval")


def test_the_covering_radius_on_a_line_is_its_largest_gap():
    sizes = TINY["covering"]["sizes"]
    found = study("covering").curves["cube, m = 1"].values
    cube = convergence.cube(1)
    for row, n, samples in zip(found, sizes, keys(sizes), strict=True):
        for radius, key in zip(row, samples, strict=True):
            x = np.sort(np.asarray(cube.sample(key, n))[:, 0])
            exact = max(x[0], 1 - x[-1], np.diff(x).max() / 2)
            assert exact - 1e-4 <= radius <= exact + 1e-6


def test_the_slope_is_that_of_the_manifolds_dimension():
    for name, curve in study("covering").curves.items():
        m = int(re.search(r"m = (\d)", name)[1])
        others = [abs(curve.rate.slope + 1 / k) for k in (1, 2, 3, 20) if k != m]
        assert curve.exponent == -1 / m
        assert abs(curve.rate.slope + 1 / m) < min(others), name


# Clean labels.


@pytest.mark.parametrize("m", [1, 2])
def test_every_minimiser_is_within_two_L0_covering_radii_of_the_truth(m):
    curves = study("clean").curves
    get = lambda name: curves[f"sup error, m = {m}: {name}"].values
    for side in ("lower", "midpoint", "upper"):
        assert (get(side) <= get("bound") + 1e-5).all()
        assert (get(side) > 0).all()
        mean = curves[f"mean squared error, m = {m}: {side}"]
        assert mean.exponent == 2 * curves[f"sup error, m = {m}: {side}"].exponent == -2 / m
        assert (mean.values < get(side) ** 2).all()
    x = convergence.cube(m).sample(keys([20])[0][0], 20)
    h = convergence.covering_radius(x, rates._cells(m, round(400 ** (1 / m))))
    np.testing.assert_allclose(get("bound")[0, 0], 2 * 0.8 * np.pi / np.sqrt(m) * h, rtol=1e-6)
    assert (get("midpoint") <= np.maximum(get("lower"), get("upper")) + 1e-6).all()
    assert "Violations of the bound 2 L0 (covering radius): 0 of 36." in study("clean").sentences


def test_violations_are_counted(monkeypatch):
    monkeypatch.setattr(rates, "covering_radius", lambda *_: 1e-9)
    broken = rates.clean(tiny("clean"))
    assert "Violations of the bound 2 L0 (covering radius): 36 of 36." in broken.sentences


def test_the_constant_is_the_largest_gradient_of_the_labels():
    for m in (1, 2):
        x = np.concatenate([np.zeros((1, m)), np.random.default_rng(0).uniform(size=(300, m))])
        ahead, behind = (
            np.stack([rates._labels(x + h * e) for e in np.eye(m)], 1) for h in (1e-6, -1e-6)
        )
        slopes = np.linalg.norm((ahead - behind) / 2e-6, axis=1)
        np.testing.assert_allclose(slopes[0], rates._constant(m), rtol=1e-6)
        assert slopes.max() <= rates._constant(m) * (1 + 1e-6)


def test_the_network_learns_and_the_text_tells_what_the_theorem_does_not_cover():
    for m, variance in ((1, 0.08), (2, 0.04)):
        # Of labels that are predicted by their mean.
        network = study("clean").curves[f"mean squared error, m = {m}: network"]
        assert network.values[-1].mean() < variance / 4
        assert network.exponent is None
    text = " ".join(study("clean").sentences)
    assert "5.878, against 2 pi = 6.283" in text
    assert "Cross entropy is unbounded" in text


# Discrepancy.


def test_w1_falls_as_the_root_of_n_faster_than_the_lemma_proves():
    (curve,) = study("discrepancy").curves.values()
    assert (curve.exponent, curve.verdict) == (-1 / 3, "steeper")
    rate = convergence.fit_rate(curve.n, curve.values)
    assert rate.low < -0.5 < rate.high
    for row, n, samples in zip(curve.values, curve.n, keys(curve.n, 20), strict=True):
        x = [convergence.cube(1).sample(key, n)[:, 0] for key in samples]
        np.testing.assert_allclose(row, [convergence.discrepancy(a) for a in x])
    text = " ".join(study("discrepancy").sentences)
    constant = float(re.search(r"sqrt\(n\) W_1 is ([\d.]+)", text)[1])
    assert abs(constant - np.sqrt(np.pi / 32)) < 0.1
    np.testing.assert_allclose(
        study("discrepancy", L=3.0).rows[0]["mean"], 3 * curve.values[0].mean()
    )


# Noisy labels.

NOISY = ("gaussian noise", "flipped labels")


@pytest.mark.parametrize("noise", NOISY)
def test_the_regularised_minimiser_converges_and_interpolation_of_noise_does_not(noise):
    regularised, free = (
        study("noisy").curves[f"{noise}, lam = {lam}"].values for lam in ("0.01", "0")
    )
    means = regularised.mean(1)
    assert (np.diff(means) < 0).all()
    assert means[-1] < 0.6 * means[0]
    assert (regularised < free).all()
    assert free[-1].mean() > 0.8 * free[0].mean() > 0.2


def test_without_noise_the_limit_is_reached_whatever_the_sample():
    curves = study("noisy", noise=1e-9, flips=1e-12).curves
    for noise in NOISY:
        for lam in ("0.01", "0"):
            errors = curves[f"{noise}, lam = {lam}"].values
            assert errors[-1].max() < 0.03, (noise, lam)


def test_labels_that_are_flipped_half_of_the_time_have_a_constant_mean():
    """Interpolated, they are off by as much as u0 is off 1/2; regularised, by less than half."""
    curves = study("noisy", noise=1e-9, flips=0.5).curves
    np.testing.assert_allclose(curves["flipped labels, lam = 0"].values[-1], 0.4, atol=1e-3)
    assert curves["flipped labels, lam = 0.01"].values[-1].max() < 0.2


# Off the manifold.


def test_on_the_circle_minimisers_meet_and_at_its_centre_they_stay_apart():
    curves = study("off_manifold").curves
    on, bound, off = (
        curves[name].values for name in ("on the circle, largest", "bound", "at its centre")
    )
    assert (on <= bound + 1e-5).all()
    assert on[-1].max() < 0.3 * on[0].min()
    # The labels' extremes over the sample, and L0 = 2 to each.
    for row, n, samples in zip(
        off, TINY["off_manifold"]["sizes"], keys((20, 80, 320)), strict=True
    ):
        u = [2 * np.asarray(convergence.circle().sample(key, n)).prod(1) for key in samples]
        np.testing.assert_allclose(row, [4 - np.ptp(a) for a in u], atol=1e-5)
    assert off.min() >= 2 - 1e-5
    slope = float(re.search(r"is ([\d.]+), of L0 = 2", study("off_manifold").sentences[1])[1])
    assert 1.5 < slope <= 2 * (1 + 1e-5)


# Studies.


@pytest.mark.parametrize("logarithm", [True, False])
def test_a_rate_in_n_over_log_n_is_fitted_in_it(logarithm):
    n = np.array([100, 1000, 10000])
    curve = Curve("", n, (n / np.log(n))[:, None] ** -0.5, -0.5, logarithm)
    assert (abs(curve.rate.slope + 0.5) < 1e-9) == logarithm
    assert curve.verdict == "in the interval"


def test_what_leaves_the_interval_is_named():
    n = [10, 100, 1000]
    curves = {
        str(r): Curve("", n, np.array(n, float)[:, None] ** r, -0.5) for r in (-1, -0.5, -0.2)
    }
    assert [curve.verdict for curve in curves.values()] == ["steeper", "in the interval", "flatter"]
    steeper, flatter = compare(curves)
    assert "theorem: -1. " in steeper
    assert "theorem: -0.2. " in flatter
    assert Curve("", n, np.ones((3, 2))).verdict == "–"


def test_a_measurement_does_not_depend_on_what_else_is_measured():
    draw = {"u": lambda key, n: {"": jax.random.uniform(key)}}
    config = tiny("discrepancy", repeats=2)
    both, one = (measure(config, sizes, draw, iter)["u", ""] for sizes in ((5, 9), (9,)))
    np.testing.assert_array_equal(both[1:], one)
    assert len(np.unique(both)) == 4
    config.seed = 1
    assert (measure(config, (9,), draw, iter)["u", ""] != one).all()


def test_rows_and_tables_have_means_spread_and_verdicts():
    values = np.array([[1.0, 3.0], [0.1, 0.3], [0.01, 0.03]])
    made = Study({"a": Curve("p", [10, 100, 1000], values, -1.0)}, ["Said."])
    assert [row["mean"] for row in made.rows] == pytest.approx([2, 0.2, 0.02])
    assert made.rows[0]["deviation"] == pytest.approx(np.sqrt(2))
    assert made.rows[0]["low"] < made.rates["a"]["exponent"] < made.rows[0]["high"]
    text = pictures.to_markdown(made)
    assert "| a | 2 ± 1.4 | 0.2 ± 0.14 | 0.02 ± 0.014 | -1 |" in text
    (axes,) = pictures.figure(made).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("n, number of data points", "p")


def test_the_theorems_line_has_its_slope_its_name_and_nothing_above_it():
    n = np.array([10, 100, 1000])
    values = np.array([[1.0, 3.0], [0.5, 0.9], [0.2, 0.3]])
    bounded = Curve("sup, m = 2", n, values, -0.5, logarithm=True)
    free = Curve("sup, m = 2", n, 10 * values)
    (axes,) = pictures.figure(Study({"a": bounded, "b": free}, [])).axes
    assert (axes.get_title(), axes.get_ylabel()) == ("m = 2", "sup")
    handles, names = axes.get_legend_handles_labels()
    assert names[-1] == "theorem: ≤ C (n / log n)$^{-1/2}$"
    at, line = handles[-1].get_data()
    np.testing.assert_allclose(line / line[0], ((at / np.log(at)) / (10 / np.log(10))) ** -0.5)
    assert (at[0], at[-1]) == (10, 1000)
    above = np.exp(np.interp(np.log(n), np.log(at), np.log(line))) - values.max(1)
    assert above[0] == pytest.approx(0)
    assert min(above[1:]) > 0.1


# What users get wrong.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repeats": 1}, "config.repeats = 1; it must be 2 or more"),
        ({"sizes": (1, 4)}, r"config.sizes = \(1, 4\); want two or more whole numbers from 2"),
        ({"sizes": (4,)}, r"config.sizes = \(4,\); want two or more"),
        ({"sizes": (4, 4)}, "has a value twice"),
        ({"sizes": (2.5, 4)}, "whole numbers"),
        ({"network_sizes": ()}, r"config.network_sizes = \(\)"),
        ({"reference": 0}, "config.reference = 0; it must be greater than 0"),
        ({"lam": float("nan")}, "config.lam = nan"),
        ({"lam": float("inf")}, "config.lam = inf; it must be greater than 0 and finite"),
        ({"seed": -1}, "config.seed = -1"),
        ({"seed": 2**32}, "it must be 0 or more and less than 2.32"),
        ({"steps": None}, "config.steps = None; give it a value"),
    ],
)
def test_a_bad_value_is_named_before_any_work(change, said):
    config = get_config("clean").unlock()
    for name, value in change.items():
        config[name] = value
    with pytest.raises(ValueError, match=said):
        check(config)
    with pytest.raises(ValueError, match=said):
        theory.clean(config, progress=None)


def test_an_unknown_experiment_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"No experiment 'j9'; choose one of .*covering"):
        get_config("j9")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The launcher with good arguments, and with bad ones: exit code, error output, folder."""
    folder = tmp_path_factory.mktemp("launched")
    config = f"--config={CONFIG}"
    calls = {
        "good": [f"{config}:discrepancy", "--config.sizes=(10, 20, 40)", "--config.repeats=3"],
        "'j9'": [f"{config}:j9"],
        "--config.repeats=1": [f"{config}:noisy", "--config.repeats=1"],
        "--config.sizes=(1, 4)": [f"{config}:covering", "--config.sizes=(1, 4)"],
        "is a file": [f"{config}:covering", "--out=setup.cfg"],
        "FILE.py:clean": [f"{config}:covering", "--config.name=clean"],
        "size": [f"{config}:covering", "--config.size=3"],
    }
    argv = [
        [[SCRIPT, f"--out={folder}/{i}", *call], f"{folder}/log{i}"]
        for i, call in enumerate(calls.values())
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER],
        input=json.dumps(argv),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return {
        name: (int(code), (folder / f"log{i}.stderr").read_text(), folder / str(i))
        for i, (name, code) in enumerate(zip(calls, done.stdout.split(), strict=True))
    }


def test_the_launcher_writes_table_and_picture(launched):
    code, _, out = launched["good"]
    assert code == 0
    assert {f.name for f in out.iterdir()} == {
        f"discrepancy.{suffix}" for suffix in ("md", "csv", "png", "svg")
    }
    with (out / "discrepancy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["n"], row["repeats"]) for row in rows] == [("10", "3"), ("20", "3"), ("40", "3")]
    text = (out / "discrepancy.md").read_text()
    record = json.loads(text.strip().splitlines()[-1].strip("`"))
    assert record["config"]["sizes"] == [10, 20, 40]
    assert "theory.py" in record["about"]["command"]


def test_a_mistake_on_the_command_line_is_one_line_and_nothing_is_written(launched):
    for said, (code, err, out) in launched.items():
        if said != "good":
            assert code == 2, said
            assert len(err.strip().splitlines()) == 1, err
            assert said in err
            assert not out.exists()
