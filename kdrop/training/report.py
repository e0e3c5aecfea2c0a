"""The tables of a comparison."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from kdrop.ensemble.calibration import PREDICTIONS
from kdrop.training.data import Data
from kdrop.training.run import SeedRuns

PART_NAMES = {"train": "train", "validation": "val", "test": "test"}


def parts_of(metrics: Mapping[str, float]) -> list[str]:
    """The parts of the data set that the metrics of a run are measured on."""
    return [part for part in PART_NAMES if f"{part}_loss" in metrics]


class Results(NamedTuple):
    """A table of names and numbers as text."""

    title: str
    headings: Sequence[str]  # of one or two lines
    rows: Sequence[Sequence[str]]

    def for_terminal(self) -> Table:
        """The table of `rich`, with the spread of seeds below their mean."""
        table = Table(title=self.title, box=box.SIMPLE, padding=(0, 1, 0, 0))
        for heading in self.headings:
            justify = "right" if "\n" in heading else "left"
            table.add_column(heading, justify=justify, vertical="middle", no_wrap=True)
        for row in self.rows:
            table.add_row(*(cell.replace(" ± ", "\n± ") for cell in row))
        return table


def tables(results: Sequence[SeedRuns], data: Data) -> list[Results]:
    """The table of results, and that of the vote if there was one."""
    votes = any(result.best.vote is not None for result in results)
    return [results_table(results), *([vote_table(results, data)] if votes else [])]


def results_table(results: Sequence[SeedRuns]) -> Results:
    """Accuracy and loss at inference, one row for each experiment, over its seeds."""
    first = results[0].runs[0].metrics
    columns = {}
    for name, unit, scale, digits in ("accuracy", " %", 100, 1), ("loss", "", 1, 3):
        for part in parts_of(first):
            heading = f"{name}\n{PART_NAMES[part]}{unit}"
            columns[heading] = f"{part}_{name}", scale, digits
    if "test_calibration_error" in first:
        columns["calibration\nerror"] = "test_calibration_error", 1, 3
    columns["\nseconds"] = "seconds", 1, 0
    rows = [([x.name], [run.metrics for run in x.runs]) for x in results]
    seeds = len(results[0].runs)
    spread = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    title = f"{results[0].best.experiment.data}, at inference{spread}"
    return _table(title, ["dropout"], columns, rows)


def vote_table(results: Sequence[SeedRuns], data: Data) -> Results:
    """Weight scaling beside the vote, for each experiment whose runs have a vote."""
    columns = {
        "\naccuracy %": ("accuracy", 100, 2),
        "negative log\nlikelihood": ("negative_log_likelihood", 1, 4),
        "calibration\nerror": ("expected_calibration_error", 1, 4),
        "Brier\nscore": ("brier_score", 1, 4),
    }
    rows = []
    for result in results:
        runs = [run.metrics for run in result.runs if "vote_accuracy" in run.metrics]
        for kind, name in PREDICTIONS.items() if runs else ():
            of_kind = [{k.removeprefix(f"{kind}_"): m[k] for k in m} for m in runs]
            rows.append(([result.name, name], of_kind))
    samples = next(x.best.vote.samples for x in results if x.best.vote is not None)
    part = test_examples(data, samples.shape[1])
    title = f"{data.name}, {part}: weight scaling and vote of {len(samples)} samples"
    return _table(title, ["dropout", "predicted by"], columns, rows)


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


def _table(
    title: str,
    names: Sequence[str],
    columns: Mapping[str, tuple[str, int, int]],
    rows: Sequence[tuple[Sequence[str], Sequence[Mapping[str, float]]]],
) -> Results:
    """A table of names, then of numbers over the runs of a row.

    `columns` has for each heading a metric, what it is multiplied by, and the digits;
    `rows` has the names of each row, and the metrics of each of its runs.
    """
    cells = []
    for words, runs in rows:
        numbers = [
            mean_and_spread([scale * metrics[name] for metrics in runs], digits)
            for name, scale, digits in columns.values()
        ]
        cells.append([*words, *numbers])
    return Results(title, [*names, *columns], cells)
