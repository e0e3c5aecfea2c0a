"""The pictures of predictions: images, confusion, decision regions, uncertainty.

Each function writes the PNG at `path`. `images` are uint8 `(n, height, width, 3 or 1)`,
`points` `(n, 2)`, `targets` integer classes `(n,)` named `labels`, `probabilities`
`(n, classes)`. `predict` maps float32 points to probabilities. `title` names the run
and the part of the data set. Colours and markers are those of `plot_style`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kdrop.ensemble.calibration import expected_calibration_error
from kdrop.ensemble.uncertainty import are_probabilities, summarise
from kdrop.training import plot_style
from kdrop.training.plot_style import CHARACTER, COLOURS, STYLE, Array, Names, wrap

IMAGES = 32  # drawn at most
IMAGE_KEY = "Above: prediction and its probability. Below, where wrong: true label."
POINTS, FAR_POINTS = 1000, 300  # drawn at most; far: where the map reaches far beyond
PIXELS, FAR_PIXELS = 300, 120  # of a side of the map


@matplotlib.rc_context(STYLE)
def predictions(
    path: Path, title: str, images: Array, targets: Array, probabilities: Array,
    labels: Names,
) -> None:  # fmt: skip
    """The first 32 images with their predictions, and the true class if it differs."""
    right = np.argmax(probabilities, axis=1) == np.asarray(targets)
    count = min(len(right), IMAGES)
    score = f"Predicted right: {right[:count].sum()} of the {count} shown"
    score += f", {right.mean():.1%} of all {len(right):,}"
    groups = {"": range(count)}
    _draw_images(path, title, score, groups, images, targets, probabilities, labels)


@matplotlib.rc_context(STYLE)
def certainty(
    path: Path, title: str, images: Array, targets: Array, samples: Array,
    labels: Names,
) -> None:  # fmt: skip
    """The images with the most and the least certain votes, by predictive entropy."""
    summary: Any = summarise(samples)
    order = np.argsort(summary.entropy, kind="stable")
    count = min(-(-len(order) // 2), IMAGES // 2)
    groups = {}
    ends = {"Most certain": order[:count], "Least certain": order[::-1][:count]}
    for name, examples in ends.items():
        low, high = (f(summary.entropy[examples]) for f in (np.min, np.max))
        groups[f"{name}: entropy {low:.2g} to {high:.2g} nats"] = examples
    score = f"Vote of {len(samples):,} samples on {len(order):,} images"
    _draw_images(path, title, score, groups, images, targets, summary.mean, labels)


def _draw_images(path, title, score, groups, images, targets, probabilities, labels):
    """Images in groups, the prediction above, and below the class if it differs."""
    count = max(map(len, groups.values()))
    columns, rows = min(count, 8), -(-count // 8)
    figure = Figure((max(0.9 * columns, 5.6), len(groups) * (1.4 * rows + 0.5)))
    parts = figure.subfigures(len(groups), squeeze=False).flat
    for part, (name, examples) in zip(parts, groups.items(), strict=True):
        if name:
            part.suptitle(name)
        for number, n in enumerate(examples, start=1):
            panel = part.add_subplot(rows, columns, number, xticks=[], yticks=[])
            predicted = int(np.argmax(probabilities[n]))
            guess, truth = (wrap(labels[k], 14, 1) for k in (predicted, targets[n]))
            right = predicted == targets[n]
            mark, frame = ("✓", "0.6") if right else ("✗", COLOURS[1])
            panel.imshow(np.squeeze(images[n]), cmap="gray", vmin=0, vmax=255)
            share = f"{mark} {np.max(probabilities[n]):.0%}"
            panel.set_title(f"{guess}\n{share}", fontsize=8)
            panel.spines[:].set(color=frame, linewidth=0.6 if right else 2.5)
            panel.set_xlabel("" if right else truth)
    figure.suptitle(f"{wrap(title, 80)}\n{score}\n{IMAGE_KEY}")
    figure.savefig(path)


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
    breadth = CHARACTER * longest
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
    title = wrap(title, int((side + breadth) / CHARACTER))
    panel.set_title(f"{title}\n{score}\nCells: percent of the true class")
    plot_style.set_ratio(figure, rows=1, ratio=1)
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def regions(
    path: Path, runs: Mapping[str, Callable[[Array], Array]], points: Array,
    targets: Array, labels: Names,
) -> None:  # fmt: skip
    """What `predict` of each run says over the plane, and test points on top.

    All points count for the accuracy; about 1,000 are drawn.
    """
    points, targets = np.asarray(points, np.float32), np.asarray(targets)
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    rows = -(-len(runs) // columns)
    side = (4.6, 3.5, 2.4)[columns - 1]
    figure = Figure((side * columns, side * rows + 2))
    pixels, place, ratio = _plane(points, 0.05, PIXELS)
    palette = np.array([to_rgb(colour) for colour in COLOURS])
    drawn = _some(points, POINTS)
    panel = None
    for n, (name, predict) in enumerate(runs.items()):
        panel = figure.add_subplot(rows, columns, n + 1, sharex=panel, sharey=panel)
        probabilities = np.nan_to_num(predict(pixels))  # a diverged run predicts NaN
        chance = 1 / probabilities.shape[1]
        confidence = probabilities.max(axis=1, keepdims=True)
        strength = ((confidence - chance) / (1 - chance)).clip(0, 1)
        tint = 1 - palette[probabilities.argmax(axis=1) % 10]
        shade = (1 - 0.45 * strength * tint).reshape(PIXELS, PIXELS, 3)
        panel.imshow(shade, **place)
        of_points = np.nan_to_num(predict(points))
        right = of_points.argmax(axis=1) == targets
        for correct in True, False:
            for label in range(len(labels)):
                rows_of = (targets == label)[drawn] & (right == correct)[drawn]
                panel.plot(*points[drawn[rows_of]].T, **_point(label, correct))
        title = wrap(name, int((side - 0.4) / CHARACTER))
        title += f"\naccuracy {right.mean():.1%}"
        if are_probabilities(of_points):
            error = expected_calibration_error(of_points, targets)
            title += f"\ncalibration error {error:.1%}"
        panel.set_title(title)
        panel.locator_params(nbins=4, steps=[1, 2, 5, 10])
        below, left = n + columns >= len(runs), n % columns == 0
        panel.tick_params(labelbottom=below, labelleft=left)
        panel.set(xlabel="x" if below else "", ylabel="y" if left else "")
    handles = [plot_style.entry(name, **_point(n)) for n, name in enumerate(labels)]
    wrong = _point(0, False) | {"color": "white"}
    handles.append(plot_style.entry("predicted wrong", **wrong))
    key = f"Points: true class ({len(drawn):,} of {len(points):,} shown). "
    key += "Background: predicted class, paler where less certain."
    plot_style.legend(figure, handles, key)
    plot_style.set_ratio(figure, rows, ratio)
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def uncertainty_maps(
    path: Path, title: str, predict: Callable[[Array], Array],
    sample: Callable[[Array], Array], points: Array,
) -> None:  # fmt: skip
    """The uncertainty of a run over a plane three times as wide as the points.

    `sample` is a function from float32 points to samples. About 300 points are drawn.
    """
    points = np.asarray(points, np.float32)
    pixels, place, ratio = _plane(points, 1, FAR_PIXELS)
    scaled: Any = summarise(predict(pixels)[None])
    vote: Any = summarise(sample(pixels))
    top = np.log(max(2, vote.mean.shape[1]))  # of the entropy
    information = vote.mutual_information
    maps = {
        "Weight scaling:\npredictive entropy": (scaled.entropy, top),
        "Vote:\npredictive entropy": (vote.entropy, top),
        "Vote:\nmutual information": (information, max(information.max(), 1e-6)),
    }
    drawn = _some(points, FAR_POINTS)
    figure = Figure((7.2, 4))
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for panel, (name, (values, most)) in zip(panels, maps.items(), strict=True):
        values = values.reshape(FAR_PIXELS, FAR_PIXELS)
        cells = panel.imshow(values, cmap="cividis", vmin=0, vmax=most, **place)
        panel.plot(*points[drawn].T, "wo", ms=1.8, mec="black", mew=0.3)
        panel.set(title=name, xlabel="x")
        panel.locator_params(nbins=5, steps=[1, 2, 5, 10])
        bar = figure.colorbar(cells, ax=panel, location="bottom", aspect=14)
        bar.set_label("Nats")
        bar.ax.locator_params(nbins=4)
    panels[0].set_ylabel("y")
    key = f"Points: {len(drawn):,} of the {len(points):,} test examples"
    figure.suptitle(f"{wrap(title, 80)}\n{key}")
    plot_style.set_ratio(figure, 1, ratio)
    figure.savefig(path)


def _some(points: Array, count: int) -> Array:
    """The indices of so many points, the same ones in each picture."""
    return np.random.default_rng(0).permutation(len(points))[:count]


def _plane(points: Array, margin: float, pixels: int) -> tuple[Array, dict, float]:
    """The middles of a map's pixels, its place for `imshow`, its height over width.

    The map reaches beyond the points on each side by `margin` times their width.
    """
    border = margin * np.ptp(points, axis=0)
    low, high = points.min(axis=0) - border, points.max(axis=0) + border
    steps = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    extent = low[0], high[0], low[1], high[1]
    place = {"extent": extent, "origin": "lower", "aspect": "auto"}
    width, height = high - low
    return low + grid * (high - low), place, height / width


def _point(label: int, correct: bool = True) -> dict:
    size, edge, width = (2.8, "white", 0.25) if correct else (4, "black", 0.8)
    style = {"ls": "none", "ms": size, "mec": edge, "mew": width}
    return plot_style.look(label) | style
