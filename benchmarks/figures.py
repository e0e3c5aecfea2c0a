"""The figures of the benchmarks: ratios, and throughput on several devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from kdrop.training.plots import (
    COLOURS,
    MARKERS,
    STYLE,
    legend,
    wrap,
)

LIMIT: dict = {"color": "black", "marker": "|", "ls": "none", "ms": 10, "mew": 1.4}


@matplotlib.rc_context(STYLE)
def ratios(path: Path, rows: Sequence[Mapping]) -> None:
    """Draw what each variant of a claim took, as a multiple of what its rival took.

    Args:
        rows: Those of `benchmarks`: `claim`, `work`, `rival`, `variant`, `ratio`,
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
        rows: Rows of `benchmarks.scaling`: `network`, `scaling`, `link`,
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
