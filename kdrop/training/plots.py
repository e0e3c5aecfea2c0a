"""The pictures of runs: curves and decision regions, and the style of all pictures.

Each function writes the PNG at `path`; `targets` are integer classes `(n,)`, `labels`
their names. Figures are made without pyplot and in their own style, so that the
caller's matplotlib settings do not change. Runs and classes differ by marker as well as
by colour, training and validation by line style, so that the pictures can be read
without colour.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, PercentFormatter

Array = np.ndarray
Names = Sequence[str]
History = Mapping[str, Sequence[float]]

# Okabe and Ito's colours without black and yellow, then colours that differ from them.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]
COLOURS += ["#56B4E9", "#882255", "#999933", "#777777", "#6F4E28"]
MARKERS = "os^DvP<>Xp"
DASHED = (0, (3.5, 1.5))  # 3.5 line widths on, 1.5 off
STYLE: dict = {
    "font.size": 8,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "axes.formatter.useoffset": False,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.markerscale": 1.3,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}
CHARACTER = 0.065  # inches of one character of 8 points; figures have their print size
LINE_POINTS = 200  # longer curves are drawn as means over equal stretches
POINTS = 1000  # drawn at most
PIXELS = 300  # of a side of the map of regions


@matplotlib.rc_context(STYLE)
def curves(path: Path, histories: Mapping[str, History]) -> None:
    """Data loss and accuracy against the epoch, for training and validation.

    Args:
        histories: For each run its columns: `epoch`, `data_loss` (nats), `accuracy`
            (0 to 1), with a validation part `val_data_loss` and `val_accuracy`, and
            with a schedule `rate_` and the name of each layer, for a third panel.
    """
    rated = any(_rates(history) for history in histories.values())
    figure = Figure((7.2, 3.3))
    longest = max(len(history["epoch"]) for history in histories.values())
    stretch = -(-longest // LINE_POINTS)
    loss, accuracy, *rate_panels = figure.subplots(1, 2 + rated, sharex=True)
    for number, history in enumerate(histories.values()):
        for panel, column in (loss, "data_loss"), (accuracy, "accuracy"):
            for name in column, f"val_{column}":
                if name in history:
                    _curve(panel, history, name, number, stretch)
        for name in _rates(history):
            _curve(rate_panels[0], history, name, number, stretch)
    loss.set(title="Loss on the data", ylabel="Cross-entropy (nats)")
    accuracy.set(title="Accuracy", ylabel="Correct predictions")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    for panel in rate_panels:
        panel.set(title="Dropout rate", ylabel="Fraction dropped")
        panel.set_ylim(bottom=0)
    last = max(max(history["epoch"]) for history in histories.values())
    accuracy.set_xlim(-0.02 * last, 1.02 * last)
    for panel in loss, accuracy, *rate_panels:
        panel.set_xlabel("Epoch")
        panel.locator_params("x", nbins=5, integer=True, steps=[1, 2, 5, 10])
        panel.xaxis.set_major_formatter("{x:,.0f}")
        tidy(panel)
    low, high = loss.dataLim.intervaly
    if low > 0 and high > 20 * low:
        loss.set_yscale("log")
        log_ticks(loss.yaxis, high < 1000 * low)
    handles = [entry(name, **look(n)) for n, name in enumerate(histories)]
    handles.append(entry("training", color="k", linestyle=DASHED))
    if any("val_accuracy" in history for history in histories.values()):
        handles.append(entry("validation", color="k"))
    means = f"Lines: means over {stretch} epochs. Bands: the lowest to the highest."
    legend(figure, handles, means if stretch > 1 else "")
    figure.savefig(path)


def _rates(history: History) -> list[str]:
    """The columns of rates, one for layers whose rates are equal throughout."""
    columns = [name for name in history if name.startswith("rate_")]
    return list({tuple(history[name]): name for name in columns}.values())


def _curve(panel: Axes, history: History, name: str, number: int, stretch: int) -> None:
    style = look(number)
    epochs, values = (np.asarray(history[column], float) for column in ("epoch", name))
    starts = np.arange(0, len(values), stretch)
    if stretch > 1:
        sizes = np.diff(starts, append=len(values))
        low, high = (f.reduceat(values, starts) for f in (np.minimum, np.maximum))
        epochs, values = (np.add.reduceat(x, starts) / sizes for x in (epochs, values))
        band: dict = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        panel.fill_between(epochs, low, high, **band)
    if name in ("data_loss", "accuracy"):  # of training
        style |= {"linestyle": DASHED, "markerfacecolor": "white"}
    gap = max(1, len(starts) // 6)
    offset = number * gap // 5 % gap  # so that the markers of two runs do not coincide
    panel.plot(epochs, values, markevery=(offset, gap), **style)


@matplotlib.rc_context(STYLE)
def regions(
    path: Path,
    runs: Mapping[str, Callable[[Array], Array]],
    points: Array,
    targets: Array,
    labels: Names,
) -> None:
    """The predictions of each run over the plane, and test points on top.

    Args:
        runs: For each run its function from float32 points `(n, 2)` to probabilities
            `(n, classes)`.
        points: `(n, 2)`. All count for the accuracy; about 1,000 are drawn.
    """
    points, targets = np.asarray(points, np.float32), np.asarray(targets)
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    rows = -(-len(runs) // columns)
    side = (4.6, 3.5, 2.4)[columns - 1]
    figure = Figure((side * columns, side * rows + 2))
    pixels, extent = plane(points, 0.05, PIXELS)
    palette = np.array([to_rgb(colour) for colour in COLOURS])
    drawn = np.random.default_rng(0).permutation(len(points))[:POINTS]
    panel = None
    for n, (name, predict) in enumerate(runs.items()):
        panel = figure.add_subplot(rows, columns, n + 1, sharex=panel, sharey=panel)
        probabilities = np.nan_to_num(predict(pixels))  # a diverged run predicts NaN
        chance = 1 / probabilities.shape[1]
        confidence = probabilities.max(axis=1, keepdims=True)
        strength = ((confidence - chance) / (1 - chance)).clip(0, 1)
        tint = 1 - palette[probabilities.argmax(axis=1) % 10]
        shade = (1 - 0.45 * strength * tint).reshape(PIXELS, PIXELS, 3)
        panel.imshow(shade, extent=extent, origin="lower", aspect="auto")
        right = np.nan_to_num(predict(points)).argmax(axis=1) == targets
        for correct in True, False:
            for label in range(len(labels)):
                rows_of = (targets == label)[drawn] & (right == correct)[drawn]
                panel.plot(*points[drawn[rows_of]].T, **_point(label, correct))
        title = wrap(name, int((side - 0.4) / CHARACTER))
        panel.set_title(f"{title}\naccuracy {right.mean():.1%}")
        panel.locator_params(nbins=4, steps=[1, 2, 5, 10])
        below, left = n + columns >= len(runs), n % columns == 0
        panel.tick_params(labelbottom=below, labelleft=left)
        panel.set(xlabel="x" if below else "", ylabel="y" if left else "")
    handles = [entry(name, **_point(n)) for n, name in enumerate(labels)]
    wrong = _point(0, False) | {"color": "white"}
    key = f"Points: true class ({len(drawn):,} of {len(points):,} shown). "
    key += "Background: predicted class, paler where less certain."
    legend(figure, [*handles, entry("predicted wrong", **wrong)], key)
    left, right, bottom, top = extent
    set_ratio(figure, rows, (top - bottom) / (right - left))
    figure.savefig(path)


def plane(points: Array, margin: float, pixels: int) -> tuple[Array, tuple]:
    """The middles of the pixels of a map around points, and its extent for `imshow`.

    Args:
        margin: Beyond the points on each side, as a fraction of their width.
    """
    width = np.ptp(points, axis=0)
    low, high = points.min(axis=0) - margin * width, points.max(axis=0) + margin * width
    steps = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    return low + grid * (high - low), (low[0], high[0], low[1], high[1])


def _point(label: int, correct: bool = True) -> dict:
    size, edge, width = (2.8, "white", 0.25) if correct else (4, "black", 0.8)
    return look(label) | {"ls": "none", "ms": size, "mec": edge, "mew": width}


def look(number: int) -> dict:
    """Colour and marker of a run or class."""
    return {"color": COLOURS[number % 10], "marker": MARKERS[number % 10]}


def tidy(panel: Axes) -> None:
    """A pale grid, and no lines at the top and the right."""
    panel.grid(color="0.88", linewidth=0.4)
    panel.spines[["top", "right"]].set_visible(False)


def log_ticks(axis: Axis, dense: bool) -> None:
    """Label the powers of ten of a logarithmic axis; if dense, also 2 and 5 times."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,)))
    axis.set_minor_locator(LogLocator(subs=()))
    axis.set_major_formatter("{x:,g}")


def wrap(text: str, width: int, lines: int = 2) -> str:
    return textwrap.fill(text, width, max_lines=lines, placeholder="…")


def set_ratio(figure: Figure, rows: int, ratio: float) -> None:
    """Set the figure's height so that its panels are `ratio` times as high as wide."""
    # An equal aspect would shrink them after the layout, and titles would be cut.
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    growth = rows * (ratio * box.width - box.height) / figure.dpi
    figure.set_figheight(figure.get_figheight() + growth)


def entry(label: str, **style) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **style)


def legend(figure: Figure, handles: list[Line2D], title: str) -> None:
    """One legend below the axes, in as many columns as the names leave room for."""
    room = figure.get_figwidth() / CHARACTER
    names = [wrap(str(handle.get_label()), 40) for handle in handles]
    widths = [min(len(name), 40) + 7 for name in names]  # 7: its line and the gaps
    columns = len(names) if sum(widths) < room else max(1, int(room / max(widths)))
    legend = figure.legend(handles, names, loc="outside lower center", ncols=columns)
    legend.set_title(textwrap.fill(title, int(room)))
    legend.get_title().set_multialignment("center")
