"""The pictures of curves: training, calibration, and the number of samples.

Each function writes the PNG at `path`. `targets` are integer classes `(n,)`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kdrop.ensemble.calibration import MEASURES, reliability
from kdrop.training import plot_style
from kdrop.training.plot_style import DASHED, STYLE, Array, entry, look

History = Mapping[str, Sequence[float]]


@matplotlib.rc_context(STYLE)
def curves(path: Path, histories: Mapping[str, History]) -> None:
    """Data loss and accuracy against the epoch, for training and validation.

    `histories` has the columns of each run: `epoch`, `data_loss` (nats), `accuracy` (0
    to 1), with a validation part `val_data_loss` and `val_accuracy`, and with a
    schedule `rate_` and the name of each layer, for a third panel.
    """
    rated = any(_rates(history) for history in histories.values())
    figure = Figure((7.2, 3.3))
    panels = loss, accuracy, *_ = figure.subplots(1, 2 + rated, sharex=True)
    columns = ["data_loss", "val_data_loss"], ["accuracy", "val_accuracy"]
    for number, history in enumerate(histories.values()):
        epochs = history["epoch"]
        gap = max(1, len(epochs) // 6)
        first = (number * gap // 5) % gap  # marks of two runs do not coincide
        plotted = [*columns, _rates(history)][: len(panels)]
        for panel, names in zip(panels, plotted, strict=True):
            for name in names:
                if name in history:
                    style = look(number, dashed=name in ("data_loss", "accuracy"))
                    panel.plot(epochs, history[name], markevery=(first, gap), **style)
    loss.set(title="Loss on the data", ylabel="Cross-entropy (nats)")
    accuracy.set(title="Accuracy", ylabel="Correct predictions")
    plot_style.percent(accuracy.yaxis)
    for panel in panels[2:]:
        panel.set(title="Dropout rate", ylabel="Fraction dropped")
        panel.set_ylim(bottom=0)
    last = max(max(history["epoch"]) for history in histories.values())
    accuracy.set_xlim(-0.02 * last, 1.02 * last)
    for panel in panels:
        panel.set_xlabel("Epoch")
        panel.locator_params("x", nbins=5, integer=True, steps=[1, 2, 5, 10])
        panel.xaxis.set_major_formatter("{x:,.0f}")
        plot_style.tidy(panel)
    low, high = loss.dataLim.intervaly
    if low > 0 and high > 20 * low:
        loss.set_yscale("log")
        plot_style.log_ticks(loss.yaxis, high < 1000 * low)
    handles = [entry(name, **look(n)) for n, name in enumerate(histories)]
    handles.append(entry("training", color="k", linestyle=DASHED))
    if any("val_accuracy" in history for history in histories.values()):
        handles.append(entry("validation", color="k"))
    plot_style.legend(figure, handles)
    figure.savefig(path)


def _rates(history: History) -> list[str]:
    """The columns of rates, one for layers whose rates are equal throughout."""
    columns = [name for name in history if name.startswith("rate_")]
    return list({tuple(history[name]): name for name in columns}.values())


@matplotlib.rc_context(STYLE)
def calibration(
    path: Path, title: str, forecasts: Mapping[str, Array], targets: Array
) -> None:
    """Reliability diagram: accuracy and number of examples for each confidence bin.

    `forecasts` has the probabilities of each kind of prediction.
    """
    figure = Figure((4.6, 5.4))
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    diagonal: dict = {"color": "0.5", "linestyle": DASHED}
    above.plot([0, 1], [0, 1], **diagonal)
    handles = []
    for n, (name, probabilities) in enumerate(forecasts.items()):
        bins = reliability(probabilities, targets)
        filled = bins.count > 0
        for panel, heights in (above, bins.accuracy), (below, bins.count):
            panel.plot(bins.confidence[filled], heights[filled], **look(n))
        error = MEASURES["expected_calibration_error"](probabilities, targets)
        handles.append(entry(f"{name}: calibration error {error:.3f}", **look(n)))
    handles.append(entry("perfect calibration", **diagonal))
    above.set_title(plot_style.wrap(title, 60))
    above.set(ylabel="Correct predictions", ylim=(-0.03, 1.03), xlim=(-0.03, 1.03))
    below.set(xlabel="Confidence: probability of the predicted class")
    below.set(ylabel="Examples", yscale="log", ylim=(0.7, 2 * len(targets)))
    plot_style.log_ticks(below.yaxis, dense=False)
    for panel in above, below:
        plot_style.tidy(panel)
        plot_style.percent(panel.xaxis)
    plot_style.percent(above.yaxis)
    key = "Points: bins of equal width that are not empty."
    plot_style.legend(figure, handles, key)
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def sample_counts(
    path: Path, runs: Mapping[str, tuple[Array, Array] | None], targets: Array
) -> None:
    """Error and likelihood of the vote against the number of samples.

    `runs` has for each run the probabilities of weight scaling, drawn as a level line,
    and its samples; `None` for a run that does not drop, so that the colours of the
    other runs are those of `curves`.

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
        handles.append(entry(name, **look(number)))
        count = np.arange(1, len(samples) + 1)
        means = np.cumsum(samples, axis=0, dtype=float) / count[:, None, None]
        few = [n for n in (1, 2, 3, 5, 7, 10, 20, 30) if n < len(count)]
        marked = [n - 1 for n in (*few, len(count))]
        for panel, measure in measures.items():
            values = [measure(mean, targets) for mean in means]
            panel.plot(count, values, markevery=marked, **look(number))
            level = [measure(scaled, targets)] * 2
            panel.plot([1, len(count)], level, **look(number, dashed=True))
    error.set(title=f"Error on {len(targets):,} test examples")
    error.set_ylabel("Wrong predictions")
    plot_style.percent(error.yaxis)
    loss.set(title="Negative log likelihood", ylabel="Nats")
    for panel in measures:
        panel.set(xlabel="Monte Carlo samples", xscale="log")
        plot_style.log_ticks(panel.xaxis, dense=most < 200)
        plot_style.tidy(panel)
    handles.append(entry("mean of the samples", color="k"))
    handles.append(entry("weight scaling", color="k", linestyle=DASHED))
    plot_style.legend(figure, handles)
    figure.savefig(path)
