"""The figures of the studies. Colour is never the only difference between two lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kdrop.training import plot_style
from kdrop.training.plot_style import CHARACTER, STYLE, entry, legend, look, tidy, wrap

Seeds = Sequence[float]  # a metric of each seed
DASHED: dict = {"color": "0.3", "linestyle": plot_style.DASHED}
BARS: dict = {"capsize": 2.5, "elinewidth": 1, "capthick": 1}


def summary(values: Seeds) -> tuple[float, float]:
    """Mean and standard error over the seeds."""
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


@matplotlib.rc_context(STYLE)
def dots(
    path: Path, title: str, arms: Mapping[str, Seeds], label: str,
    limits: Mapping[str, float],
) -> None:  # fmt: skip
    """Draw mean and standard error of each arm, from the top, and each of its seeds.

    `limits` are names and values of dashed lines.
    """
    figure = Figure((7.2, 0.3 * len(arms) + 1.7))
    panel = figure.add_subplot(ylim=(len(arms) - 0.4, -0.6))
    style = look(0) | {"ls": "none"}
    for y, values in enumerate(arms.values()):
        panel.plot(values, [y] * len(values), **style, mfc="none", ms=3, mew=0.6)
        mean, error = summary(values)
        panel.errorbar(mean, y, xerr=error, **style, **BARS)
    handles = []
    for name, value in limits.items():
        panel.axvline(value, **DASHED, zorder=1)
        handles.append(entry(name, **DASHED))
    panel.set_yticks(range(len(arms)), [wrap(name, 40) for name in arms])
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(label)
    panel.spines[["left"]].set_visible(False)
    _save(figure, path, title, handles, "Filled: mean, standard error. Hollow: seeds.")


@matplotlib.rc_context(STYLE)
def lines(
    path: Path, title: str, panels: Mapping[str, Mapping[str, Mapping[float, Seeds]]],
    x_label: str, label: str, **axes,
) -> None:  # fmt: skip
    """Draw mean and standard error against a number.

    A panel has lines, and a line the values at each x. `axes` go to matplotlib's `set`.
    """
    figure = Figure((7.2, 3.6))
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles: dict[str, dict] = {}
    for panel, (heading, series) in zip(drawn, panels.items(), strict=True):
        panel.set(xlabel=x_label, title=heading, **axes)
        panel.minorticks_off()  # a logarithmic axis would label them
        for name, points in series.items():
            style = styles.setdefault(name, look(len(styles)))
            means, errors = zip(*map(summary, points.values()), strict=True)
            panel.errorbar(list(points), means, yerr=errors, **style, **BARS)
    drawn[0].set_ylabel(label)
    note, top = "Bars: standard error over the seeds.", drawn[0].get_ylim()[1]
    if max(panel.dataLim.ymax for panel in drawn) > top:
        note += f" Not shown: values above {top:.3g}."
    handles = [entry(name, **style) for name, style in styles.items()]
    _save(figure, path, title, handles, note)


def _save(figure: Figure, path: Path, title: str, handles: list, note: str) -> None:
    for panel in figure.axes:
        tidy(panel)
        panel.set_axisbelow(True)
    width = int(0.85 * figure.get_figwidth() / CHARACTER)  # bold letters are wider
    wrapped = "\n".join(wrap(line, width, 3) for line in title.split("\n"))
    wrapped = wrapped[:1].upper() + wrapped[1:]
    figure.suptitle(wrapped, fontweight="bold", fontsize=8)
    legend(figure, handles, note)
    figure.savefig(path)
