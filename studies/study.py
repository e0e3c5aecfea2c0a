"""What a study is: arms to compare, what validation chooses, what the seeds say."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from kdrop.training.experiment import Experiment
from studies.runner import Measure, Metrics, Runner, effort

Metric = Callable[[Metrics], float]  # of one run, with the unit of its column


def test_error(metrics: Metrics) -> float:
    return 100 * (1 - metrics["test_accuracy"])


def training_error(metrics: Metrics) -> float:
    return 100 * (1 - metrics["train_accuracy"])


def metric(name: str, scale: float = 1.0) -> Metric:
    return lambda metrics: scale * metrics[name]


ERRORS: dict[str, Metric] = {
    "test error %": test_error,
    "test loss": metric("test_loss"),
    "train error %": training_error,
}


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares."""

    name: str
    candidates: tuple[Experiment, ...]  # validation chooses one, by the first seed
    series: str = ""  # the line or the panel that it belongs to
    place: float = math.nan  # where it stands on that line

    @property
    def label(self) -> str:
        """Its name among the arms of all series."""
        return f"{self.series} {self.name}".strip()


@dataclass(frozen=True)
class Result:
    """What an arm's chosen experiment reached with each seed."""

    arm: Arm
    chosen: Experiment
    searched: Mapping[Experiment, Metrics]  # what the candidates reached
    found: Mapping[int, Metrics]  # by seed

    def values(self, metric: Metric) -> list[float]:
        """The metric for each seed."""
        return [metric(metrics) for metrics in self.found.values()]

    def mean(self, metric: Metric) -> float:
        return float(np.mean(self.values(metric)))

    def error(self, metric: Metric) -> float:
        """Standard error of the mean over the seeds; NaN for a single one."""
        return standard_error(self.values(metric))


Results = Sequence[Result]


@dataclass(frozen=True)
class Study:
    """A question, the experiments that answer it, and how the answer is drawn."""

    question: str
    arms: Sequence[Arm]
    seeds: int
    columns: Mapping[str, Metric]  # of the table, by their headings
    draw: Callable[[Path, Results], str]  # makes the figure and returns the finding
    # Further metrics of a finished run: a function of a module, for other processes.
    measure: Measure | None = None

    @property
    def work(self) -> float:
        """The effort of all runs."""
        return sum(
            sum(map(effort, arm.candidates))
            + (self.seeds - 1) * effort(arm.candidates[0])
            for arm in self.arms
        )

    @property
    def runs(self) -> int:
        return sum(len(arm.candidates) + self.seeds - 1 for arm in self.arms)


def answer(study: Study, runner: Runner) -> list[Result]:
    """Let validation choose each arm's settings, and run what it chose with all seeds.

    Of several candidates each is run with the first seed, which counts as one of them.
    """
    first = {
        f"{arm.label} {words}": candidate
        for arm in study.arms
        for candidate, words in settings(arm).items()
        if len(arm.candidates) > 1
    }
    searched = runner.run(first)
    results = []
    for arm in study.arms:
        mine = {each: searched[each] for each in arm.candidates if each in searched}
        chosen = choose(mine) if mine else arm.candidates[0]
        results.append(Result(arm, chosen, mine, {}))
    runs = {
        f"{result.arm.label} seed {each.seed}": each
        for result in results
        for each in seeded(result.chosen, study.seeds)
    }
    found = runner.run(runs)
    return [
        replace(
            result,
            found={e.seed: found[e] for e in seeded(result.chosen, study.seeds)},
        )
        for result in results
    ]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; NaN for a single one."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def arms(base: Callable[..., Experiment], **changes: Sequence[dict]) -> list[Arm]:
    """An arm for each name, with a candidate for each change of the base."""
    return [
        Arm(name, tuple(base(**change) for change in changed))
        for name, changed in changes.items()
    ]


def grid(common: Mapping[str, Any] | None = None, **values: Sequence) -> list[dict]:
    """A change of the base for each combination of the values."""
    return [
        {**(common or {}), **dict(zip(values, each, strict=True))}
        for each in product(*values.values())
    ]


def split(examples: int, held: int) -> dict[str, Any]:
    """An experiment's settings to train on so many and to validate on others."""
    whole = examples + held
    return {"train_size": whole, "validation": held / whole}


def said(result: Result, name: str = "") -> str:
    mean, error = result.mean(test_error), result.error(test_error)
    spread = "" if np.isnan(error) else f" ± {error:.2f}"
    return f"{name or result.arm.name} {mean:.2f}{spread} %"


