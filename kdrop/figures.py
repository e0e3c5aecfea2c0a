"""The figures of many runs: what studies find, what speed was measured or is expected.

Each function writes the PNG at `path`. As in `plots`, nothing is told by colour alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from kdrop.plots import CHARACTER, COLOURS, MARKERS, STYLE, TRAINING, legend, wrap

Seeds = Sequence[float]  # a metric of each seed
LIMIT: dict = {"color": "black", "marker": "|", "ls": "none", "ms": 10, "mew": 1.4}
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


@matplotlib.rc_context(STYLE)
def ratios(path: Path, rows: Sequence[Mapping]) -> None:
    """Draw what each variant of a claim took, as a multiple of what its rival took.

    Args:
        rows: Those of `kdrop.benchmark`: `claim`, `work`, `rival`, `variant`, `ratio`,
            `ratio_min`, `ratio_max`, and `accepted`, the highest ratio or `None`.
    """
    places, names, heads = [], [], {}
    place = 0.0
    shown = [row for row in rows if row["variant"] != row["rival"]]
    for row in shown:
        if row["claim"] not in heads:
            heads[row["claim"]] = place + 0.2
            place += 1.3
        places.append(place)
        names.append(row["variant"])
        place += 1
    figure = Figure((7.2, 0.17 * place + 1), layout="constrained")
    panel = figure.add_subplot(xscale="log", ylim=(place - 0.4, -0.5))
    panel.axvline(1, color="0.5", linewidth=0.8, zorder=0)
    for place, row in zip(places, shown, strict=True):
        limit, low, high = row["accepted"], row["ratio_min"], row["ratio_max"]
        exceeded = limit is not None and row["ratio"] > limit
        look = _measured(exceeded, limit is not None)
        panel.plot([low, high], [place, place], color=look["color"], linewidth=1.2)
        panel.plot(row["ratio"], place, **look)
        if limit is not None:
            panel.plot(limit, place, **LIMIT)
    for row in shown:
        if row["claim"] in heads:
            work = wrap(f"{row['work']}, against {row['rival']}", 100, 1)
            panel.text(
                *(0.005, heads.pop(row["claim"]), work),
                transform=panel.get_yaxis_transform(), va="center",
                bbox={"color": "white", "pad": 0.5}, fontstyle="italic",
            )  # fmt: skip
    panel.set_yticks(places, names)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(LogLocator(subs=()))
    panel.grid(axis="x", color="0.88", linewidth=0.4)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_xlabel("Ratio to the rival: median and range of the processes")
    handles = [
        Line2D([], [], label="within what is accepted", **_measured(False, True)),
        Line2D([], [], label="more than accepted", **_measured(True, True)),
        Line2D([], [], label="no limit set", **_measured(False, False)),
        Line2D([], [], label="accepted at most", **LIMIT),
    ]
    legend(figure, handles, "")
    figure.savefig(path)


@matplotlib.rc_context(STYLE)
def scaling(path: Path, rows: Sequence[Mapping]) -> None:
    """Draw the throughput of several devices, as a multiple of that of one.

    Args:
        rows: Those of `kdrop.scaling`: `network`, `scaling` (weak or strong), `link`,
            `devices` and `times`.
    """
    links = list(dict.fromkeys(row["link"] for row in rows))
    names = list(dict.fromkeys(row["network"] for row in rows))
    kinds = {"weak": "Each device its own batch", "strong": "All share one batch"}
    figure = Figure((7.2, 5), layout="constrained")
    grid = figure.subplots(2, len(links), sharex=True, sharey=True, squeeze=False)
    for line, (kind, words) in zip(grid, kinds.items(), strict=True):
        line[0].set_ylabel(f"{words}:\ntimes one device")
        for panel, link in zip(line, links, strict=True):
            own = [r for r in rows if (r["scaling"], r["link"]) == (kind, link)]
            best = max(own, key=lambda row: row["times"])
            most = f"{best['times']:,.0f} times ({best['network']})"
            gain = f"up to\n{most}" if best["times"] >= 1.5 else "\nnothing gained"
            panel.set_title(f"{link}, {gain}")
            devices = sorted({row["devices"] for row in own})
            panel.plot(devices, devices, color="0.5", linewidth=0.8)
            for n, name in enumerate(names):
                times = [row["times"] for row in own if row["network"] == name]
                look = {"color": COLOURS[n % 10], "marker": MARKERS[n % 10]}
                panel.plot(devices, times, markersize=3, linewidth=1, **look)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.xaxis.set_major_locator(LogLocator(4))
            panel.xaxis.set_major_formatter("{x:,.0f}")
            panel.yaxis.set_major_formatter("{x:,g}")
            panel.minorticks_off()
            panel.grid(color="0.88", linewidth=0.4)
            panel.spines[["top", "right"]].set_visible(False)
    for panel in grid[-1]:
        panel.set_xlabel("Devices")
    handles = [
        Line2D([], [], label=name, color=COLOURS[n % 10], marker=MARKERS[n % 10])
        for n, name in enumerate(names)
    ]
    handles.append(Line2D([], [], label="as many times as devices", color="0.5"))
    legend(figure, handles, "")
    figure.savefig(path)


def _measured(exceeded: bool, limited: bool) -> dict:
    colour, marker = (COLOURS[1], "D") if exceeded else (COLOURS[0], "o")
    if not limited:
        colour = "0.45"
    face = colour if limited else "white"
    return {"color": colour, "marker": marker, "mfc": face, "ls": "none"}
