"""The tables of a comparison."""

import statistics
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table

from kdrop.ensemble.calibration import MEASURES, PREDICTIONS
from kdrop.training.data import Data
from kdrop.training.run import SeedRuns

PART_NAMES = {"train": "train", "validation": "val", "test": "test"}


def results_table(results: Sequence[SeedRuns]) -> Table:
    """Accuracy and loss at inference, one row for each experiment, over its seeds."""
    seeds = len(results[0].runs)
    spread = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    metrics = results[0].runs[0].metrics
    parts = {k: name for k, name in PART_NAMES.items() if f"{k}_loss" in metrics}
    table = _table(
        f"{results[0].best.experiment.data}, at inference{spread}",
        ["dropout"],
        [f"{name}\naccuracy %" for name in parts.values()]
        + [f"{name}\nloss" for name in parts.values()]
        + ["train - test\naccuracy", "\nseconds"],
    )
    for result in results:
        runs = [run.metrics for run in result.runs]
        accuracies = {k: [100 * m[f"{k}_accuracy"] for m in runs] for k in parts}
        gaps = [100 * (m["train_accuracy"] - m["test_accuracy"]) for m in runs]
        table.add_row(
            result.name,
            *(mean_and_spread(values, 1) for values in accuracies.values()),
            *(mean_and_spread([m[f"{k}_loss"] for m in runs], 3) for k in parts),
            mean_and_spread(gaps, 1),
            mean_and_spread([m["seconds"] for m in runs], 0),
        )
    return table


def vote_table(results: Sequence[SeedRuns], data: Data) -> Table:
    """Weight scaling beside the vote, for each experiment whose runs have a vote."""
    votes = [result.best.vote for result in results]
    samples = next(vote.samples for vote in votes if vote is not None)
    part = test_examples(data, samples.shape[1])
    table = _table(
        f"{data.name}, {part}: weight scaling and the vote of {len(samples)} samples",
        ["dropout", "predicted by"],
        [
            "\naccuracy %",
            "negative log\nlikelihood",
            "expected\ncalibration error",
            "Brier\nscore",
        ],
    )
    for result in results:
        runs = [run.metrics for run in result.runs if "vote_accuracy" in run.metrics]
        for kind, name in PREDICTIONS.items() if runs else ():
            columns = [[m[f"{kind}_{measure}"] for m in runs] for measure in MEASURES]
            accuracy = mean_and_spread([100 * value for value in columns[0]], 2)
            others = [mean_and_spread(values, 4) for values in columns[1:]]
            table.add_row(result.name, name, accuracy, *others)
    return table


def test_examples(data: Data, size: int) -> str:
    """The first `size` examples of the test part in words."""
    whole = len(data.test.targets)
    return "test set" if size == whole else f"first {size:,} of {whole:,} test examples"


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of the values of several seeds; of one, the value."""
    mean = f"{statistics.fmean(values):z.{digits}f}"  # no negative zero
    if len(values) == 1:
        return mean
    # NaN where a run diverged: `statistics.stdev` would raise.
    with np.errstate(invalid="ignore"):
        return f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table with columns for names, then columns for numbers."""
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
