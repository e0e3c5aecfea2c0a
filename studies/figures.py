"""The figures of many runs: what studies find, what speed was measured or is expected.

Each function writes the PNG at `path`. As in `plots`, nothing is told by colour alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from kdrop.training.plots import (
    CHARACTER,
    COLOURS,
    MARKERS,
    STYLE,
    TRAINING,
    legend,
    wrap,
)

Seeds = Sequence[float]  # a metric of each seed
BARS: dict = {"capsize": 2.5, "elinewidth": 1, "capthick": 1}


@matplotlib.rc_context(STYLE)
def dots(
    path: Path,
    title: str,
    groups: Mapping[str, Mapping[str, Seeds]],
    label: str,
    limits: Mapping[str, float] | None = None,
) -> None:
    """Draw mean and standard error of each arm, from the top, and each of its seeds.

    Args:
        title: The finding.
        groups: For each group of arms, which shares a marker, the values of each arm.
        label: What the values are, with their unit.
        limits: Values that are marked by a dashed line, with their names.
    """
    names = list(dict.fromkeys(name for arms in groups.values() for name in arms))
    figure = Figure((7.2, 0.3 * len(names) + 1.7), layout="constrained")
    panel = figure.add_subplot(ylim=(len(names) - 0.4, -0.6))
    handles = []
    for number, (group, arms) in enumerate(groups.items()):
        look: dict = {"color": COLOURS[number], "ls": "none"}
        look["marker"] = MARKERS[number]
        shift = 0.28 * (number - (len(groups) - 1) / 2)
        for name, values in arms.items():
            place = names.index(name) + shift
            panel.plot(values, [place] * len(values), **look, mfc="none", ms=3, mew=0.6)
            mean, error = _summary(values)
            panel.errorbar(mean, place, xerr=error, **look, **BARS)
        if len(groups) > 1:
            handles.append(Line2D([], [], label=group, **look))
    for name, value in (limits or {}).items():
        panel.axvline(value, color="0.3", linestyle=TRAINING, zorder=1)
        handles.append(Line2D([], [], label=name, color="0.3", linestyle=TRAINING))
    panel.set_yticks(range(len(names)), [wrap(name, 40) for name in names])
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(label)
    panel.grid(color="0.88", linewidth=0.4)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    _entitle(figure, title)
    most = max(len(values) for arms in groups.values() for values in arms.values())
    means = f"Filled: mean and standard error of {most} seeds. Hollow: each of them."
    legend(figure, handles, means if most > 1 else "")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def lines(
    path: Path,
    title: str,
    panels: Mapping[str, Mapping[str, Mapping[float, Seeds]]],
    across: str,
    label: str,
    levels: Mapping[str, Seeds] | None = None,
    logarithmic: bool = False,
    bottom: float | None = 0.0,
    top: float | None = None,
) -> None:
    """Draw mean and standard error against a number.

    Args:
        title: The finding.
        panels: For each panel its lines, and for each line the values at each place.
        across: What the places are.
        label: What the values are, with their unit.
        levels: Values that hold at all places: a dashed line and a band of its error.
        logarithmic: The scale of the places.
        bottom: Of the picture; `None` for what the values need.
        top: Of the picture: what is above it is cut off, and told below.
    """
    figure = Figure((7.2, 3.6), layout="constrained")
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    looks: dict[str, dict] = {}
    cut: list[str] = []
    for panel, (heading, series) in zip(drawn, panels.items(), strict=True):
        for name, points in series.items():
            number = len(looks)
            own = {"color": COLOURS[number], "marker": MARKERS[number]}
            look = looks.setdefault(name, own)
            means, errors = zip(*map(_summary, points.values()), strict=True)
            panel.errorbar(list(points), means, yerr=errors, **look, **BARS)
            cut += [
                f"{heading}, {name}: {mean:.1f} at {place:g}."
                for place, mean in zip(points, means, strict=True)
                if top is not None and mean > top
            ]
        for name, values in (levels or {}).items():
            mean, error = _summary(values)
            panel.axhline(mean, color="0.3", linestyle=TRAINING)
            panel.axhspan(mean - error, mean + error, color="0.85", lw=0, zorder=0)
            looks.setdefault(name, {"color": "0.3", "linestyle": TRAINING})
        panel.set_ylim(bottom, top)
        if logarithmic:
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter("{x:g}")
        panel.set(xlabel=across, title=heading)
        panel.grid(color="0.88", linewidth=0.4)
        panel.spines[["top", "right"]].set_visible(False)
    drawn[0].set_ylabel(label)
    _entitle(figure, title)
    most = max(
        len(values)
        for series in panels.values()
        for points in series.values()
        for values in points.values()
    )
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    drawn_so = "Bars and band" if levels else "Bars"
    means = f"{drawn_so}: standard error of {most} seeds." if most > 1 else ""
    if cut:
        means += f" Cut off: {' '.join(cut)}"
    legend(figure, handles, means.strip())
    figure.savefig(path)


def _summary(values: Seeds) -> tuple[float, float]:
    """Mean and standard error, 0 for a single value."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(spread / np.sqrt(len(values)))


def _entitle(figure: Figure, title: str) -> None:
    width = int(figure.get_figwidth() / CHARACTER * 0.85)  # bold letters are wider
    lines = [wrap(line, width, 3) for line in title.split("\n")]
    figure.suptitle("\n".join(lines), fontweight="bold", fontsize=8)