def better(plain: Result, others: Results) -> str:
    """How many others err less, and more, than the one without; the best and worst."""
    less = sum(beyond(plain, result, test_error) for result in others)
    more = sum(beyond(result, plain, test_error) for result in others)
    best, *_, worst = sorted(others, key=lambda result: result.mean(test_error))
    return (
        f"Beyond two standard errors {less} of {len(others)} layers err less than "
        f"none, {more} more:\nleast {said(best)}, most {said(worst)}, {said(plain)}"
    )


def beyond(larger: Result, smaller: Result, metric: Metric) -> bool:
    """Whether a mean is larger by more than two standard errors of the difference."""
    difference = larger.mean(metric) - smaller.mean(metric)
    return difference > 2 * math.hypot(larger.error(metric), smaller.error(metric))


def seeded(experiment: Experiment, seeds: int) -> list[Experiment]:
    """The experiment with as many seeds, from its own on."""
    return [replace(experiment, seed=experiment.seed + n) for n in range(seeds)]


def choose(found: Mapping[Experiment, Metrics]) -> Experiment:
    """The experiment of the best validation accuracy; of equals, the least loss."""

    def result(experiment):
        metrics = found[experiment]
        return metrics["validation_accuracy"], -metrics["validation_loss"]

    return max(found, key=result)


def settings(arm: Arm) -> dict[Experiment, str]:
    """For each of an arm's candidates, in words, what the others have otherwise."""
    names = [
        field.name
        for field in fields(Experiment)
        if len({getattr(each, field.name) for each in arm.candidates}) > 1
    ]

    def shown(value):
        several = isinstance(value, tuple)
        return "/".join(map(shown, value)) if several else f"{value:g}"

    return {
        each: ", ".join(f"{name} {shown(getattr(each, name))}" for name in names)
        for each in arm.candidates
    }


def search_table(results: Results) -> Table:
    """The search space, and which of it validation has chosen."""
    shown = _table("Searched: validation accuracy %, one seed")
    shown.add_column("arm", no_wrap=True)
    shown.add_column("chosen")
    shown.add_column("others")
    for result in results:
        if len(result.searched) > 1:
            words = settings(result.arm)
            lines = {
                each: f"{words[each]}: {100 * metrics['validation_accuracy']:.2f}"
                for each, metrics in result.searched.items()
            }
            chosen = lines.pop(result.chosen)
            shown.add_row(result.arm.label, chosen, "\n".join(lines.values()))
    return shown


def table(study: Study, results: Results) -> Table:
    """One row for each arm: mean and standard error over the seeds."""
    seeds = len(results[0].found)
    of = f"mean ± standard error of {seeds} seeds" if seeds > 1 else "one seed"
    shown = _table(f"{study.question}\n{of}")
    series = any(result.arm.series for result in results)
    if series:
        shown.add_column("", no_wrap=True)
    shown.add_column("arm", no_wrap=True)
    for heading in study.columns:
        shown.add_column(heading, justify="right", no_wrap=True)
    columns = [spread(results, metric) for metric in study.columns.values()]
    for result, *values in zip(results, *columns, strict=True):
        names = [result.arm.series, result.arm.name] if series else [result.arm.name]
        shown.add_row(*names, *values)
    return shown


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))


def spread(results: Results, metric: Metric) -> list[str]:
    """Means and standard errors: three digits of the one or one of the other."""
    pairs = [(result.mean(metric), result.error(metric)) for result in results]
    needed = (max(0, 2 - _magnitude(mean), -_magnitude(error)) for mean, error in pairs)
    digits = min(3, max(needed))
    return [
        f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")
        for mean, error in pairs
    ]


def _magnitude(value: float) -> int:
    """The power of ten of the first digit."""
    return math.floor(math.log10(abs(value))) if 0 < abs(value) < math.inf else 0


def write(path: Path, results: Results) -> None:
    """The CSV: a row for each run, its arm, settings and metrics."""
    rows = []
    for result in results:
        runs = dict(result.searched)
        for seed, metrics in result.found.items():
            runs[replace(result.chosen, seed=seed)] = metrics
        for experiment, metrics in runs.items():
            chosen = replace(experiment, seed=result.chosen.seed) == result.chosen
            arm = {"series": result.arm.series, "arm": result.arm.name}
            kept = {"chosen": int(chosen), **asdict(experiment.resolved())}
            rows.append({**arm, **kept, **metrics})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
