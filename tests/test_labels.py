"""Labels that are wrong: counts by hand, constants known exactly, and choices that see no test."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lipreg import datasets
from lipreg.lipschitz import of_data
from lipreg.norms import LINF
from lipreg.theory import labels

KEY = jax.random.key(0)
METHODS = ("plain", "early stopping", "weight decay", "label smoothing", "lip_excess")
PANELS = ("wrong labels corrected", "right labels kept", "test error", "strength chosen")


def tiny(**fields):
    common = {"seed": 0, "repeats": 2, "dir": "", "widths": (16,), "batch_size": 32}
    return ConfigDict(common | {"learning_rate": 0.2} | fields)


def correcting(**fields):
    """One shape for all tests: two programs are compiled."""
    grids = {"weight_decays": (0.0,), "smoothings": (0.0,), "lams": (0.0,)}
    sizes = {"data": "digits", "examples": 192, "epochs": 8, "percents": (0, 30)}
    return tiny(**grids | sizes | fields)


def values(study, panel, method):
    return study.curves[f"{panel}, digits: {method}"].values


# Counting.

TRUE = np.array([0, 1, 2, 0, 1, 2, 0, 1])
GIVEN = np.array([0, 1, 2, 0, 1, 0, 1, 2])  # the last three are wrong
PREDICTED = np.array([0, 1, 2, 0, 0, 2, 1, 0])  # true, given and neither for the wrong ones


def test_a_wrong_label_is_corrected_by_its_true_class_alone():
    assert labels.correction(PREDICTED, GIVEN, TRUE) == pytest.approx((1 / 3, 4 / 5))
    assert labels.correction(TRUE, GIVEN, TRUE) == (1.0, 1.0)
    assert labels.correction(GIVEN, GIVEN, TRUE) == (0.0, 1.0)


def test_where_no_label_is_wrong_there_is_nothing_to_correct():
    corrected, kept = labels.correction(PREDICTED, TRUE, TRUE)
    assert np.isnan(corrected)
    assert kept == 5 / 8
    corrected, kept = labels.correction(TRUE, (TRUE + 1) % 3, TRUE)
    assert corrected == 1.0
    assert np.isnan(kept)


def test_classes_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \[8\], \[7\], \[8\]; want three times \[n\]"):
        labels.correction(PREDICTED, GIVEN[1:], TRUE)


# Shuffling, and the constant of the data.


def test_a_shuffle_keeps_the_classes_and_moves_no_more_labels_than_its_fraction():
    y = np.arange(1000) % 10
    for fraction in (0.0, 0.1, 0.5, 1.0):
        shuffled = labels.shuffled_labels(KEY, y, fraction)
        np.testing.assert_array_equal(np.sort(shuffled), np.sort(y))
        # One in ten comes to rest where it was.
        assert (shuffled != y).mean() == pytest.approx(0.9 * fraction, abs=0.03)
        assert (shuffled != y).sum() <= 1000 * fraction
    other = labels.shuffled_labels(jax.random.fold_in(KEY, 1), y, 1.0)
    assert (other != shuffled).any()


@pytest.mark.parametrize("fraction", [-0.1, 1.5, np.nan])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction = {fraction}; of the labels"):
        labels.shuffled_labels(KEY, TRUE, fraction)


def test_L0_is_one_over_the_gap_of_the_classes_until_labels_are_shuffled():
    x = np.concatenate([np.arange(0, 64), np.arange(128, 192)])[:, None] / 64.0
    y = np.repeat([0, 1], 64)
    assert of_data(x, y).value == 64 / 65
    for fraction in (0.2, 1.0):
        shuffled = labels.shuffled_labels(KEY, y, fraction)
        assert of_data(x, shuffled, norm=LINF).value == pytest.approx(64.0)


def test_random_labels_raise_L0_and_are_fitted_without_the_regulariser_only():
    sizes = {"data": ("digits",), "examples": 96, "epochs": 60, "percents": (0, 50, 100)}
    config = tiny(**sizes, repeats=1, lam=3.0)
    study = labels.random_labels(config)
    training = datasets.load("digits", "train")
    clean = of_data(datasets.to_unit(training.x[:96]), training.y[:96]).value
    found = {(w, m): values(study, w, m)[:, 0] for w, m in REPORTED}
    L0 = found["L0", "data"]
    assert L0[0] == clean
    assert (L0[1:] > 1.2 * clean).all()
    assert (found["training error", "plain"] < 0.05).all()
    assert found["training error", "lip_excess"][0] < 0.05
    assert (found["training error", "lip_excess"][1:] > 0.1).all()
    assert (found["mean |f - y|", "plain"] < 0.4).all()
    assert (found["mean |f - y|", "lip_excess"][1:] > 0.5).all()
    assert (found["Lip(f)", "plain"] > found["Lip(f)", "lip_excess"]).all()
    assert len(study.sentences) == 2
    assert study.sentences[1].startswith(f"digits, 100 % shuffled: L0 {L0[2]:.3g}; training error")
    assert all(np.isfinite(row["mean"]) for row in study.rows)


REPORTED = [("L0", "data")] + [
    (what, method)
    for what in ("training error", "mean |f - y|", "Lip(f)")
    for method in ("plain", "lip_excess")
]


# Correction.


@pytest.fixture(scope="module")
def without_strength():
    return labels.label_correction(correcting())


def test_every_method_has_every_number_at_every_percentage(without_strength):
    names = {f"{panel}, digits: {method}" for panel in PANELS for method in METHODS}
    assert without_strength.curves.keys() == names
    rows = without_strength.rows
    assert len(rows) == 2 * len(names)
    assert {(row["curve"], row["% wrong"]) for row in rows} == {
        (c, n) for c in names for n in (0, 30)
    }
    assert {row["repeats"] for row in rows} == {2}


def test_with_no_strength_every_method_is_plain_training(without_strength):
    for panel in PANELS[:3]:
        plain = values(without_strength, panel, "plain")
        for method in ("weight decay", "label smoothing", "lip_excess"):
            np.testing.assert_array_equal(values(without_strength, panel, method), plain)


def test_without_wrong_labels_nothing_is_corrected_and_all_else_is_measured(without_strength):
    for method in METHODS:
        corrected = values(without_strength, PANELS[0], method)
        assert np.isnan(corrected[0]).all()
        assert ((corrected[1] > 0.2) & (corrected[1] <= 1)).all()
        assert (values(without_strength, PANELS[1], method) > 0.7).all()
    _, clean, noisy = without_strength.sentences
    assert "nothing to correct" in clean
    assert "most corrected by" in noisy


def test_a_strength_is_chosen_by_the_validation_split_alone(monkeypatch):
    """Strengths that ruin are not chosen, and test labels choose nothing."""
    strengths = {"weight_decays": (0.0, 5.0), "smoothings": (1.0, 0.0), "lams": (1e3,)}
    config = correcting(percents=(30,), **strengths)
    study, load = labels.label_correction(config), datasets.load
    chosen = {m: values(study, "strength chosen", m) for m in METHODS}
    assert (chosen["weight decay"] == 0).all()
    assert (chosen["label smoothing"] == 0).all()
    assert (values(study, "test error", "lip_excess") != values(study, "test error", "plain")).any()
    clean = datasets.load("digits", "validation", validation=0.2)
    L0 = of_data(datasets.to_unit(clean.x[:48]), clean.y[:48]).value
    assert study.sentences[0] == f"L0 = {L0:.3g}, that of 48 clean validation images."
    assert ((chosen["early stopping"] >= 1) & (chosen["early stopping"] <= 8)).all()

    def rolled(which):
        def loaded(name, split, **options):
            dataset = load(name, split, **options)
            y = (dataset.y + 1) % 10
            return dataset._replace(y=y) if split == which else dataset

        monkeypatch.setattr(datasets, "load", loaded)
        return labels.label_correction(config)

    other = rolled("test")
    for method in METHODS:
        for panel in (*PANELS[:2], "strength chosen"):
            same = values(other, panel, method), values(study, panel, method)
            np.testing.assert_array_equal(*same)
        assert (values(other, "test error", method) > 0.6).all()
    # The worst on the images is then the best on the labels.
    misled = rolled("validation")
    assert (values(misled, "strength chosen", "weight decay") == 5).all()


def test_the_verdict_names_the_winner_and_the_margin():
    errors = {"plain": [0.2, 0.2], "early stopping": [0.1, 0.1], "lip_excess": [0.08, 0.1]}
    found = {f"test error, {m}": np.array(v) for m, v in errors.items()}
    found |= {f"wrong labels corrected, {m}": np.array(v) for m, v in errors.items()}
    won = labels._verdict(20, found)
    assert won == (
        "20 % wrong: smallest test error by lip_excess (9.0%), most corrected by plain (20.0%); "
        "lip_excess less early stopping, the best other: -1.0 ± 1.4 points of test error."
    )
    found["test error, lip_excess"] = np.array([0.3, 0.3])
    lost = labels._verdict(20, found)
    assert "smallest test error by early stopping (10.0%)" in lost
    assert "lip_excess less early stopping, the best other: +20.0 ± 0.0 points" in lost


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"percents": (10, 120)}, r"percents = \(10, 120\); want one or more whole numbers from 0"),
        ({"percents": (0.5,)}, "percents = .0.5,.; want one or more whole numbers"),
        ({"percents": (-1,)}, "percents = .-1,.; want one or more whole numbers from 0 to 100"),
        ({"lams": ()}, "lams = ..; want one or more finite numbers from 0"),
        ({"lams": (float("nan"),)}, "lams = .nan,.; want one or more finite numbers from 0"),
        ({"lams": (float("inf"),)}, "lams = .inf,.; want one or more finite numbers from 0"),
        ({"lams": ("a",)}, "lams = .'a',.; want one or more finite numbers"),
        ({"smoothings": (2.0,)}, "smoothings = .2.0,.; want one or more numbers from 0 to 1"),
        ({"widths": (0,)}, "widths = .0,.; want one or more whole numbers from 1"),
        ({"widths": (1.5,)}, "widths = .1.5,.; want one or more whole numbers from 1"),
        ({"percents": (10, 10)}, "percents = .10, 10. has a value twice"),
        ({"repeats": 0}, "repeats = 0; it must be 1 or more.$"),
        ({"epochs": 0}, "epochs = 0; it must be greater than 0"),
        ({"batch_size": 500}, "batch_size = 500; there are 192 examples"),
        ({"examples": 7}, "1 examples of a split; want 2 or more"),
        ({"data": "dogs"}, "No data set 'dogs'"),
    ],
)
def test_a_config_that_cannot_run_is_refused_in_one_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        labels.label_correction(correcting(**fields))


def test_settings_are_refused_before_data_are_read():
    with pytest.raises(ValueError, match=r"seed = 4294967296; it must be .* less than 2.32"):
        labels.label_correction(correcting(seed=2**32, data="dogs"))
    with pytest.raises(ValueError, match=r"data = .3,.; want one or more names of data sets"):
        labels.random_labels(correcting(data=(3,)))


def test_a_network_that_has_diverged_is_no_result():
    with pytest.raises(FloatingPointError, match=r"learning_rate = 1e\+30 and no regulariser"):
        labels.label_correction(correcting(learning_rate=1e30))
