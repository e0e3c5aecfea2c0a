"""The studies on MNIST, after Srivastava et al. (2014)."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrop.ensemble.sampling import sample
from kdrop.training.data import Data
from kdrop.training.experiment import EVALUATION_BATCH, Experiment, Run
from kdrop.training.pipeline import batches
from studies import figures
from studies.runner import Metrics
from studies.study import (
    ERRORS,
    Arm,
    Results,
    Study,
    arms,
    beyond,
    grid,
    metric,
    said,
    split,
    standard_error,
    test_error,
    training_error,
)

PASSES = (1, 2, 5, 10, 20, 50, 100)
SAMPLED = 200  # passes, shared out into votes of fewer
TENTHS = tuple(n / 10 for n in range(10))  # rates
PLATEAU = 1.1  # times the least error; what is sure depends on how many seeds there are


def regularisers(size: str) -> Study:
    """Srivastava et al. (2014), table 9."""
    examples, hidden, epochs, seeds = {
        "quick": (1000, (256, 256), 12, 2),
        "default": (10000, (512, 512), 80, 3),
        "full": (50000, (1024, 1024, 2048), 200, 3),
    }[size]
    # Four candidates each: where two regularisers have settings of their own, the
    # learning rate is the lower one.
    base = partial(_mnist(examples, hidden, epochs), learning_rate=1e-3)
    dropping: dict[str, Any] = dict(dropout="InvertedDropout", input_rate=0.2)
    learning_rates, rates, norms = (1e-3, 3e-3), [(0.3,), (0.5,)], (1.0, 2.0)
    return Study(
        f"MNIST, {examples:,} training images: which regulariser errs least?",
        arms(
            base,
            **{
                "none": grid(learning_rate=(3e-4, 1e-3, 3e-3, 1e-2)),
                "L2": grid(learning_rate=learning_rates, l2=(1e-4, 1e-3)),
                "L1 + L2": grid(l1=(1e-6, 1e-5), l2=(1e-4, 1e-3)),
                "max-norm": grid(learning_rate=learning_rates, max_norm=norms),
                "dropout": grid(dropping, learning_rate=learning_rates, rate=rates),
                "dropout + L2": grid(dropping, rate=rates, l2=(1e-5, 1e-4)),
                "dropout + max-norm": grid(dropping, rate=rates, max_norm=norms),
            },
        ),
        seeds,
        ERRORS,
        _draw_regularisers,
    )


def _mnist(examples: int, hidden: tuple[int, ...], epochs: int) -> partial:
    """So many images to train on, and half as many, or 10,000, to choose by."""
    return partial(
        Experiment, data="mnist", dropout="none", hidden=hidden, epochs=epochs,
        batch_size=100, **split(examples, min(examples // 2, 10000)),
    )  # fmt: skip


def _draw_regularisers(path: Path, results: Results) -> str:
    ordered = sorted(results, key=lambda result: result.mean(test_error))
    best = ordered[0]
    plain = next(result for result in results if result.arm.name == "none")
    title = f"Least test error: {said(best)}; {said(plain, 'without any')}"
    groups = {"": {r.arm.name: r.values(test_error) for r in ordered[::-1]}}
    figures.dots(path, title, groups, "Test error (%)")
    order = ", ".join(result.arm.name for result in ordered)
    near = [r.arm.name for r in ordered[1:] if not beyond(r, best, test_error)]
    return (
        f"{title}. From the least error: {order}. Within two standard errors of the "
        f"first: {', '.join(near) or 'none of the others'}."
    )


def rate(size: str) -> Study:
    """Srivastava et al. (2014), section 7.3."""
    examples, width, products, epochs, rates, seeds = {
        "quick": (500, 256, (64, 64), 15, (0.0, 0.2, 0.5, 0.8, 0.9), 2),
        "default": (5000, 512, (128, 128), 80, TENTHS, 5),
        "full": (50000, 2048, (256, 256, 512), 200, TENTHS, 3),
    }[size]
    wide = f"width {width}"
    kept = f"keep × width = {', '.join(map(str, dict.fromkeys(products)))}"

    def arm(series, rate, widths):
        base = _mnist(examples, widths, epochs)
        experiment = base(dropout="InvertedDropout", rate=(rate,))
        return Arm(f"rate {rate:g}", (experiment,), series, rate)

    return Study(
        f"MNIST, {examples:,} training images: at which rate is the error least?",
        [arm(wide, rate, (width,) * len(products)) for rate in rates]
        + [
            arm(kept, rate, tuple(round(each / (1 - rate)) for each in products))
            for rate in rates
        ],
        seeds,
        ERRORS,
        _draw_rate,
    )


def _draw_rate(path: Path, results: Results) -> str:
    panels: dict[str, dict] = {}
    for result in results:
        lines = panels.setdefault(result.arm.series, {"test": {}, "training": {}})
        lines["test"][result.arm.place] = result.values(test_error)
        lines["training"][result.arm.place] = result.values(training_error)
    found, ends = [], []
    for series in panels:
        mine = [result for result in results if result.arm.series == series]
        means = [result.mean(test_error) for result in mine]
        place = first = last = int(np.argmin(means))
        while first > 0 and means[first - 1] <= PLATEAU * means[place]:
            first -= 1
        while last + 1 < len(mine) and means[last + 1] <= PLATEAU * means[place]:
            last += 1
        places = [result.arm.place for result in mine]
        found.append(
            f"{series}: {means[place]:.2f} % at {places[place]:g}, up to a tenth more "
            f"from {places[first]:g} to {places[last]:g}"
        )
        ends.append(
            f"{means[0]:.2f} at {places[0]:g}, {means[-1]:.2f} at {places[-1]:g}"
        )
    title = "\n".join(map("; ".join, zip(found, ends, strict=True)))
    top = 3 * min(result.mean(test_error) for result in results)
    figures.lines(path, title, panels, "Dropout rate", "Error (%)", top=top)
    return title


def votes(size: str) -> Study:
    """Srivastava et al. (2014), section 7.5."""
    examples, hidden, epochs, seeds = {
        "quick": (1000, (256, 256), 20, 2),
        "default": (5000, (512, 512), 30, 5),
        "full": (50000, (1024, 1024, 1024), 200, 5),
    }[size]
    base = _mnist(examples, hidden, epochs)
    dropped = base(dropout="InvertedDropout", rate=(0.5,), input_rate=0.2)
    columns = {f"{k}\npasses": metric(f"error_of_{k}", 100) for k in PASSES}
    return Study(
        f"MNIST, {examples:,} training images, test error %: how many have to vote?",
        [Arm("vote", (dropped,))],
        seeds,
        {"weight\nscaling": test_error, **columns},
        _draw_votes,
        _measure_votes,
    )


def _measure_votes(run: Run, data: Data) -> Metrics:
    """Error of votes of so many passes, as a mean over votes that share no pass."""
    test = batches(data.test, EVALUATION_BATCH, passes=1)
    seed = run.experiment.seed
    samples = sample(run.model, test, SAMPLED, seed=seed, verbose=0)
    sums = np.cumsum(samples, axis=0, dtype="float32")
    found = {}
    for passes in PASSES:
        ends = sums[passes - 1 :: passes]
        together = np.diff(ends, axis=0, prepend=np.zeros_like(ends[:1]))
        wrong = together.argmax(axis=-1) != data.test.targets
        found[f"error_of_{passes}"] = float(wrong.mean())
    return found


def _draw_votes(path: Path, results: Results) -> str:
    (result,) = results
    scaled = result.values(test_error)
    voted = {float(k): result.values(metric(f"error_of_{k}", 100)) for k in PASSES}
    level, last = np.mean(scaled), PASSES[-1]
    # In pairs: a vote and weight scaling are of one network.
    more = {
        k: [vote - single for vote, single in zip(values, scaled, strict=True)]
        for k, values in voted.items()
    }
    meets = [k for k, each in more.items() if np.mean(each) <= 2 * standard_error(each)]
    words = f"does not meet weight scaling ({level:.2f} %) within {last} passes"
    if meets:
        words = (
            f"is within two standard errors of weight scaling ({level:.2f} %) "
            f"with {meets[0]:.0f} passes"
        )
    title = (
        f"The vote {words}:\none pass errs in {np.mean(voted[1]):.2f} %, {last} in "
        f"{np.mean(voted[last]):.2f} %, {np.mean(more[last]):+.2f} ± "
        f"{standard_error(more[last]):.2f} in pairs"
    )
    figures.lines(
        path, title, {"": {"vote": voted}}, "Passes that vote", "Test error (%)",
        {"weight scaling": scaled}, logarithmic=True, bottom=None,
    )  # fmt: skip
    return title
