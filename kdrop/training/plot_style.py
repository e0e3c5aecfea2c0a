"""The style of all pictures.

Figures are made without pyplot and in their own style, so that the caller's matplotlib
settings do not change. Runs and classes differ by marker as well as by colour, training
and validation by line style, so that the pictures can be read without colour.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, PercentFormatter

Array = np.ndarray
Names = Sequence[str]

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


def look(number: int, dashed: bool = False) -> dict:
    """Colour and marker of a run or class; dashed lines have hollow markers."""
    hollow = {"linestyle": DASHED, "markerfacecolor": "white"} if dashed else {}
    return {"color": COLOURS[number % 10], "marker": MARKERS[number % 10], **hollow}


def tidy(panel: Axes) -> None:
    """A pale grid, and no lines at the top and the right."""
    panel.grid(color="0.88", linewidth=0.4)
    panel.spines[["top", "right"]].set_visible(False)


def log_ticks(axis: Axis, dense: bool) -> None:
    """Label the powers of ten of a logarithmic axis; if dense, also 2 and 5 times."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,)))
    axis.set_minor_locator(LogLocator(subs=()))
    axis.set_major_formatter("{x:,g}")


def percent(axis: Axis) -> None:
    axis.set_major_formatter(PercentFormatter(1))


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


def legend(figure: Figure, handles: list[Line2D], title: str = "") -> None:
    """One legend below the axes, in as many columns as the names leave room for."""
    room = figure.get_figwidth() / CHARACTER
    names = [wrap(str(handle.get_label()), 40) for handle in handles]
    widths = [min(len(name), 40) + 7 for name in names]  # 7: line, gaps
    columns = len(names) if sum(widths) < room else max(1, int(room / max(widths)))
    box = figure.legend(handles, names, loc="outside lower center", ncols=columns)
    box.set_title(textwrap.fill(title, int(room)))
    box.get_title().set_multialignment("center")
