"""The pictures of predictions draw the right numbers."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from pictures import (
    ARMS,
    CIFAR,
    TITLE,
    disc,
    images,
    sectors,
)

from kdrop.training import plot_style, prediction_plots
from kdrop.training.prediction_plots import (
    FAR_PIXELS,
    certainty,
    confusion,
    predictions,
    uncertainty_maps,
)


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
    assert "a\naccuracy 90.0%\ncalibration error 10.0%" in drawn.texts
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


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_mark_right_and_wrong(drawn, channels):
    pixels, targets, _ = images(40, channels, 10)
    probabilities = np.full((40, 10), 0.01)
    guesses = np.where(np.arange(40) % 4 == 0, (targets + 1) % 10, targets)
    probabilities[np.arange(40), guesses] = 0.91
    predictions(drawn.path, TITLE, pixels, targets, probabilities, CIFAR)
    panels = drawn.figure.axes
    assert len(panels) == 32
    for n, panel in enumerate(panels):
        mark, truth = ("✗", CIFAR[targets[n]]) if n % 4 == 0 else ("✓", "")
        assert panel.get_title() == f"{CIFAR[guesses[n]]}\n{mark} 91%"
        assert panel.get_xlabel() == truth
        assert (panel.spines["top"].get_linewidth() > 2) == (n % 4 == 0)
        picture = panel.images[0].get_array().reshape(pixels[n].shape)
        np.testing.assert_array_equal(picture, pixels[n])
    title = drawn.figure.get_suptitle()
    score = "Predicted right: 24 of the 32 shown, 75.0% of all 40"
    assert title.startswith(f"{TITLE}\n{score}\n")


def luminance(rgb):
    """Relative luminance, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    rgb = np.asarray(rgb)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_confusion_rows_are_percent_of_the_true_class(drawn):
    pairs = (
        [(0, 0)] * 299 + [(0, 2)] + [(1, 0)] * 3 + [(1, 1)] * 1
    )  # no example of class 2
    targets, predicted = np.array(pairs).T
    confusion(drawn.path, TITLE, targets, predicted, ARMS)
    panel = drawn.figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in panel.texts}
    assert cells == {(0, 0): "100", (2, 0): "<1", (0, 1): "75", (1, 1): "25"}
    assert panel.get_title().startswith(f"{TITLE}\nAccuracy 98.7% (300 of 304)")
    assert {"arm 0 (300)", "arm 1 (4)", "arm 2 (0)", "arm 2"} < set(drawn.texts)


def test_confusion_cells_contrast_with_their_numbers(drawn):
    counts = np.arange(10, 100, 10)  # percent on the diagonal, the rest in class 0
    labels = [str(n) for n in range(len(counts) + 1)]
    targets = np.repeat(np.arange(1, len(labels)), 100)
    predicted = np.concatenate(
        [[n] * c + [0] * (100 - c) for n, c in enumerate(counts, 1)]
    )
    confusion(drawn.path, TITLE, targets, predicted, labels)
    panel = drawn.figure.axes[0]
    assert len(panel.texts) == 2 * len(counts)
    for text in panel.texts:
        x, y = text.get_position()
        behind = luminance(drawn.pixel(panel, x - 0.42, y - 0.42))
        bright, dark = sorted([luminance(to_rgb(text.get_color())), behind])[::-1]
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_uncertainty_is_high_where_the_samples_differ(drawn):
    def left(points):  # sure at the left, two samples that contradict at the right
        sure = np.broadcast_to([1.0, 0, 0], (2, len(points), 3)).copy()
        sure[1, points[:, 0] > 0] = [0, 1, 0]
        return sure

    def below(points):
        thirds = np.full((len(points), 3), 1 / 3)
        thirds[points[:, 1] > 0] = [0, 0, 1]
        return thirds

    corners = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])
    uncertainty_maps(drawn.path, TITLE, below, left, corners)
    panels = drawn.figure.axes[:3]
    entropy = [([0, -2], np.log(3)), ([0, 2], 0)]
    difference = [([2, 0], np.log(2)), ([-2, 0], 0)]
    for panel, values in zip(panels, [entropy, difference, difference], strict=True):
        assert panel.get_xlim() == pytest.approx((-3, 3))
        for (x, y), value in values:
            picture = panel.images[0]
            row, column = ((np.array([y, x]) + 3) / 6 * FAR_PIXELS).astype(int)
            assert picture.get_array()[row, column] == pytest.approx(value)
            colour = picture.to_rgba(value)[:3]
            np.testing.assert_allclose(
                drawn.pixel(panel, x + 0.2, y + 0.2), colour, atol=0.01
            )
        assert len(panel.lines[0].get_xdata()) == 4


def test_certainty_orders_the_images_by_entropy(drawn):
    pixels, targets, _ = images(40, 3, 10)
    samples = np.full((2, 40, 10), 0.0)
    shares = np.random.default_rng(7).permutation(np.linspace(0.2, 1, 40))
    samples[:, range(40), targets] = shares
    samples += (1 - shares[:, None]) / 10
    certainty(drawn.path, TITLE, pixels, targets, samples, CIFAR)
    order = np.argsort(-shares)
    examples = [*order[:16], *order[::-1][:16]]
    assert len(drawn.figure.axes) == 32
    for panel, n in zip(drawn.figure.axes, examples, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), pixels[n])
        share = shares[n] + (1 - shares[n]) / 10
        assert panel.get_title() == f"{CIFAR[targets[n]]}\n✓ {share:.0%}"
