"""The pictures of single predictions: images, and the confusion of classes.

Each function writes the PNG at `path`. `images` are uint8 `(n, height, width, 3 or 1)`,
`targets` integer classes `(n,)` named `labels`, `probabilities` `(n, classes)`. `title`
names the run and the part of the data set.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kdrop.ensemble.uncertainty import summarise
from kdrop.training.plot_style import (
    CHARACTER,
    COLOURS,
    STYLE,
    Array,
    Names,
    set_ratio,
    wrap,
)  # fmt: skip

IMAGES = 32  # drawn at most
IMAGE_KEY = (
    "Above: predicted label and its probability. Below, where wrong: true label."
)


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
        mark, frame = ("✓", "0.6") if right else ("✗", COLOURS[1])
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
    set_ratio(figure, rows=1, ratio=1)
    figure.savefig(path)
