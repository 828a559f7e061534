"""What a picture shows is read back from the figure: its lines, not its pixels."""

import doctest

import numpy as np
import pytest

from lipreg import curves, plots

DISTANCES = {"J0": np.array([0.0, 0.1, 0.2, np.inf]), "J2": np.array([0.0, 0.3, 0.4, 0.5])}


def test_a_curve_is_the_error_at_each_radius_in_percent():
    grid = np.linspace(0, 0.6, 13)
    figure = plots.error_curves(DISTANCES, norm_name="l2", epsilons=grid, marks=(0.25,), title="A")
    (axes,) = figure.axes
    for line, distances in zip(axes.lines[:2], DISTANCES.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), grid)
        np.testing.assert_allclose(line.get_ydata(), 100 * curves.error_at(distances, grid))
    assert list(axes.lines[2].get_xdata()) == [0.25, 0.25]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["J0", "J2"]
    assert r"\ell_2" in axes.get_xlabel()
    assert axes.get_title() == "A"


def test_the_axis_ends_just_beyond_the_distances():
    figure = plots.error_curves(DISTANCES, norm_name="linf")
    assert 0.4 < figure.axes[0].get_xlim()[1] < 0.6
    never = plots.error_curves({"J0": np.array([np.inf, np.inf])}, norm_name="linf")
    assert never.axes[0].lines[0].get_ydata().max() == 0


def test_twelve_curves_are_all_told_apart():
    figure = plots.error_curves({str(i): [0.1] for i in range(12)}, norm_name="l2")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 12


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_every_image_with_its_title(channels):
    x = np.random.default_rng(0).random((5, 4, 4, channels))
    figure = plots.images(x, titles=list("abcde"), columns=3)
    assert [axes.get_title() for axes in figure.axes] == list("abcde")
    shown = np.asarray(figure.axes[4].images[0].get_array())
    np.testing.assert_allclose(shown.reshape(x[4].shape), x[4])
    assert figure.axes[0].images[0].get_clim() == (0, 1)  # not stretched to the image's own range


def test_training_draws_the_rows_that_have_the_key():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_error": 0.5}]
    loss, validation = plots.training(rows, ["loss", "validation_error"]).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2], [2, 1]])
    np.testing.assert_array_equal(validation.lines[0].get_xydata(), [[2, 0.5]])


def test_the_same_figure_is_saved_as_the_same_two_files(tmp_path):
    first, second = (
        plots.save(plots.error_curves(DISTANCES, norm_name="l2"), tmp_path / name)
        for name in ("run.1", "run.2")
    )
    assert [file.name for file in first] == ["run.1.png", "run.1.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: plots.error_curves({}, norm_name="l2"), "no distances"),
        (lambda: plots.error_curves({"J0": []}, norm_name="l2"), r"'J0' have shape \(0,\)"),
        (lambda: plots.error_curves({"J0": [np.nan]}, norm_name="l2"), "no NaN"),
        (lambda: plots.images(np.zeros((2, 4, 4))), r"\(2, 4, 4\); want \[N, H, W, 1\]"),
        (lambda: plots.images(np.zeros((2, 4, 4, 1)), titles=["a"]), "1 titles for 2 images"),
        (lambda: plots.images(np.zeros((2, 4, 4, 1)), columns=0), "columns = 0"),
        (lambda: plots.training([{"step": 1, "loss": 1.0}], ["los"]), "'los'; choose one of loss"),
        (lambda: plots.training([{"step": 1, "loss": 1.0}], []), "choose some of loss"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, said):
    with pytest.raises(ValueError, match=said):
        draw()


def test_the_examples_run_as_written():
    result = doctest.testmod(plots)
    assert result.attempted > 0
    assert result.failed == 0
