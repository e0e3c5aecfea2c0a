"""All pictures: their text can be read in print."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from pictures import (
    ARMS,
    CIFAR,
    LONG,
    RUNS,
    TITLE,
    disc,
    forecast,
    history,
    images,
    sample,
    sectors,
)

from kdrop.training import curve_plots, prediction_plots
from kdrop.training.curve_plots import calibration, sample_counts
from kdrop.training.prediction_plots import (
    certainty,
    confusion,
    predictions,
    uncertainty_maps,
)


def draw_curves(path, runs, epochs, **settings):
    curve_plots.curves(
        path, {r: history(epochs, n, **settings) for n, r in enumerate(runs)}
    )


def draw_regions(path, runs, labels):
    points = disc(1500)
    targets = np.arange(1500) % len(labels)
    prediction_plots.regions(
        path, dict.fromkeys(runs, sectors(len(labels))), points, targets, labels
    )


def draw_predictions(path, count, channels, labels):
    predictions(path, TITLE, *images(count, channels, len(labels)), labels)


def draw_confusion(path, labels, count=20_000):
    pairs = np.random.default_rng(3).integers(0, len(labels), (2, count))
    confusion(path, TITLE, pairs[0], np.where(pairs[0] < 2, *pairs), labels)


def draw_sample_counts(path, runs, count=400, samples=50):
    scaled, values, targets = forecast(count, samples)
    votes = {x: (scaled, np.roll(values, n, axis=0)) for n, x in enumerate(runs)}
    sample_counts(path, votes, targets)


def draw_calibration(path, title, count=3000):
    scaled, samples, targets = forecast(count)
    forecasts = {"weight scaling": scaled, "vote": samples.mean(axis=0)}
    calibration(path, title, forecasts, targets)


def draw_uncertainty(path, title, scale=(1, 1)):
    points = disc(1500) * np.float32(scale)
    uncertainty_maps(path, title, lambda x: sample(x)[0], sample, points)


def draw_certainty(path, count, channels, labels):
    pixels, targets, _ = images(count, channels, len(labels))
    samples = forecast(count, 5, len(labels))[1]
    certainty(path, TITLE, pixels, targets, samples, labels)


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


# Each kind of picture at its most crowded; the others are variants.
CROWDED = {"rates", "six decades", "regions of four", "long labels", "samples"}
CROWDED |= {"confused long labels", "reliability of a few", "uncertainty"}
CROWDED |= {"certainty of long labels"}
VARIANTS = [pytest.param(x, marks=pytest.mark.slow) for x in CASES if x not in CROWDED]


@pytest.mark.parametrize("case", sorted(CROWDED) + VARIANTS)
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
