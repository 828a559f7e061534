"""What a picture shows is read back from the figure: its lines, not its pixels."""

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import colors

from lipreg import curves
from lipreg.reports import comparison_plots, plots, style

DISTANCES = {"J0": np.array([0.0, 0.1, 0.2, np.inf]), "J2": np.array([0.0, 0.3, 0.4, 0.5])}
X = np.zeros((2, 4, 4, 1))


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
    assert axes.get_xlabel().endswith("pixels in [0, 1]")
    assert axes.get_title() == "A"
    other = plots.error_curves(DISTANCES, norm_name="l2", bounds=(-3.0, 3.0)).axes[0]
    assert other.get_xlabel().endswith("values in [-3, 3]")


def test_autoattack_is_drawn_as_dots_in_its_curves_colour_and_named_once():
    points = {"J2": [(0.2, 0.5), (0.9, 1.0)], "J0": [(0.2, 0.75)]}
    (axes,) = plots.error_curves(DISTANCES, norm_name="l2", points=points).axes
    j0, j2, dots_j2, dots_j0, _ = axes.lines
    np.testing.assert_allclose(dots_j2.get_xydata(), [[0.2, 50], [0.9, 100]])
    assert (dots_j0.get_color(), dots_j2.get_color()) == (j0.get_color(), j2.get_color())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        *("J0", "J2", "markers: AutoAttack")
    ]
    assert axes.get_xlim()[1] > 0.9


def test_the_true_error_lies_in_a_band_between_attacked_and_certified_error():
    grid, radii = np.linspace(0, 0.6, 4), {"J2": [0.0, 0.1, 0.3, 0.5]}
    (axes,) = plots.error_curves(DISTANCES, norm_name="l2", epsilons=grid, radii=radii).axes
    band, _ = axes.collections
    ends = band.get_paths()[0].vertices
    attacked, certified = (100 * curves.error_at(d["J2"], grid) for d in (DISTANCES, radii))
    for eps, least, most in zip(grid, attacked, certified, strict=True):
        at = ends[np.isclose(ends[:, 0], eps), 1]
        np.testing.assert_allclose([at.min(), at.max()], [least, most])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["J0", "J2", "attacked to certified"]


def test_the_axis_ends_just_beyond_the_distances():
    figure = plots.error_curves(DISTANCES, norm_name="linf")
    assert 0.4 < figure.axes[0].get_xlim()[1] < 0.6
    never = plots.error_curves({"J0": np.array([np.inf, np.inf])}, norm_name="linf")
    assert never.axes[0].lines[0].get_ydata().max() == 0


def test_several_seeds_are_their_mean_in_a_band_of_one_deviation():
    grid = [0.0, 0.15, 0.35]
    seeds = np.array([[0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.1, np.inf]])
    (axes,) = plots.error_curves({"J0": seeds}, norm_name="l2", epsilons=grid).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [12.5, 50, 75])
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    reach = 50 / np.sqrt(2)  # of 25 and 75 %
    np.testing.assert_allclose(np.unique(edges[edges[:, 0] == 0.15, 1]), [50 - reach, 50 + reach])
    assert edges[:, 1].min() == 0  # no error is negative


def test_radii_are_named_above_and_the_legend_stands_below_the_axes():
    figure = plots.error_curves(DISTANCES, norm_name="l2", marks=(0.25, 0.0314159), title="A")
    (axes,) = figure.axes
    (above,) = axes.child_axes
    assert [text.get_text() for text in above.get_xticklabels()] == ["ε = 0.25", "ε = 0.0314"]
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0
    names, title = above.get_tightbbox(), axes.title.get_window_extent()
    assert axes.get_window_extent().y1 <= names.y0 < names.y1 <= title.y0


def test_eighteen_curves_are_all_told_apart_and_twelve_in_grey_as_well():
    looks = [style.look(number) for number in range(18)]
    assert len({str(look) for look in looks}) == 18
    grey = [np.dot(colors.to_rgb(look["color"]), [0.299, 0.587, 0.114]) for look in looks]
    for i, j in itertools.combinations(range(12), 2):
        assert looks[i]["linestyle"] != looks[j]["linestyle"] or abs(grey[i] - grey[j]) > 0.12
    assert style.look(18) == looks[0]
    assert len(set(style.MARKERS)) == 12


