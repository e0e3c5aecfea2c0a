"""The pictures: they draw the right numbers, and all their text can be read."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from kdrop.training import image_plots, plots, vote_plots

CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()
ARMS = ["arm 0", "arm 1", "arm 2"]
LONG = [f"the class of number {n}, whose name does not end" for n in range(10)]
RUNS = ["none", "InvertedDropout 0.5", "VanillaDropout $0.5$ on a wide network, seed 3"]
RUNS += ["SpatialDropout2D", "_DropBlock2D"]
TITLE = "StochasticDepth, test set"


class Drawn:
    """The figure of a picture, its file, and where each text ended up, in pixels."""

    def __init__(self, path):
        self.path, self.boxes, self.figure = path, {}, None

    @property
    def texts(self):
        return [text.get_text() for text in self.boxes]

    def pixel(self, panel, x, y):
        """The colour in the file at a place given in the panel's coordinates."""
        column, row = panel.transData.transform((x, y)) * 200 / self.figure.dpi
        image = imread(self.path)
        return image[int(len(image) - row), int(column), :3]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    result = Drawn(tmp_path / "picture.png")
    draw, save = Text.draw, Figure.savefig

    def record_box(text, renderer):
        if text.get_text() and text.get_visible():
            result.boxes[text] = text.get_window_extent(renderer)
        return draw(text, renderer)

    def record_figure(figure, *arguments, **settings):
        result.boxes.clear()
        result.figure = figure
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Text, "draw", record_box)
    monkeypatch.setattr(Figure, "savefig", record_figure)
    return result


def history(epochs, number=0, validation=True, low=0.3, rates=()):
    noise = np.random.default_rng(number)
    fall = np.exp(np.linspace(0, min(-5, np.log(low)), epochs))
    columns = {"epoch": np.arange(1, epochs + 1), "learning_rate": fall}
    for part in ("", "val_")[: 1 + validation]:
        columns[part + "data_loss"] = low + fall + 0.1 * low * noise.random(epochs)
        columns[part + "accuracy"] = 0.9 - 0.5 * fall - 0.05 * noise.random(epochs)
    for place, rate in enumerate(rates, start=1):
        columns[f"rate_drop_{place}"] = rate * fall
    return columns


def sectors(classes):
    angles = 2 * np.pi * np.arange(classes) / classes

    def predict(points):
        scores = np.exp(5 * points @ np.stack([np.cos(angles), np.sin(angles)]))
        return scores / scores.sum(axis=1, keepdims=True)

    return predict


def disc(count):
    generator = np.random.default_rng(1)
    return generator.uniform(-1, 1, (count, 2)).astype(np.float32)


def images(count, channels, classes, size=32):
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 256, (count, size, size, channels), np.uint8)
    targets = generator.integers(0, classes, count)
    return pixels, targets, generator.dirichlet(np.full(classes, 0.3), count)


def draw_curves(path, runs, epochs, **settings):
    plots.curves(path, {r: history(epochs, n, **settings) for n, r in enumerate(runs)})


def draw_regions(path, runs, labels):
    points = disc(1500)
    targets = np.arange(1500) % len(labels)
    plots.regions(
        path, dict.fromkeys(runs, sectors(len(labels))), points, targets, labels
    )


def draw_predictions(path, count, channels, labels):
    image_plots.predictions(path, TITLE, *images(count, channels, len(labels)), labels)


def draw_confusion(path, labels, count=20_000):
    pairs = np.random.default_rng(3).integers(0, len(labels), (2, count))
    image_plots.confusion(path, TITLE, pairs[0], np.where(pairs[0] < 2, *pairs), labels)


def sample(points, classes=3, samples=20):
    """Samples that agree within a unit of the middle, and not beyond."""
    noise = np.random.default_rng(5).normal(size=(samples, 1, classes))
    far = np.clip(np.linalg.norm(points, axis=1) - 1, 0, 20)
    scores = np.exp(np.tanh(3 * points.sum(axis=1))[:, None] * np.arange(classes))
    scores = scores / scores.sum(axis=1, keepdims=True) * np.exp(far[:, None] * noise)
    return scores / scores.sum(axis=-1, keepdims=True)


