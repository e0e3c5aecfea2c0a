"""The pictures of points in the plane: decision regions and uncertainty.

Each function writes the PNG at `path`. `points` are `(n, 2)`, and `predict` is a
function from float32 points to probabilities `(n, classes)`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kdrop.ensemble.uncertainty import summarise
from kdrop.training.plot_style import (
    CHARACTER,
    COLOURS,
    STYLE,
    Array,
    Names,
    entry,
    legend,
    look,
    set_ratio,
    wrap,
)  # fmt: skip

POINTS, FAR_POINTS = 1000, 300  # drawn at most; far: where the map reaches far beyond
PIXELS, FAR_PIXELS = 300, 120  # of a side of the map


@matplotlib.rc_context(STYLE)
def regions(
    path: Path,
    runs: Mapping[str, Callable[[Array], Array]],
    points: Array,
    targets: Array,
    labels: Names,
) -> None:
    """What `predict` of each run says over the plane, and test points on top.

    All points count for the accuracy; about 1,000 are drawn.
    """
    points, targets = np.asarray(points, np.float32), np.asarray(targets)
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    rows = -(-len(runs) // columns)
    side = (4.6, 3.5, 2.4)[columns - 1]
    figure = Figure((side * columns, side * rows + 2))
    pixels, extent = _plane(points, 0.05, PIXELS)
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


@matplotlib.rc_context(STYLE)
def uncertainty_maps(
    path: Path,
    title: str,
    predict: Callable[[Array], Array],
    sample: Callable[[Array], Array],
    points: Array,
) -> None:
    """The uncertainty of a run over a plane three times as wide as the points.

    Args:
        predict: From float32 points `(n, 2)` to probabilities.
        sample: From float32 points `(n, 2)` to samples.
        points: `(n, 2)`. About 300 are drawn.
    """
    points = np.asarray(points, np.float32)
    pixels, extent = _plane(points, 1, FAR_PIXELS)
    scaled: Any = summarise(predict(pixels)[None])
    vote: Any = summarise(sample(pixels))
    top = np.log(max(2, vote.mean.shape[1]))  # of the entropy
    maps = {
        "Weight scaling:\npredictive entropy": (scaled.entropy, top),
        "Vote:\npredictive entropy": (vote.entropy, top),
        "Vote:\nmutual information": (
            vote.mutual_information,
            max(vote.mutual_information.max(), 1e-6),
        ),
    }
    drawn = points[np.random.default_rng(0).permutation(len(points))[:FAR_POINTS]]
    figure = Figure((7.2, 4))
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for panel, (name, (values, most)) in zip(panels, maps.items(), strict=True):
        values = values.reshape(FAR_PIXELS, FAR_PIXELS)
        place: dict = {"extent": extent, "origin": "lower", "aspect": "auto"}
        cells = panel.imshow(values, cmap="cividis", vmin=0, vmax=most, **place)
        panel.plot(*drawn.T, "o", color="white", ms=1.8, mec="black", mew=0.3)
        panel.set(title=name, xlabel="x")
        panel.locator_params(nbins=5, steps=[1, 2, 5, 10])
        bar = figure.colorbar(cells, ax=panel, location="bottom", aspect=14)
        bar.set_label("Nats")
        bar.ax.locator_params(nbins=4)
    panels[0].set_ylabel("y")
    key = f"Points: {len(drawn):,} of the {len(points):,} test examples"
    figure.suptitle(f"{wrap(title, 80)}\n{key}")
    left, right, bottom, top = extent
    set_ratio(figure, 1, (top - bottom) / (right - left))
    figure.savefig(path)


def _plane(points: Array, margin: float, pixels: int) -> tuple[Array, tuple]:
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
