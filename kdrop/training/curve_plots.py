"""The pictures of curves: training, calibration, and the number of samples.

Each function writes the PNG at `path`. `targets` are integer classes `(n,)`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from kdrop.ensemble.calibration import MEASURES, reliability
from kdrop.training.plot_style import (
    DASHED,
    STYLE,
    Array,
    entry,
    legend,
    log_ticks,
    look,
    tidy,
    wrap,
)  # fmt: skip

History = Mapping[str, Sequence[float]]

LINE_POINTS = 200  # longer curves are drawn as means over equal stretches


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
    log_ticks(below.yaxis, dense=False)
    for panel in above, below:
        tidy(panel)
        panel.xaxis.set_major_formatter(PercentFormatter(1))
    above.yaxis.set_major_formatter(PercentFormatter(1))
    legend(figure, handles, "Points: bins of equal width that are not empty.")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def sample_counts(
    path: Path, runs: Mapping[str, tuple[Array, Array] | None], targets: Array
) -> None:
    """Error and likelihood of the vote against the number of samples.

    Args:
        runs: For each run the probabilities of weight scaling, drawn as a level line,
            and its samples; `None` for a run that does not drop, so that the colours of
            the other runs are those of `curves`.

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
        log_ticks(panel.xaxis, dense=most < 200)
        tidy(panel)
    handles.append(entry("mean of the samples", color="k"))
    handles.append(entry("weight scaling", color="k", linestyle=DASHED))
    legend(figure, handles, "")
    figure.savefig(path)