def forecast(count, samples=50, classes=10):
    """Weight scaling, samples, and targets that are drawn from their mean."""
    generator = np.random.default_rng(6)
    middle = generator.dirichlet(np.full(classes, 0.3), count)
    shape = (samples, count, classes)
    values = generator.gamma(20 * middle + 0.1, size=shape)
    values /= values.sum(axis=-1, keepdims=True)
    targets = [generator.choice(classes, p=each) for each in values.mean(axis=0)]
    return middle, values, np.array(targets)


def draw_sample_counts(path, runs, count=400, samples=50):
    scaled, values, targets = forecast(count, samples)
    votes = {x: (scaled, np.roll(values, n, axis=0)) for n, x in enumerate(runs)}
    vote_plots.sample_counts(path, votes, targets)


def draw_calibration(path, title, count=3000):
    scaled, samples, targets = forecast(count)
    forecasts = {"weight scaling": scaled, "vote": samples.mean(axis=0)}
    vote_plots.calibration(path, title, forecasts, targets)


def draw_uncertainty(path, title, scale=(1, 1)):
    points = disc(1500) * np.float32(scale)
    vote_plots.uncertainty_maps(path, title, lambda x: sample(x)[0], sample, points)


def draw_certainty(path, count, channels, labels):
    pixels, targets, _ = images(count, channels, len(labels))
    samples = forecast(count, 5, len(labels))[1]
    image_plots.certainty(path, TITLE, pixels, targets, samples, labels)


CASES = {
    "curves of one epoch": lambda path: draw_curves(path, RUNS[:1], 1),
    "short curves": lambda path: draw_curves(path, RUNS[:3], 3, validation=False),
    "long curves": lambda path: draw_curves(path, RUNS, 10_000),
    "rates": lambda path: draw_curves(path, RUNS, 10_000, rates=(0.1, 0.1, 0.5)),
    "two decades": lambda path: draw_curves(path, RUNS[:2], 60, low=0.01),
    "six decades": lambda path: draw_curves(path, RUNS[:4], 60, low=1e-6),
    "one region": lambda path: draw_regions(path, RUNS[:1], ARMS),
    "regions of three": lambda path: draw_regions(path, RUNS[:3], ARMS),
    "regions of four": lambda path: draw_regions(path, RUNS[:4], LONG[:3]),
    "regions of five": lambda path: draw_regions(path, RUNS, CIFAR),
    "regions of long classes": lambda path: draw_regions(path, RUNS[:2], LONG),
    "one image": lambda path: draw_predictions(path, 1, 3, CIFAR),
    "photographs": lambda path: draw_predictions(path, 40, 3, CIFAR),
    "drawings": lambda path: draw_predictions(path, 11, 1, list("0123456789")),
    "long labels": lambda path: draw_predictions(path, 32, 3, LONG),
    "confused digits": lambda path: draw_confusion(path, list("0123456789")),
    "confused photographs": lambda path: draw_confusion(path, CIFAR),
    "confused long labels": lambda path: draw_confusion(path, LONG),
    "confused arms": lambda path: draw_confusion(path, ARMS),
    "one sample": lambda path: draw_sample_counts(path, RUNS[1:2], samples=1),
    "samples": lambda path: draw_sample_counts(path, RUNS),
    "many samples": lambda path: draw_sample_counts(path, RUNS[:2], 40, 1000),
    "reliability": lambda path: draw_calibration(path, TITLE),
    "reliability of a few": lambda path: draw_calibration(path, RUNS[2], 3),
    "uncertainty": lambda path: draw_uncertainty(path, RUNS[2]),
    "uncertainty of wide points": lambda path: draw_uncertainty(path, TITLE, (40, 9)),
    "certainty of one image": lambda path: draw_certainty(path, 1, 3, CIFAR),
    "certainty of photographs": lambda path: draw_certainty(path, 40, 3, CIFAR),
    "certainty of drawings": lambda path: draw_certainty(path, 11, 1, list("012")),
    "certainty of long labels": lambda path: draw_certainty(path, 40, 3, LONG),
}


@pytest.mark.parametrize("case", CASES)
def test_every_text_can_be_read_in_print(drawn, case):
    before = dict(matplotlib.rcParams)
    CASES[case](drawn.path)
    assert dict(matplotlib.rcParams) == before
    height, width = imread(drawn.path).shape[:2]
    assert width / 200 <= 7.3  # inches: no page shrinks it
    for text, box in drawn.boxes.items():
        assert text.get_fontsize() >= 8, text
        assert not text.get_parse_math(), text
        assert 0 <= box.x0 and 0 <= box.y0 and box.x1 <= width and box.y1 <= height, (
            text
        )
    for (one, a), (other, b) in combinations(drawn.boxes.items(), 2):
        separate = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert separate, f"{one.get_text()!r} lies on {other.get_text()!r}"