def test_a_figure_has_the_style_and_leaves_its_callers_alone():
    with mpl.rc_context({"font.size": 30, "xtick.labelsize": 30}):
        before = dict(mpl.rcParams)
        figure = plots.error_curves(DISTANCES, norm_name="l2")
        assert dict(mpl.rcParams) == before
        figure.draw_without_rendering()  # as a notebook would, in its own style
        (axes,) = figure.axes
        texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.yaxis.label]
    assert {text.get_size() for text in texts} == {8, 9}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_every_image_with_its_title(channels):
    x = np.random.default_rng(0).random((5, 4, 4, channels))
    figure = plots.images(x, titles=list("abcde"), columns=3)
    assert [axes.get_title() for axes in figure.axes] == list("abcde")
    shown = np.asarray(figure.axes[4].images[0].get_array())
    np.testing.assert_allclose(shown.reshape(x[4].shape), x[4])
    assert figure.axes[0].images[0].get_clim() == (0, 1)  # not stretched to the image's own range


def test_a_visible_attack_names_each_class_and_turns_red_where_it_is_another():
    x = np.linspace(0, 1, 3 * 16).reshape(3, 4, 4, 1)
    figure = plots.visible_attack(x, [0, 0.25, 0.5], [3, 3, 8], [0.97, 0.6, 0.714])
    assert [axes.get_title() for axes in figure.axes] == ["ε = 0", "ε = 0.25", "ε = 0.5"]
    below = [axes.texts[0] for axes in figure.axes]
    assert [text.get_text() for text in below] == ["3, 97%", "3, 60%", "8, 71%"]
    colors = [text.get_color() for text in below]
    assert colors[0] == colors[1] == "black" != colors[2]
    framed = [axes.spines["left"].get_visible() for axes in figure.axes]
    assert framed == [False, False, True]
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), x[1, ..., 0])


def test_attacked_images_stand_above_each_other_with_true_and_predicted_class():
    x = np.full((3, 4, 4, 3), 0.5)
    x_adv = x.copy()
    x_adv[1, 0, 0], x_adv[2, 0, 0] = 0.6, 0.45
    said = {"before": [0, 1, 1], "after": [0, 2, 1], "names": ("cat", "dog", "frog")}
    figure = plots.attacked(x, x_adv, [0, 1, 2], **said, norm_name="linf", eps=0.1)
    first, second, third = (figure.axes[i : i + 3] for i in (0, 3, 6))
    assert [axes.get_title() for axes in first] == ["cat", "dog", "frog"]
    below = [[text.get_text() for axes in row for text in axes.texts] for row in (first, third)]
    assert below == [["cat", "dog", "dog"], ["cat", "frog", "dog"]]
    framed = [[axes.spines["top"].get_visible() for axes in row] for row in (first, second, third)]
    assert framed == [[False, False, True], [False] * 3, [False, True, True]]
    np.testing.assert_allclose(second[1].images[0].get_array(), 0.5 + 5 * (x_adv - x)[1])
    np.testing.assert_allclose(second[2].images[0].get_array(), 0.5 + 5 * (x_adv - x)[2])
    rows = [row[0].get_ylabel() for row in (first, second, third)]
    assert rows == ["image", "change × 5", "attacked"]
    assert "ε = 0.1" in figure.get_suptitle()
    assert "2 of 3 misclassified" in figure.get_suptitle()
    del said["names"]
    numbered = plots.attacked(x, x_adv, [0, 1, 2], **said, norm_name="linf", eps=0.1)
    assert numbered.axes[1].get_title() == "1"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_step_to_the_boundary_is_drawn_as_a_sum_around_grey(channels):
    x = np.full((4, 4, channels), 0.5)
    x_adv = x.copy()
    x_adv[0, 0], x_adv[1, 1] = 0.6, 0.45
    options = {"before": (3, 0.97), "after": (8, 0.51), "norm_name": "linf", "distance": 0.1}
    left, middle, right = plots.nearest_boundary(x, x_adv, **options).axes
    shown = np.asarray(middle.images[0].get_array()).reshape(x.shape)
    np.testing.assert_allclose(shown, 0.5 + 5 * (x_adv - x))
    assert shown.max() == pytest.approx(1)
    assert middle.get_title() == "change × 5"
    said = [[text.get_text() for text in axes.texts] for axes in (left, middle, right)]
    assert said == [["3, 97%", "+"], [r"$\ell_\infty$ size 0.1", "="], ["8, 51%"]]
    assert left.texts[0].get_color() == "black" != right.texts[0].get_color()


