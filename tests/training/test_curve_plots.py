"""The pictures of runs draw the right numbers."""

import numpy as np
import pytest
from pictures import (
    TITLE,
    forecast,
    history,
)

from kdrop.training import curve_plots, plot_style
from kdrop.training.curve_plots import calibration, sample_counts


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


def test_sample_counts_draw_the_vote_of_the_first_samples(drawn):
    scaled, samples, targets = forecast(200, 6)
    sample_counts(drawn.path, {"none": None, "a": (scaled, samples)}, targets)
    error, loss = drawn.figure.axes
    expected = [
        (scores, -np.log(np.maximum(scores[range(200), targets], 1e-7)).mean())
        for scores in [*(samples[:k].mean(axis=0) for k in range(1, 7)), scaled]
    ]
    wrong = [np.mean(scores.argmax(axis=1) != targets) for scores, _ in expected]
    lost = [each for _, each in expected]
    for panel, values in (error, wrong), (loss, lost):
        vote, level = panel.lines
        np.testing.assert_array_equal(vote.get_xdata(), range(1, 7))
        np.testing.assert_allclose(vote.get_ydata(), values[:-1])
        np.testing.assert_allclose(level.get_ydata(), values[-1])
        assert level.is_dashed() and not vote.is_dashed()
        assert level.get_color() == vote.get_color() == plot_style.COLOURS[1]


def test_calibration_draws_bins_of_confidence(drawn):
    sure = np.array([[0.8, 0.2]] * 10 + [[0.05, 0.95]] * 5)
    targets = np.array([0] * 6 + [1] * 4 + [1] * 4 + [0])
    calibration(drawn.path, TITLE, {"a": sure, "b": sure[:, ::-1]}, targets)
    above, below = drawn.figure.axes
    diagonal, a, b = above.lines
    np.testing.assert_array_equal(*diagonal.get_xydata().T)
    np.testing.assert_allclose(a.get_xydata(), [[0.8, 0.6], [0.95, 0.8]])
    np.testing.assert_allclose(b.get_xydata(), [[0.8, 0.4], [0.95, 0.2]])
    for line in below.lines:
        np.testing.assert_allclose(line.get_xydata(), [[0.8, 10], [0.95, 5]])
    error = (10 * 0.2 + 5 * 0.15) / 15
    assert f"a: calibration error {error:.3f}" in drawn.texts