def test_curves_draw_the_columns(drawn):
    runs = {"none": history(20, 1), "dropped": history(12, 2, validation=False)}
    plots.curves(drawn.path, runs)
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
    plots.curves(drawn.path, runs)
    *_, panel = drawn.figure.axes
    assert panel.get_title() == "Dropout rate"
    for line, place in zip(panel.lines, (2, 3), strict=True):  # 1 and 2 share a line
        rates = runs["dropped"][f"rate_drop_{place}"]
        np.testing.assert_array_equal(line.get_ydata(), rates)
        assert line.get_color() == drawn.figure.axes[0].lines[-1].get_color()


def test_without_validation_the_legend_has_none(drawn):
    plots.curves(drawn.path, {"none": history(5, validation=False)})
    assert "training" in drawn.texts and "validation" not in drawn.texts


def test_long_curves_are_means_in_a_band(drawn):
    long = history(1001)
    plots.curves(drawn.path, {"none": long})
    panel = drawn.figure.axes[1]
    line, band = panel.lines[0], panel.collections[0].get_paths()[0].vertices
    blocks = [long["accuracy"][i : i + 6] for i in range(0, 1001, 6)]
    np.testing.assert_allclose(line.get_ydata(), [block.mean() for block in blocks])
    assert line.get_xdata()[-1] == np.mean([997, 998, 999, 1000, 1001])
    edges = {*np.min(blocks[:-1], axis=1), *np.max(blocks[:-1], axis=1)}
    assert edges <= set(band[:, 1])
    assert any(text.startswith("Lines: means over 6 epochs") for text in drawn.texts)


@pytest.mark.parametrize("epochs", [10, 1000])
def test_a_diverged_run_does_not_hide_the_others(drawn, epochs):
    broken = history(epochs, validation=False)
    broken["data_loss"] = [2.0, *[1e3] * 6, *[np.inf] * (epochs - 8), np.nan]
    plots.curves(drawn.path, {"none": history(epochs), "broken": broken})
    low, high = drawn.figure.axes[0].get_ylim()
    assert 0 < low < 0.3 and 1e3 < high < 1e4


def test_regions_draw_some_points_and_count_all(drawn):
    points = disc(3000) * np.float32([2, 1]) + np.float32([5, 0])
    targets = (points[:, 0] > 5).astype(int)
    flipped = np.random.default_rng(4).permutation(3000)[:300]
    targets[flipped] = 1 - targets[flipped]

    def right_half(x):
        return np.eye(2)[(x[:, 0] > 5).astype(int)]

    plots.regions(drawn.path, {"a": right_half, "b": sectors(2)}, points, targets, "LR")
    assert "a\naccuracy 90.0%" in drawn.texts
    assert any("1,000 of 3,000 shown" in text for text in drawn.texts)
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
            assert line.get_color() == plots.COLOURS[target]
            assert line.get_marker() == plots.MARKERS[target]
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
    plots.regions(drawn.path, {"a": predict}, corners, [0, 1, 2, 1], ARMS)
    panel = drawn.figure.axes[0]
    unit = panel.transData.transform([[0, 0], [1, 1]])
    assert np.ptp(unit[:, 0]) == pytest.approx(np.ptp(unit[:, 1]), rel=0.01)
    np.testing.assert_allclose(drawn.pixel(panel, 2, 1), 1, atol=0.01)
    for place, strength, label in ((3, 3.5), 1, 2), ((7.6, 1), 0.7, 1):
        colour = 1 - 0.45 * strength * (1 - np.array(to_rgb(plots.COLOURS[label])))
        np.testing.assert_allclose(drawn.pixel(panel, *place), colour, atol=0.01)


