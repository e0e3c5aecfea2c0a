"""The pictures of runs: curves, decision regions, predictions, confusion, votes.

Each function writes the PNG at `path`; `targets` and `predicted` are integer classes
`(n,)`, `labels` their names. Figures are drawn without pyplot and in a style of their
own, so that nothing of the caller's matplotlib changes. Nothing is told by colour
alone: runs and classes have a marker too, training and validation a line style.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, PercentFormatter

from kdrop.ensemble import calibration
from kdrop.ensemble.uncertainty import Classification, summarise

Array = np.ndarray
Names = Sequence[str]
Histories = Mapping[str, Mapping[str, Sequence[float]]]
Runs = Mapping[str, Callable[[Array], Array]]

# Okabe and Ito's colours without black and yellow, then what sets off from them.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]
COLOURS += ["#56B4E9", "#882255", "#999933", "#777777", "#6F4E28"]
MARKERS = "os^DvP<>Xp"
TRAINING = (0, (3.5, 1.5))  # dashed: 3.5 line widths on, 1.5 off
STYLE: dict = {
    "font.size": 8,
    "figure.constrained_layout.w_pad": 0.08,
    "axes.formatter.useoffset": False,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.markerscale": 1.3,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}
CHARACTER = 0.065  # inches that one of 8 points takes; figures are drawn in print size
LINE_POINTS = 200  # longer curves are drawn as means over equal stretches
SHOWN_POINTS, SHOWN_IMAGES = 1000, 32
IMAGE_KEY = (
    "Above: predicted label and its probability. Below, where wrong: true label."
)
FAR_POINTS = 300  # shown where the plane reaches far beyond them
PIXELS, FAR_PIXELS = 300, 120  # a side of the maps of regions, and of uncertainty


@matplotlib.rc_context(STYLE)
def curves(path: Path, histories: Histories) -> None:
    """Draw data loss and accuracy against the epoch, for training and validation.

    Args:
        histories: For each run its columns: `epoch`, `data_loss` (nats), `accuracy`
            (0 to 1), with a validation part `val_data_loss` and `val_accuracy`, and
            with a schedule `rate_` and the name of each layer: drawn in a third panel.
    """
    rated = any(_rates(history) for history in histories.values())
    figure = Figure((7.2, 3.3), layout="constrained")
    longest = max(len(history["epoch"]) for history in histories.values())
    stretch = -(-longest // LINE_POINTS)
    loss, accuracy, *more = figure.subplots(1, 2 + rated, sharex=True)
    for number, history in enumerate(histories.values()):
        for panel, column in (loss, "data_loss"), (accuracy, "accuracy"):
            for name in column, f"val_{column}":
                if name in history:
                    _curve(panel, history, name, name == column, number, stretch)
        for name in _rates(history):
            _curve(more[0], history, name, False, number, stretch)
    loss.set(title="Loss on the data", xlabel="Epoch", ylabel="Cross-entropy (nats)")
    accuracy.set(title="Accuracy", xlabel="Epoch", ylabel="Correct predictions")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    for panel in more:
        panel.set(title="Dropout rate", xlabel="Epoch", ylabel="Fraction dropped")
        panel.set_ylim(bottom=0)
    last = max(max(history["epoch"]) for history in histories.values())
    accuracy.set_xlim(-0.02 * last, 1.02 * last)
    for panel in loss, accuracy, *more:
        panel.locator_params("x", nbins=5, integer=True, steps=[1, 2, 5, 10])
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.grid(color="0.88", linewidth=0.4)
        panel.spines[["top", "right"]].set_visible(False)
    low, high = loss.dataLim.intervaly
    if low > 0 and high > 20 * low:
        loss.set_yscale("log", subs=[])
        subs = (1, 2, 5) if high < 1000 * low else (1,)
        loss.yaxis.set_major_locator(LogLocator(subs=subs))
        loss.yaxis.set_major_formatter("{x:g}")
    handles = [
        Line2D([], [], label=name, color=COLOURS[n % 10], marker=MARKERS[n % 10])
        for n, name in enumerate(histories)
    ]
    handles.append(Line2D([], [], label="training", color="k", linestyle=TRAINING))
    if any("val_accuracy" in history for history in histories.values()):
        handles.append(Line2D([], [], label="validation", color="k"))
    means = f"Lines: means over {stretch} epochs. Bands: the lowest to the highest."
    legend(figure, handles, means if stretch > 1 else "")
    figure.savefig(path)


def _rates(history: Mapping[str, Sequence[float]]) -> list[str]:
    """The columns of rates, one for layers that share theirs."""
    found = {tuple(history[name]): name for name in history if name[:5] == "rate_"}
    return list(found.values())


def _curve(panel, history, name, training, number, stretch) -> None:
    colour = COLOURS[number % 10]
    epochs, values = (np.asarray(history[column], float) for column in ("epoch", name))
    starts = np.arange(0, len(values), stretch)
    if stretch > 1:
        sizes = np.diff(starts, append=len(values))
        low, high = (f.reduceat(values, starts) for f in (np.minimum, np.maximum))
        epochs, values = (np.add.reduceat(x, starts) / sizes for x in (epochs, values))
        panel.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    gap = max(1, len(starts) // 6)
    every = (number * gap // 5 % gap, gap)  # the markers of two runs do not coincide
    face, dashes = ("white", TRAINING) if training else (colour, "-")
    look = {"color": colour, "linestyle": dashes, "marker": MARKERS[number % 10]}
    panel.plot(epochs, values, markerfacecolor=face, markevery=every, **look)


@matplotlib.rc_context(STYLE)
def regions(
    path: Path, runs: Runs, points: Array, targets: Array, labels: Names
) -> None:
    """Draw what each run predicts over the plane, and the held-out points on top.

    Args:
        runs: For each run its function from float32 points `(n, 2)` to probabilities
            `(n, classes)`.
        points: `(n, 2)`. All count for the accuracy; about 1,000 are drawn.
    """
    points, targets = np.asarray(points, np.float32), np.asarray(targets)
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    rows = -(-len(runs) // columns)
    side = (4.6, 3.5, 2.4)[columns - 1]
    figure = Figure((side * columns, side * rows + 2), layout="constrained")
    margin = 0.05 * np.ptp(points, axis=0)
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    plane, extent = _plane(low, high, PIXELS)
    palette = np.array([to_rgb(colour) for colour in COLOURS])
    shown = np.random.default_rng(0).permutation(len(points))[:SHOWN_POINTS]
    panel = None
    for n, (name, predict) in enumerate(runs.items()):
        panel = figure.add_subplot(rows, columns, n + 1, sharex=panel, sharey=panel)
        found = np.nan_to_num(predict(plane))  # a diverged run predicts NaN
        chance = 1 / found.shape[1]
        strength = (found.max(axis=1, keepdims=True) - chance) / (1 - chance)
        tint = 1 - palette[found.argmax(axis=1) % 10]
        shade = (1 - 0.45 * strength.clip(0, 1) * tint).reshape(PIXELS, PIXELS, 3)
        panel.imshow(shade, extent=extent, origin="lower", aspect="auto")
        right = np.nan_to_num(predict(points)).argmax(axis=1) == targets
        for correct in True, False:
            for label in range(len(labels)):
                drawn = shown[(targets == label)[shown] & (right == correct)[shown]]
                panel.plot(*points[drawn].T, **_point(label, correct))
        title = wrap(name, int((side - 0.4) / CHARACTER))
        panel.set_title(f"{title}\naccuracy {right.mean():.1%}")
        panel.locator_params(nbins=4, steps=[1, 2, 5, 10])
        below, left = n + columns >= len(runs), n % columns == 0
        panel.tick_params(labelbottom=below, labelleft=left)
        panel.set(xlabel="x" if below else "", ylabel="y" if left else "")
    handles = [Line2D([], [], label=x, **_point(n)) for n, x in enumerate(labels)]
    wrong: dict = _point(0, False) | {"label": "predicted wrong", "color": "white"}
    key = f"Points: true class ({len(shown):,} of {len(points):,} shown). "
    key += "Background: predicted class, paler where less certain."
    legend(figure, [*handles, Line2D([], [], **wrong)], key)
    _shape(figure, rows, (high - low)[1] / (high - low)[0])
    figure.savefig(path)


def _plane(low: Array, high: Array, pixels: int) -> tuple[Array, tuple]:
    """The middles of the pixels, row by row, and the extent that `imshow` takes."""
    steps = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
    plane = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    return low + plane * (high - low), (low[0], high[0], low[1], high[1])


def _point(label: int, correct: bool = True) -> dict:
    size, edge, width = (2.8, "white", 0.25) if correct else (4, "black", 0.8)
    look = {"color": COLOURS[label % 10], "marker": MARKERS[label % 10], "ls": "none"}
    return look | {"ms": size, "mec": edge, "mew": width}


@matplotlib.rc_context(STYLE)
def predictions(
    path: Path,
    title: str,
    images: Array,
    targets: Array,
    probabilities: Array,
    labels: Names,
) -> None:
    """Draw the first 32 images with what was predicted, and the truth where it differs.

    Args:
        title: Which run, and which part of the data set.
        images: uint8 `(n, height, width, 3)` or `(n, height, width, 1)`.
        probabilities: `(n, classes)`.
    """
    predicted = np.argmax(probabilities, axis=1)
    right = predicted == np.asarray(targets)
    shown = min(len(right), SHOWN_IMAGES)
    columns, rows = min(shown, 8), -(-shown // 8)
    figure = Figure((max(0.9 * columns, 5.6), 1.4 * rows + 0.5), layout="constrained")
    for n in range(shown):
        panel = figure.add_subplot(rows, columns, n + 1, xticks=[], yticks=[])
        _image(panel, images[n], targets[n], probabilities[n], labels)
    part = f"Predicted right: {right[:shown].sum()} of the {shown} shown"
    score = f"{part}, {right.mean():.1%} of all {len(right):,}"
    figure.suptitle(f"{wrap(title, 80)}\n{score}\n{IMAGE_KEY}")
    figure.savefig(path)


def _image(panel, image, target, probabilities, labels) -> None:
    """An image, above it what was predicted, and below it the truth if it differs."""
    predicted = int(np.argmax(probabilities))
    right = predicted == target
    guess, truth = (wrap(labels[k], 14, 1) for k in (predicted, target))
    mark, frame = ("✓", "0.6") if right else ("✗", COLOURS[1])
    panel.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
    panel.set_title(f"{guess}\n{mark} {np.max(probabilities):.0%}", fontsize=8)
    panel.spines[:].set(color=frame, linewidth=0.6 if right else 2.5)
    panel.set_xlabel("" if right else truth)


@matplotlib.rc_context(STYLE)
def certainty(
    path: Path,
    title: str,
    images: Array,
    targets: Array,
    samples: Array,
    labels: Names,
) -> None:
    """Draw the images of which a vote is most certain, and those of which it is least.

    Args:
        title: Which run, and which part of the data set.
        images: uint8 `(n, height, width, 3)` or `(n, height, width, 1)`.
        samples: `(passes, n, classes)`. The order is that of the predictive entropy.
    """
    vote = _summary(samples)
    order = np.argsort(vote.entropy, kind="stable")
    shown = min(-(-len(order) // 2), SHOWN_IMAGES // 2)
    columns, rows = min(shown, 8), -(-shown // 8)
    width = max(0.9 * columns, 5.6)
    figure = Figure((width, 2.8 * rows + 1), layout="constrained")
    parts = {"Most certain": order[:shown], "Least certain": order[::-1][:shown]}
    halves = figure.subfigures(2, squeeze=False).flat
    for half, (name, chosen) in zip(halves, parts.items(), strict=True):
        low, high = (f(vote.entropy[chosen]) for f in (np.min, np.max))
        half.suptitle(f"{name}: entropy {low:.2g} to {high:.2g} nats")
        for place, n in enumerate(chosen, start=1):
            panel = half.add_subplot(rows, columns, place, xticks=[], yticks=[])
            _image(panel, images[n], targets[n], vote.mean[n], labels)
    vote_of = f"Vote of {len(samples):,} passes on {len(order):,} images"
    figure.suptitle(f"{wrap(title, 80)}\n{vote_of}\n{IMAGE_KEY}")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def confusion(
    path: Path, title: str, targets: Array, predicted: Array, labels: Names
) -> None:
    """Draw how often each true class was taken for which, in percent of the class."""
    classes = len(labels)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (targets, predicted), 1)
    examples = counts.sum(axis=1)
    percent = 100 * counts / np.maximum(examples, 1)[:, None]
    names = [wrap(label, 18) for label in labels]
    breadth = CHARACTER * max(len(line) for name in names for line in name.split("\n"))
    side = max(0.45 * classes, 2.2)
    figure = Figure((side + breadth + 1, side + breadth + 1), layout="constrained")
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
    _shape(figure, rows=1, ratio=1)
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def reliability(
    path: Path, title: str, forecasts: Mapping[str, Array], targets: Array
) -> None:
    """Draw how often those are right who are so sure, and how many they are.

    Args:
        title: Which run, and which part of the data set.
        forecasts: For each way to predict its probabilities `(n, classes)`.
    """
    figure = Figure((4.6, 5.4), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    diagonal: dict = {"color": "0.5", "linestyle": TRAINING}
    above.plot([0, 1], [0, 1], **diagonal)
    handles = []
    for n, (name, probabilities) in enumerate(forecasts.items()):
        confidence, accuracy, count = calibration.reliability(probabilities, targets)
        error = calibration.expected_calibration_error(probabilities, targets)
        filled, colour = count > 0, COLOURS[n % 10]
        look: dict = {"color": colour, "marker": MARKERS[n % 10]}
        above.plot(confidence[filled], accuracy[filled], **look)
        below.plot(confidence[filled], count[filled], **look)
        label = f"{name}: calibration error {error:.3f}"
        handles.append(Line2D([], [], label=label, **look))
    handles.append(Line2D([], [], label="perfect calibration", **diagonal))
    above.set_title(wrap(title, 60))
    above.set(ylabel="Correct predictions", ylim=(-0.03, 1.03), xlim=(-0.03, 1.03))
    below.set(xlabel="Confidence: probability of the class predicted")
    below.set(ylabel="Examples", yscale="log", ylim=(0.7, 2 * len(targets)))
    below.yaxis.set_major_locator(LogLocator(numticks=4))
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.yaxis.set_minor_locator(LogLocator(subs=()))
    for panel in above, below:
        panel.grid(color="0.88", linewidth=0.4)
        panel.spines[["top", "right"]].set_visible(False)
    above.yaxis.set_major_formatter(PercentFormatter(1))
    below.xaxis.set_major_formatter(PercentFormatter(1))
    legend(figure, handles, "Points: bins of equal width that are not empty.")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def passes(
    path: Path, runs: Mapping[str, tuple[Array, Array] | None], targets: Array
) -> None:
    """Draw error and likelihood of the vote against the number of passes that vote.

    Args:
        runs: For each run the probabilities of weight scaling `(n, classes)`, which are
            a level line, and its samples `(passes, n, classes)`; `None` for one that
            does not drop, so that the others look as in `curves`.

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    figure 11
    """
    figure = Figure((7.2, 3.3), layout="constrained")
    error, loss = figure.subplots(1, 2, sharex=True)
    handles, most = [], 1
    for number, (name, found) in enumerate(runs.items()):
        if found is None:
            continue
        scaled, samples = found
        most = max(most, len(samples))
        look: dict = {"color": COLOURS[number % 10], "marker": MARKERS[number % 10]}
        handles.append(Line2D([], [], label=name, **look))
        count = np.arange(1, len(samples) + 1)
        means = np.cumsum(samples, axis=0, dtype=float) / count[:, None, None]
        every = [n for n in (1, 2, 3, 5, 7, 10, 20, 30) if n < len(count)]
        marked = [n - 1 for n in (*every, len(count))]
        for panel, measure in (
            (error, _error),
            (loss, calibration.negative_log_likelihood),
        ):
            measured = [measure(mean, targets) for mean in means]
            panel.plot(count, measured, markevery=marked, **look)
            level, ends = measure(scaled, targets), [1, len(count)]
            panel.plot(ends, [level, level], mfc="white", linestyle=TRAINING, **look)
    error.set(
        title=f"Error on {len(targets):,} test examples", ylabel="Wrong predictions"
    )
    error.yaxis.set_major_formatter(PercentFormatter(1))
    loss.set(title="Negative log likelihood", ylabel="Nats")
    for panel in error, loss:
        panel.set(xlabel="Passes that vote", xscale="log")
        panel.xaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if most < 200 else (1,))
        )
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.xaxis.set_minor_locator(LogLocator(subs=()))
        panel.grid(color="0.88", linewidth=0.4)
        panel.spines[["top", "right"]].set_visible(False)
    handles.append(Line2D([], [], label="mean of the passes", color="k"))
    level = Line2D([], [], label="weight scaling", color="k", linestyle=TRAINING)
    handles.append(level)
    legend(figure, handles, "")
    figure.savefig(path)


def _error(probabilities: Array, targets: Array) -> float:
    return float(np.mean(probabilities.argmax(axis=1) != targets))


def _summary(samples: Array) -> Classification:
    found = summarise(samples)
    assert isinstance(found, Classification)
    return found


@matplotlib.rc_context(STYLE)
def uncertainty(
    path: Path,
    title: str,
    predict: Callable[[Array], Array],
    sample: Callable[[Array], Array],
    points: Array,
) -> None:
    """Draw how uncertain a run is over the plane, three times as wide as the points.

    Args:
        title: Which run, and which part of the data set.
        predict: From float32 points `(n, 2)` to probabilities `(n, classes)`.
        sample: From float32 points `(n, 2)` to samples `(passes, n, classes)`.
        points: `(n, 2)`. About 300 are drawn.
    """
    points = np.asarray(points, np.float32)
    width = np.ptp(points, axis=0)
    low, high = points.min(axis=0) - width, points.max(axis=0) + width
    plane, extent = _plane(low, high, FAR_PIXELS)
    alone, vote = _summary(predict(plane)[None]), _summary(sample(plane))
    maps = {
        "Weight scaling:\npredictive entropy": alone.entropy,
        "Vote:\npredictive entropy": vote.entropy,
        "Vote:\nmutual information": vote.mutual_information,
    }
    top = np.log(max(2, vote.mean.shape[1]))  # of the entropy
    shown = np.random.default_rng(0).permutation(len(points))[:FAR_POINTS]
    figure = Figure((7.2, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for n, (panel, (name, values)) in enumerate(zip(panels, maps.items(), strict=True)):
        most = top if n < 2 else max(values.max(), 1e-6)
        cells = panel.imshow(
            values.reshape(FAR_PIXELS, FAR_PIXELS), cmap="cividis", vmin=0, vmax=most,
            extent=extent, origin="lower", aspect="auto",
        )  # fmt: skip
        panel.plot(*points[shown].T, "o", color="white", ms=1.8, mec="black", mew=0.3)
        panel.set_title(name)
        panel.set(xlabel="x", ylabel="" if n else "y")
        panel.locator_params(nbins=5, steps=[1, 2, 5, 10])
        bar = figure.colorbar(cells, ax=panel, location="bottom", aspect=14)
        bar.set_label("Nats")
        bar.ax.locator_params(nbins=4)
    drawn = f"Points: {len(shown):,} of the {len(points):,} held out"
    figure.suptitle(f"{wrap(title, 80)}\n{drawn}")
    _shape(figure, 1, (high - low)[1] / (high - low)[0])
    figure.savefig(path)


def wrap(text: str, width: int, lines: int = 2) -> str:
    return textwrap.fill(text, width, max_lines=lines, placeholder="…")


def _shape(figure: Figure, rows: int, ratio: float) -> None:
    """Make the figure so high that its panels are `ratio` times as high as wide."""
    # An equal aspect would shrink them after the layout, and titles would be cut.
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    growth = rows * (ratio * box.width - box.height) / figure.dpi
    figure.set_figheight(figure.get_figheight() + growth)


def legend(figure: Figure, handles: list[Line2D], title: str) -> None:
    """One legend below the axes, in as many columns as its names leave room for."""
    room = figure.get_figwidth() / CHARACTER
    names = [wrap(str(handle.get_label()), 40) for handle in handles]
    widths = [min(len(name), 40) + 7 for name in names]  # a sample and its gaps: 7
    columns = len(names) if sum(widths) < room else max(1, int(room / max(widths)))
    legend = figure.legend(handles, names, loc="outside lower center", ncols=columns)
    legend.set_title(textwrap.fill(title, int(room)))
    legend.get_title().set_multialignment("center")
