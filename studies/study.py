"""A study: arms to compare, a search on validation data, results over seeds."""

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
from studies import figures
from studies.runner import Measure, Metrics, Runner

Metric = Callable[[Metrics], float]  # of one run, in the unit of its column


def metric(name: str, scale: float = 1.0) -> Metric:
    return lambda metrics: scale * metrics[name]


def error(part: str) -> Metric:
    """The percentage of wrong predictions on a part of the data."""
    return lambda metrics: 100 * (1 - metrics[f"{part}_accuracy"])


ERRORS = {
    "test error %": error("test"),
    "test loss": metric("test_loss"),
    "train error %": error("train"),
}
# 97.5 % quantiles of Student's t, by the number of pairs.
QUANTILES = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares."""

    name: str
    candidates: tuple[Experiment, ...]  # validation chooses one, with the first seed
    series: str = ""  # a panel or a line of the figure
    x: float = math.nan  # the place on the axis of a panel

    @property
    def label(self) -> str:
        return f"{self.series} {self.name}".strip()


@dataclass(frozen=True)
class Result:
    """The metrics of an arm: of each candidate, and of the chosen one by seed."""

    arm: Arm
    chosen: Experiment
    searched: Mapping[Experiment, Metrics]
    by_seed: Mapping[int, Metrics]

    def values(self, metric: Metric) -> list[float]:
        return [metric(metrics) for metrics in self.by_seed.values()]

    def summary(self, metric: Metric = ERRORS["test error %"]) -> tuple[float, float]:
        """Mean and standard error over the seeds."""
        return figures.summary(self.values(metric))

    def __str__(self) -> str:
        return "{} {:.2f} ± {:.2f} %".format(self.arm.name, *self.summary())


Results = Sequence[Result]


def draw_errors(path: Path, results: Results, **limits: float) -> str:
    """Draw each arm's test error; the finding compares them with the first arm."""
    plain, *others = results
    best = min(results, key=lambda result: result.summary()[0])
    rest = "" if best is plain else f" ({plain})"
    less = sum(beyond(plain, result) for result in others)
    more = sum(beyond(result, plain) for result in others)
    title = (
        "{} errs least, in {:.2f} ± {:.2f} %{}\n{} of {} err less than {} by over two "
        "standard errors, {} more"
    ).format(
        best.arm.name, *best.summary(), rest, less, len(others), plain.arm.name, more
    )
    arms = {result.arm.name: result.values(error("test")) for result in results}
    figures.dots(path, title, arms, "Test error (%)", limits)
    return title


def draw_pairs(path: Path, results: Results) -> str:
    """Draw the test errors; the finding is the interval of their paired differences."""
    arms = {result.arm.name: result.values(error("test")) for result in results}
    (plain, errors), *others = arms.items()
    lines = []
    for name, dropped in others:
        differences = np.subtract(dropped, errors)
        mean, standard_error = figures.summary(differences)
        reach = QUANTILES[len(differences)] * standard_error
        lines.append(
            f"{name} errs in {np.mean(dropped):.2f} %, {plain} in {np.mean(errors):.2f}"
            f" %: {mean:+.2f} points\n(95 % t interval of {len(differences)} pairs: "
            f"{mean - reach:+.2f} to {mean + reach:+.2f})"
        )
    title = "\n".join(lines)
    figures.dots(path, title, arms, "Test error (%)", {})
    return title


@dataclass(frozen=True)
class Study:
    """A question, the experiments that answer it, and how to draw the answer."""

    question: str
    arms: Sequence[Arm]
    seeds: int
    columns: Mapping[str, Metric]  # of the table, by their headings
    draw: Callable[[Path, Results], str] = draw_errors  # returns the finding
    measure: Measure | None = None  # further metrics of a run: a module's function

    @property
    def runs(self) -> int:
        return sum(len(arm.candidates) + self.seeds - 1 for arm in self.arms)