def test_regions_of_a_diverged_run_are_white(drawn):
    def diverged(points):
        return np.full((len(points), 3), np.nan)

    plots.regions(drawn.path, {"a": diverged}, disc(4), [0, 0, 0, 1], ARMS)
    assert "a\naccuracy 75.0%" in drawn.texts  # argmax takes class 0, as Keras does
    assert np.all(drawn.figure.axes[0].images[0].get_array() == 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_mark_right_and_wrong(drawn, channels):
    pixels, targets, _ = images(40, channels, 10)
    probabilities = np.full((40, 10), 0.01)
    guesses = np.where(np.arange(40) % 4 == 0, (targets + 1) % 10, targets)
    probabilities[np.arange(40), guesses] = 0.91
    image_plots.predictions(drawn.path, TITLE, pixels, targets, probabilities, CIFAR)
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
    image_plots.confusion(drawn.path, TITLE, targets, predicted, ARMS)
    panel = drawn.figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in panel.texts}
    assert cells == {(0, 0): "100", (2, 0): "<1", (0, 1): "75", (1, 1): "25"}
    assert panel.get_title().startswith(f"{TITLE}\nAccuracy 98.7% (300 of 304)")
    assert {"arm 0 (300)", "arm 1 (4)", "arm 2 (0)", "arm 2"} < set(drawn.texts)


def test_confusion_cells_contrast_with_their_numbers(drawn):
    counts = np.arange(5, 100, 5)  # percent on the diagonal, the rest in class 0
    labels = [str(n) for n in range(len(counts) + 1)]
    targets = np.repeat(np.arange(1, len(labels)), 100)
    predicted = np.concatenate(
        [[n] * c + [0] * (100 - c) for n, c in enumerate(counts, 1)]
    )
    image_plots.confusion(drawn.path, TITLE, targets, predicted, labels)
    panel = drawn.figure.axes[0]
    assert len(panel.texts) == 2 * len(counts)
    for text in panel.texts:
        x, y = text.get_position()
        behind = luminance(drawn.pixel(panel, x - 0.42, y - 0.42))
        bright, dark = sorted([luminance(to_rgb(text.get_color())), behind])[::-1]
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_sample_counts_draw_the_vote_of_the_first_samples(drawn):
    scaled, samples, targets = forecast(200, 6)
    vote_plots.sample_counts(
        drawn.path, {"none": None, "a": (scaled, samples)}, targets
    )
    error, loss = drawn.figure.axes
    expected = [
        (scores, -np.log(scores[range(200), targets]).mean())
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
        assert level.get_color() == vote.get_color() == plots.COLOURS[1]


def test_calibration_draws_bins_of_confidence(drawn):
    sure = np.array([[0.8, 0.2]] * 10 + [[0.05, 0.95]] * 5)
    targets = np.array([0] * 6 + [1] * 4 + [1] * 4 + [0])
    vote_plots.calibration(drawn.path, TITLE, {"a": sure, "b": sure[:, ::-1]}, targets)
    above, below = drawn.figure.axes
    diagonal, a, b = above.lines
    np.testing.assert_array_equal(*diagonal.get_xydata().T)
    np.testing.assert_allclose(a.get_xydata(), [[0.8, 0.6], [0.95, 0.8]])
    np.testing.assert_allclose(b.get_xydata(), [[0.8, 0.4], [0.95, 0.2]])
    for line in below.lines:
        np.testing.assert_allclose(line.get_xydata(), [[0.8, 10], [0.95, 5]])
    error = (10 * 0.2 + 5 * 0.15) / 15
    assert f"a: calibration error {error:.3f}" in drawn.texts


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
    vote_plots.uncertainty_maps(drawn.path, TITLE, below, left, corners)
    panels = drawn.figure.axes[:3]
    entropy = [([0, -2], np.log(3)), ([0, 2], 0)]
    difference = [([2, 0], np.log(2)), ([-2, 0], 0)]
    for panel, values in zip(panels, [entropy, difference, difference], strict=True):
        assert panel.get_xlim() == pytest.approx((-3, 3))
        for (x, y), value in values:
            picture = panel.images[0]
            row, column = ((np.array([y, x]) + 3) / 6 * vote_plots.PIXELS).astype(int)
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
    image_plots.certainty(drawn.path, TITLE, pixels, targets, samples, CIFAR)
    order = np.argsort(-shares)
    examples = [*order[:16], *order[::-1][:16]]
    assert len(drawn.figure.axes) == 32
    for panel, n in zip(drawn.figure.axes, examples, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), pixels[n])
        share = shares[n] + (1 - shares[n]) / 10
        assert panel.get_title() == f"{CIFAR[targets[n]]}\n✓ {share:.0%}"