def test_an_attack_that_failed_is_drawn_without_a_change():
    x = np.full((4, 4, 1), 0.2)
    options = {"before": (3, 0.97), "after": (3, 0.97), "norm_name": "l2", "distance": np.inf}
    _, middle, right = plots.nearest_boundary(x, x, **options).axes
    assert (np.asarray(middle.images[0].get_array()) == 0.5).all()
    assert right.texts[0].get_color() == "black"


def test_a_scatter_counts_what_lies_above_the_diagonal_and_keeps_failures_on_the_edge():
    a, b = [0.0, 0.2, 0.4, np.inf, 0.3], [0.0, 0.4, 0.3, 0.2, np.inf]
    (axes,) = plots.distance_scatter(a, b, ("J0", "J2"), norm_name="l2").axes
    diagonal, found, failed = axes.lines
    edge = axes.get_xlim()[1]
    assert axes.get_xlim() == axes.get_ylim() == (0, pytest.approx(0.42))
    np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [edge, edge]])
    np.testing.assert_allclose(found.get_xydata(), [[0, 0], [0.2, 0.4], [0.4, 0.3]])
    np.testing.assert_allclose(failed.get_xydata(), [[edge, 0.2], [0.3, edge]])
    assert axes.get_title() == "J2 farther than J0: 40% of 5 images"
    (never,) = plots.distance_scatter([np.inf], [np.inf], ("J0", "J2"), norm_name="l2").axes
    assert never.get_xlim() == (0, 1)


def test_no_line_to_a_name_crosses_another():
    rng = np.random.default_rng(0)
    points = {f"row {n}": [tuple(pair)] for n, pair in enumerate(rng.uniform(0, 100, (24, 2)))}
    figure = comparison_plots.errors(points, dict.fromkeys(points, "B"), label="%")
    (axes,) = figure.axes
    starts = axes.transData.transform([note.xy for note in axes.texts])
    ends = axes.transAxes.transform([note.xyann for note in axes.texts])
    side = lambda a, b, c: np.cross([*(b - a), 0], [*(c - a), 0])[2] > 0

    def cross(i, j):
        (a, b), (c, d) = (starts[i], ends[i]), (starts[j], ends[j])
        return side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)

    assert len(axes.texts) == len(points)
    assert not any(itertools.starmap(cross, itertools.combinations(range(len(points)), 2)))


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
        (lambda: plots.error_curves(DISTANCES, norm_name="l2", points={"J1": []}), "'J1'; choose"),
        (lambda: plots.error_curves(DISTANCES, norm_name="l2", radii={"J": [0]}), "radii of 'J'"),
        (
            lambda: plots.error_curves(DISTANCES, norm_name="l2", points={"J0": [(0.1, 40)]}),
            r"errors in \[0, 1\]",
        ),
        (lambda: plots.visible_attack(X, [0, 1], [3], [0.9, 0.8]), "2 epsilons, 1 predictions"),
        (lambda: plots.visible_attack(X, [0], [3], [0.9]), "1 titles for 2 images"),
        (
            lambda: plots.nearest_boundary(
                X[0], X, before=(3, 1), after=(8, 1), norm_name="l2", distance=1
            ),
            r"\(4, 4, 1\) and \(2, 4, 4, 1\); want \[H, W, C\] twice",
        ),
        (
            lambda: plots.distance_scatter([0.1], [0.1, 0.2], ("J0", "J2"), norm_name="l2"),
            "1 distances of 'J0', 2 of 'J2'",
        ),
        (
            lambda: plots.distance_scatter([0.1], [[0.1]], ("J0", "J2"), norm_name="l2"),
            r"'J2' have shape \(1, 1\)",
        ),
        (
            lambda: plots.attacked(X, X, [0], before=[0], after=[0], norm_name="l2", eps=1),
            r"\[1\]; want \[N, H, W, C\] twice",
        ),
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