def answer(study: Study, runner: Runner) -> list[Result]:
    """Choose each arm's settings on validation data, and run them with all seeds.

    Candidates run with the first seed. The run of the chosen one is not repeated.
    """
    searched = runner.run(
        {
            candidate: f"{arm.label} {words}"
            for arm in study.arms
            for candidate, words in settings(arm).items()
            if words
        }
    )
    seeded = {}
    for arm in study.arms:
        chosen = choose(arm.candidates, searched)
        seeds = range(chosen.seed, chosen.seed + study.seeds)
        seeded[arm.label] = [replace(chosen, seed=seed) for seed in seeds]
    runs = [(label, each) for label in seeded for each in seeded[label]]
    metrics = runner.run({each: f"{label} seed {each.seed}" for label, each in runs})
    return [
        Result(
            arm,
            seeded[arm.label][0],
            {each: searched[each] for each in arm.candidates if each in searched},
            {each.seed: metrics[each] for each in seeded[arm.label]},
        )
        for arm in study.arms
    ]


def choose(candidates, searched: Mapping[Experiment, Metrics]) -> Experiment:
    """The candidate of the best validation accuracy; of equal ones, of least loss."""
    if len(candidates) == 1:
        return candidates[0]
    rank = metric("validation_accuracy"), metric("validation_loss", -1.0)
    return max(candidates, key=lambda each: [value(searched[each]) for value in rank])


def arms(base: Callable[..., Experiment], changes: Mapping[str, list]):
    """An arm for each name, with a candidate for each change of the base."""
    return [
        Arm(name, tuple(base(**change) for change in candidates))
        for name, candidates in changes.items()
    ]


def grid(common: Mapping[str, Any] | None = None, **values: Sequence) -> list[dict]:
    """A change of the base for each combination of the values."""
    return [
        {**(common or {}), **dict(zip(values, each, strict=True))}
        for each in product(*values.values())
    ]


def split(examples: int, held_out: int) -> dict[str, Any]:
    """An experiment's settings to train and to validate on so many examples."""
    whole = examples + held_out
    return {"train_size": whole, "validation": held_out / whole}


def beyond(larger: Result, smaller: Result) -> bool:
    """Whether a test error is larger by over two standard errors of the difference."""
    (high, error), (low, other_error) = larger.summary(), smaller.summary()
    return high - low > 2 * math.hypot(error, other_error)


def by_series(results: Results) -> dict[str, list[Result]]:
    names = dict.fromkeys(result.arm.series for result in results)
    return {name: [r for r in results if r.arm.series == name] for name in names}


def settings(arm: Arm) -> dict[Experiment, str]:
    """In words, the settings in which an arm's candidates differ."""
    names = [
        field.name
        for field in fields(Experiment)
        if len({getattr(each, field.name) for each in arm.candidates}) > 1
    ]

    def text(value):
        return "/".join(map(text, value)) if isinstance(value, tuple) else f"{value:g}"

    return {
        each: ", ".join(f"{name} {text(getattr(each, name))}" for name in names)
        for each in arm.candidates
    }


def table(study: Study, results: Results) -> Table:
    """One row for each arm: what validation chose, mean and standard error."""
    title = f"{study.question}\nmean ± standard error of {study.seeds} seeds"
    table = Table("arm", "chosen", title=title, box=box.SIMPLE)
    for heading in study.columns:
        table.add_column(heading, justify="right")
    for result in results:
        summaries = map(result.summary, study.columns.values())
        cells = ["{:.4g} ± {:.1g}".format(*summary) for summary in summaries]
        table.add_row(result.arm.label, settings(result.arm)[result.chosen], *cells)
    return table


def write(path: Path, results: Results, commits: Mapping[Experiment, str]) -> None:
    """Write a CSV with a row for each run: commit, arm, settings and metrics."""
    rows = []
    for result in results:
        arm = {"series": result.arm.series, "arm": result.arm.name}
        seeds = result.by_seed.items()
        chosen = {replace(result.chosen, seed=seed): each for seed, each in seeds}
        for each, metrics in {**result.searched, **chosen}.items():
            made = {"commit": commits[each], **arm, "chosen": int(each in chosen)}
            rows.append({**made, **asdict(each), **metrics})
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
