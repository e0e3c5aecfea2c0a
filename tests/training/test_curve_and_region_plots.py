"""The pictures of runs draw the right numbers."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from pictures import (
    ARMS,
    disc,
    history,
    sectors,
)

from kdrop.training import curve_plots, plot_style, prediction_plots


def test_curves_draw_the_columns(drawn):
    runs = {"none": history(20, 1), "dropped": history(12, 2, validation=False)}
    curve_plots.curves(drawn.path, runs)
    loss, accuracy = drawn.figure.axes
    for panel, column in (loss, "data_loss"), (accuracy, "accuracy"):
        training, validation, other = panel.lines
        np.testing.assert_array_equal(training.get_ydata(), runs["none"][column])
        np.testing.assert_array_equal(
            validation.get_ydata(), runs["none"]["val_" + column]
        )
        np.testing.assert_array_equal(other.get_ydata(), runs["dropped"][column])
        np.testing.assert_array_equal(other.get_xdata(), runs["dropped"]["epoch"])
        assert training.is_dashed() and other.is_dashed() and not validation.is_dashed()
        assert training.get_color() == validation.get_color() != other.get_color()
        assert training.get_marker() == validation.get_marker() != other.get_marker()
    assert {"none", "dropped", "training", "validation"} < set(drawn.texts)


def test_curves_draw_the_rates_of_a_schedule(drawn):
    runs = {"none": history(20), "dropped": history(20, rates=(0.1, 0.1, 0.5))}
    curve_plots.curves(drawn.path, runs)
    *_, panel = drawn.figure.axes
    assert panel.get_title() == "Dropout rate"
    for line, place in zip(panel.lines, (2, 3), strict=True):  # 1 and 2 share a line
        rates = runs["dropped"][f"rate_drop_{place}"]
        np.testing.assert_array_equal(line.get_ydata(), rates)
        assert line.get_color() == drawn.figure.axes[0].lines[-1].get_color()


def test_without_validation_the_legend_has_none(drawn):
    curve_plots.curves(drawn.path, {"none": history(5, validation=False)})
    assert "training" in drawn.texts and "validation" not in drawn.texts


@pytest.mark.parametrize("epochs", [10, 1000])
def test_a_diverged_run_does_not_hide_the_others(drawn, epochs):
    broken = history(epochs, validation=False)
    broken["data_loss"] = [2.0, *[1e3] * 6, *[np.inf] * (epochs - 8), np.nan]
    curve_plots.curves(drawn.path, {"none": history(epochs), "broken": broken})
    low, high = drawn.figure.axes[0].get_ylim()
    assert 0 < low < 0.3 and 1e3 < high < 1e4


def test_regions_draw_some_points_and_count_all(drawn):
    points = disc(3000) * np.float32([2, 1]) + np.float32([5, 0])
    targets = (points[:, 0] > 5).astype(int)
    flipped = np.random.default_rng(4).permutation(3000)[:300]
    targets[flipped] = 1 - targets[flipped]

    def right_half(x):
        return np.eye(2)[(x[:, 0] > 5).astype(int)]

    prediction_plots.regions(
        drawn.path, {"a": right_half, "b": sectors(2)}, points, targets, "LR"
    )
    assert "a\naccuracy 90.0%" in drawn.texts
    assert any("1,000 of 3,000 shown" in text for text in drawn.texts)
    assert drawn.texts.count("predicted wrong") == 1
    first, second = drawn.figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    for limits, coordinates in zip(
        (first.get_xlim(), first.get_ylim()), points.T, strict=True
    ):
        assert limits[0] < coordinates.min() and coordinates.max() < limits[1]
    target_of = {
        tuple(point): target for point, target in zip(points, targets, strict=True)
    }
    drawn_points = 0
    for line in first.lines:
        black = line.get_markeredgecolor() == "black"
        for point in line.get_xydata().astype(np.float32):
            target = target_of[tuple(point)]
            assert line.get_color() == plot_style.COLOURS[target]
            assert line.get_marker() == plot_style.MARKERS[target]
            assert black == (target != (point[0] > 5))
            drawn_points += 1
    assert drawn_points == 1000


def test_regions_have_the_colour_of_the_prediction(drawn):
    def predict(points):  # certain of 2 above y = 3, at chance below, of 1 at the right
        probabilities = np.full((len(points), 3), 1 / 3)
        probabilities[points[:, 1] > 3] = [0, 0, 1]
        probabilities[points[:, 0] > 7] = [0.1, 0.8, 0.1]
        return probabilities

    corners = np.array([[0, 0], [8, 0], [0, 4], [8, 4]], np.float32)
    prediction_plots.regions(drawn.path, {"a": predict}, corners, [0, 1, 2, 1], ARMS)
    panel = drawn.figure.axes[0]
    unit = panel.transData.transform([[0, 0], [1, 1]])
    assert np.ptp(unit[:, 0]) == pytest.approx(np.ptp(unit[:, 1]), rel=0.01)
    np.testing.assert_allclose(drawn.pixel(panel, 2, 1), 1, atol=0.01)
    for place, strength, label in ((3, 3.5), 1, 2), ((7.6, 1), 0.7, 1):
        colour = 1 - 0.45 * strength * (1 - np.array(to_rgb(plot_style.COLOURS[label])))
        np.testing.assert_allclose(drawn.pixel(panel, *place), colour, atol=0.01)


def test_regions_of_a_diverged_run_are_white(drawn):
    def diverged(points):
        return np.full((len(points), 3), np.nan)

    prediction_plots.regions(drawn.path, {"a": diverged}, disc(4), [0, 0, 0, 1], ARMS)
    assert "a\naccuracy 75.0%" in drawn.texts  # argmax takes class 0, as Keras does
    assert np.all(drawn.figure.axes[0].images[0].get_array() == 1)
