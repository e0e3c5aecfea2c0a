"""The pictures of a vote of Monte Carlo samples: calibration, error, uncertainty.

Arguments are those of `plots`; `samples` are probabilities `(samples, n, classes)`, and
`title` names the run and the part of the data set.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, PercentFormatter

from kdrop.ensemble.calibration import MEASURES, reliability
from kdrop.ensemble.uncertainty import summarise
from kdrop.training import plots
from kdrop.training.plots import STYLE, Array, wrap

POINTS = 300  # drawn at most: the plane reaches far beyond them
PIXELS = 120  # of a side of the maps


@matplotlib.rc_context(STYLE)
def calibration(
    path: Path, title: str, forecasts: Mapping[str, Array], targets: Array
) -> None:
    """Reliability diagram: accuracy and number of examples for each confidence bin.

    Args:
        forecasts: The probabilities `(n, classes)` of each way to predict.
    """
    figure = Figure((4.6, 5.4), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    diagonal: dict = {"color": "0.5", "linestyle": plots.DASHED}
    above.plot([0, 1], [0, 1], **diagonal)
    handles = []
    for n, (name, probabilities) in enumerate(forecasts.items()):
        bins = reliability(probabilities, targets)
        filled = bins.count > 0
        confidence = bins.confidence[filled]
        above.plot(confidence, bins.accuracy[filled], **plots.look(n))
        below.plot(confidence, bins.count[filled], **plots.look(n))
        error = MEASURES["expected_calibration_error"](probabilities, targets)
        label = f"{name}: calibration error {error:.3f}"
        handles.append(Line2D([], [], label=label, **plots.look(n)))
    handles.append(Line2D([], [], label="perfect calibration", **diagonal))
    above.set_title(wrap(title, 60))
    above.set(ylabel="Correct predictions", ylim=(-0.03, 1.03), xlim=(-0.03, 1.03))
    below.set(xlabel="Confidence: probability of the predicted class")
    below.set(ylabel="Examples", yscale="log", ylim=(0.7, 2 * len(targets)))
    below.yaxis.set_major_locator(LogLocator(numticks=4))
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.yaxis.set_minor_locator(LogLocator(subs=()))
    plots.tidy(above)
    plots.tidy(below)
    above.yaxis.set_major_formatter(PercentFormatter(1))
    below.xaxis.set_major_formatter(PercentFormatter(1))
    plots.legend(figure, handles, "Points: bins of equal width that are not empty.")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def sample_counts(
    path: Path, runs: Mapping[str, tuple[Array, Array] | None], targets: Array
) -> None:
    """Error and likelihood of the vote against the number of samples.

    Args:
        runs: For each run the probabilities of weight scaling `(n, classes)`, drawn as
            a level line, and its samples; `None` for a run that does not drop, so that
            the colours of the other runs are those of `plots.curves`.

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    figure 11
    """
    figure = Figure((7.2, 3.3), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    likelihood = MEASURES["negative_log_likelihood"]
    measures = (lambda *pair: 1 - MEASURES["accuracy"](*pair)), likelihood
    handles, most = [], 1
    for number, (name, vote) in enumerate(runs.items()):
        if vote is None:
            continue
        scaled, samples = vote
        most = max(most, len(samples))
        handles.append(Line2D([], [], label=name, **plots.look(number)))
        count = np.arange(1, len(samples) + 1)
        means = np.cumsum(samples, axis=0, dtype=float) / count[:, None, None]
        few = [n for n in (1, 2, 3, 5, 7, 10, 20, 30) if n < len(count)]
        marked = [n - 1 for n in (*few, len(count))]
        for panel, measure in zip(panels, measures, strict=True):
            values = [measure(mean, targets) for mean in means]
            panel.plot(count, values, markevery=marked, **plots.look(number))
            level = [measure(scaled, targets)] * 2
            ends = [1, len(count)]
            panel.plot(
                ends, level, mfc="white", linestyle=plots.DASHED, **plots.look(number)
            )
    error, loss = panels
    error.set(title=f"Error on {len(targets):,} test examples")
    error.set_ylabel("Wrong predictions")
    error.yaxis.set_major_formatter(PercentFormatter(1))
    loss.set(title="Negative log likelihood", ylabel="Nats")
    for panel in panels:
        panel.set(xlabel="Monte Carlo samples", xscale="log")
        subs = (1, 2, 5) if most < 200 else (1,)
        panel.xaxis.set_major_locator(LogLocator(subs=subs))
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.xaxis.set_minor_locator(LogLocator(subs=()))
        plots.tidy(panel)
    handles.append(Line2D([], [], label="mean of the samples", color="k"))
    scaling = Line2D([], [], label="weight scaling", color="k", linestyle=plots.DASHED)
    plots.legend(figure, [*handles, scaling], "")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def uncertainty_maps(
    path: Path,
    title: str,
    predict: Callable[[Array], Array],
    sample: Callable[[Array], Array],
    points: Array,
) -> None:
    """The uncertainty of a run over the plots.plane, three times as wide as the points.

    Args:
        predict: From float32 points `(n, 2)` to probabilities `(n, classes)`.
        sample: From float32 points `(n, 2)` to samples.
        points: `(n, 2)`. About 300 are drawn.
    """
    points = np.asarray(points, np.float32)
    width = np.ptp(points, axis=0)
    low, high = points.min(axis=0) - width, points.max(axis=0) + width
    pixels, extent = plots.plane(low, high, PIXELS)
    scaled: Any = summarise(predict(pixels)[None])
    vote: Any = summarise(sample(pixels))
    maps = {
        "Weight scaling:\npredictive entropy": scaled.entropy,
        "Vote:\npredictive entropy": vote.entropy,
        "Vote:\nmutual information": vote.mutual_information,
    }
    top = np.log(max(2, vote.mean.shape[1]))  # of the entropy
    tops = [top, top, max(vote.mutual_information.max(), 1e-6)]
    drawn = points[np.random.default_rng(0).permutation(len(points))[:POINTS]]
    figure = Figure((7.2, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for panel, (name, values), most in zip(panels, maps.items(), tops, strict=True):
        cells = panel.imshow(
            values.reshape(PIXELS, PIXELS), cmap="cividis", vmin=0, vmax=most,
            extent=extent, origin="lower", aspect="auto",
        )  # fmt: skip
        panel.plot(*drawn.T, "o", color="white", ms=1.8, mec="black", mew=0.3)
        panel.set(title=name, xlabel="x")
        panel.locator_params(nbins=5, steps=[1, 2, 5, 10])
        bar = figure.colorbar(cells, ax=panel, location="bottom", aspect=14)
        bar.set_label("Nats")
        bar.ax.locator_params(nbins=4)
    panels[0].set_ylabel("y")
    key = f"Points: {len(drawn):,} of the {len(points):,} test examples"
    figure.suptitle(f"{wrap(title, 80)}\n{key}")
    plots.set_ratio(figure, 1, (high - low)[1] / (high - low)[0])
    figure.savefig(path)
