"""The pictures of predictions: images, confusion, and what Monte Carlo samples say.

Arguments are those of `plots`. `images` are uint8 `(n, height, width, 3 or 1)`,
`probabilities` `(n, classes)`, `samples` probabilities `(samples, n, classes)`, and
`title` names the run and the part of the data set.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from kdrop.ensemble.calibration import MEASURES, reliability
from kdrop.ensemble.uncertainty import summarise
from kdrop.training import plots
from kdrop.training.plots import DASHED, STYLE, Array, Names, entry, look, wrap

IMAGES = 32  # drawn at most
IMAGE_KEY = (
    "Above: predicted label and its probability. Below, where wrong: true label."
)
POINTS = 300  # drawn at most: the plane reaches far beyond them
PIXELS = 120  # of a side of the maps


@matplotlib.rc_context(STYLE)
def predictions(
    path: Path,
    title: str,
    images: Array,
    targets: Array,
    probabilities: Array,
    labels: Names,
) -> None:
    """The first 32 images with their predictions, and the true class if it differs."""
    right = np.argmax(probabilities, axis=1) == np.asarray(targets)
    count = min(len(right), IMAGES)
    figure = Figure(_grid_size(count))
    _draw_images(figure, range(count), images, targets, probabilities, labels)
    part = f"Predicted right: {right[:count].sum()} of the {count} shown"
    score = f"{part}, {right.mean():.1%} of all {len(right):,}"
    figure.suptitle(f"{wrap(title, 80)}\n{score}\n{IMAGE_KEY}")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def certainty(
    path: Path,
    title: str,
    images: Array,
    targets: Array,
    samples: Array,
    labels: Names,
) -> None:
    """The images with the most and the least certain votes, by predictive entropy."""
    summary: Any = summarise(samples)
    order = np.argsort(summary.entropy, kind="stable")
    count = min(-(-len(order) // 2), IMAGES // 2)
    width, height = _grid_size(count)
    figure = Figure((width, 2 * height))
    groups = {"Most certain": order[:count], "Least certain": order[::-1][:count]}
    halves = figure.subfigures(2, squeeze=False).flat
    for half, (name, examples) in zip(halves, groups.items(), strict=True):
        low, high = (f(summary.entropy[examples]) for f in (np.min, np.max))
        half.suptitle(f"{name}: entropy {low:.2g} to {high:.2g} nats")
        _draw_images(half, examples, images, targets, summary.mean, labels)
    score = f"Vote of {len(samples):,} samples on {len(order):,} images"
    figure.suptitle(f"{wrap(title, 80)}\n{score}\n{IMAGE_KEY}")
    figure.savefig(path)


def _grid_size(count: int) -> tuple[float, float]:
    """Width and height of so many images in rows of eight, with a title."""
    return max(0.9 * min(count, 8), 5.6), 1.4 * -(-count // 8) + 0.5


def _draw_images(figure, examples, images, targets, probabilities, labels) -> None:
    """Images, each with its prediction above, and below its class if that differs."""
    columns, rows = min(len(examples), 8), -(-len(examples) // 8)
    for number, n in enumerate(examples, start=1):
        panel = figure.add_subplot(rows, columns, number, xticks=[], yticks=[])
        predicted = int(np.argmax(probabilities[n]))
        right = predicted == targets[n]
        guess, truth = (wrap(labels[k], 14, 1) for k in (predicted, targets[n]))
        mark, frame = ("✓", "0.6") if right else ("✗", plots.COLOURS[1])
        panel.imshow(np.squeeze(images[n]), cmap="gray", vmin=0, vmax=255)
        panel.set_title(f"{guess}\n{mark} {np.max(probabilities[n]):.0%}", fontsize=8)
        panel.spines[:].set(color=frame, linewidth=0.6 if right else 2.5)
        panel.set_xlabel("" if right else truth)


@matplotlib.rc_context(STYLE)
def confusion(
    path: Path, title: str, targets: Array, predicted: Array, labels: Names
) -> None:
    """How often each true class is predicted as which, in percent of the class."""
    classes = len(labels)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (targets, predicted), 1)
    examples = counts.sum(axis=1)
    percent = 100 * counts / np.maximum(examples, 1)[:, None]
    names = [wrap(label, 18) for label in labels]
    longest = max(len(line) for name in names for line in name.split("\n"))
    breadth = plots.CHARACTER * longest
    side = max(0.45 * classes, 2.2)
    figure = Figure((side + breadth + 1, side + breadth + 1))
    panel = figure.add_subplot()
    cells = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(counts):
        share = percent[row, column]
        # WCAG's luminance: below 0.18, white has the higher contrast.
        luminance = np.power(cells.to_rgba(share)[:3], 2.2) @ [0.2126, 0.7152, 0.0722]
        colour = "white" if luminance < 0.18 else "black"
        text = f"{share:.0f}" if share >= 0.5 else "<1"
        panel.text(column, row, text, color=colour, ha="center", va="center")
    upright = breadth > 0.9 * side / classes
    panel.set_xticks(range(classes), names, rotation=90 if upright else 0)
    sizes = [f"{name} ({n:,})" for name, n in zip(names, examples, strict=True)]
    panel.set_yticks(range(classes), sizes)
    panel.set(xlabel="Predicted class", ylabel="True class (number of examples)")
    correct, total = np.trace(counts), counts.sum()
    score = f"Accuracy {correct / total:.1%} ({correct:,} of {total:,})"
    title = wrap(title, int((side + breadth) / plots.CHARACTER))
    panel.set_title(f"{title}\n{score}\nCells: percent of the true class")
    plots.set_ratio(figure, rows=1, ratio=1)
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def calibration(
    path: Path, title: str, forecasts: Mapping[str, Array], targets: Array
) -> None:
    """Reliability diagram: accuracy and number of examples for each confidence bin.

    Args:
        forecasts: The probabilities of each kind of prediction.
    """
    figure = Figure((4.6, 5.4))
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    diagonal: dict = {"color": "0.5", "linestyle": DASHED}
    above.plot([0, 1], [0, 1], **diagonal)
    handles = []
    for n, (name, probabilities) in enumerate(forecasts.items()):
        bins = reliability(probabilities, targets)
        filled = bins.count > 0
        confidence = bins.confidence[filled]
        above.plot(confidence, bins.accuracy[filled], **look(n))
        below.plot(confidence, bins.count[filled], **look(n))
        error = MEASURES["expected_calibration_error"](probabilities, targets)
        handles.append(entry(f"{name}: calibration error {error:.3f}", **look(n)))
    handles.append(entry("perfect calibration", **diagonal))
    above.set_title(wrap(title, 60))
    above.set(ylabel="Correct predictions", ylim=(-0.03, 1.03), xlim=(-0.03, 1.03))
    below.set(xlabel="Confidence: probability of the predicted class")
    below.set(ylabel="Examples", yscale="log", ylim=(0.7, 2 * len(targets)))
    plots.log_ticks(below.yaxis, dense=False)
    for panel in above, below:
        plots.tidy(panel)
        panel.xaxis.set_major_formatter(PercentFormatter(1))
    above.yaxis.set_major_formatter(PercentFormatter(1))
    plots.legend(figure, handles, "Points: bins of equal width that are not empty.")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def sample_counts(
    path: Path, runs: Mapping[str, tuple[Array, Array] | None], targets: Array
) -> None:
    """Error and likelihood of the vote against the number of samples.

    Args:
        runs: For each run the probabilities of weight scaling, drawn as a level line,
            and its samples; `None` for a run that does not drop, so that the colours of
            the other runs are those of `plots.curves`.

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    figure 11
    """
    figure = Figure((7.2, 3.3))
    error, loss = figure.subplots(1, 2, sharex=True)
    measures: dict = {
        error: lambda *pair: 1 - MEASURES["accuracy"](*pair),
        loss: MEASURES["negative_log_likelihood"],
    }
    handles, most = [], 1
    for number, (name, vote) in enumerate(runs.items()):
        if vote is None:
            continue
        scaled, samples = vote
        most = max(most, len(samples))
        style = look(number)
        handles.append(entry(name, **style))
        count = np.arange(1, len(samples) + 1)
        means = np.cumsum(samples, axis=0, dtype=float) / count[:, None, None]
        few = [n for n in (1, 2, 3, 5, 7, 10, 20, 30) if n < len(count)]
        marked = [n - 1 for n in (*few, len(count))]
        for panel, measure in measures.items():
            values = [measure(mean, targets) for mean in means]
            panel.plot(count, values, markevery=marked, **style)
            level = [measure(scaled, targets)] * 2
            dashed = style | {"linestyle": DASHED, "markerfacecolor": "white"}
            panel.plot([1, len(count)], level, **dashed)
    error.set(title=f"Error on {len(targets):,} test examples")
    error.set_ylabel("Wrong predictions")
    error.yaxis.set_major_formatter(PercentFormatter(1))
    loss.set(title="Negative log likelihood", ylabel="Nats")
    for panel in measures:
        panel.set(xlabel="Monte Carlo samples", xscale="log")
        plots.log_ticks(panel.xaxis, dense=most < 200)
        plots.tidy(panel)
    handles.append(entry("mean of the samples", color="k"))
    handles.append(entry("weight scaling", color="k", linestyle=DASHED))
    plots.legend(figure, handles, "")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def uncertainty_maps(
    path: Path,
    title: str,
    predict: Callable[[Array], Array],
    sample: Callable[[Array], Array],
    points: Array,
) -> None:
    """The uncertainty of a run over a plane three times as wide as the points.

    Args:
        predict: From float32 points `(n, 2)` to probabilities.
        sample: From float32 points `(n, 2)` to samples.
        points: `(n, 2)`. About 300 are drawn.
    """
    points = np.asarray(points, np.float32)
    pixels, extent = plots.plane(points, 1, PIXELS)
    scaled: Any = summarise(predict(pixels)[None])
    vote: Any = summarise(sample(pixels))
    top = np.log(max(2, vote.mean.shape[1]))  # of the entropy
    maps = {
        "Weight scaling:\npredictive entropy": (scaled.entropy, top),
        "Vote:\npredictive entropy": (vote.entropy, top),
        "Vote:\nmutual information": (
            vote.mutual_information,
            max(vote.mutual_information.max(), 1e-6),
        ),
    }
    drawn = points[np.random.default_rng(0).permutation(len(points))[:POINTS]]
    figure = Figure((7.2, 4))
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for panel, (name, (values, most)) in zip(panels, maps.items(), strict=True):
        values = values.reshape(PIXELS, PIXELS)
        place: dict = {"extent": extent, "origin": "lower", "aspect": "auto"}
        cells = panel.imshow(values, cmap="cividis", vmin=0, vmax=most, **place)
        panel.plot(*drawn.T, "o", color="white", ms=1.8, mec="black", mew=0.3)
        panel.set(title=name, xlabel="x")
        panel.locator_params(nbins=5, steps=[1, 2, 5, 10])
        bar = figure.colorbar(cells, ax=panel, location="bottom", aspect=14)
        bar.set_label("Nats")
        bar.ax.locator_params(nbins=4)
    panels[0].set_ylabel("y")
    key = f"Points: {len(drawn):,} of the {len(points):,} test examples"
    figure.suptitle(f"{wrap(title, 80)}\n{key}")
    left, right, bottom, top = extent
    plots.set_ratio(figure, 1, (top - bottom) / (right - left))
    figure.savefig(path)
