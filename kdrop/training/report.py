"""What a comparison leaves: tables, and exported models with record and pictures."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from kdrop.ensemble.calibration import MEASURES, PREDICTIONS
from kdrop.ensemble.sampling import sample
from kdrop.serving.saved_model import export
from kdrop.training import plots, prediction_plots
from kdrop.training.data import Data
from kdrop.training.run import Run, SeedRuns

PART_NAMES = {"train": "train", "validation": "val", "test": "test"}
PASSES = 50  # of the exported signature where none is asked for
CHUNK = 1000  # inputs of one call of the model


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
    part = _test_examples(data, samples.shape[1])
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


def _test_examples(data: Data, size: int) -> str:
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


def export_best(
    result: SeedRuns,
    results: Sequence[SeedRuns],
    data: Data,
    folder: Path,
    record: Mapping[str, Any],
) -> Path:
    """Export the best seed's model as the next version of `folder`.

    Args:
        result: The experiment to export.
        results: All experiments of the comparison; the pictures show them side by side.
        record: Entries of `experiment.json` besides settings, rates and metrics;
            `passes` among them is also the number of samples of the signature `sample`.
    """
    best: Any = result.best

    def draw(path):
        histories = {each.name: each.best.history for each in results}
        plots.curves(path / "curves.png", histories)
        if best.vote is not None:
            _draw_vote(path, best, results, data)
        if data.test.inputs.ndim == 2:
            predictors = {x.name: partial(_predict, x.best.model) for x in results}
            plots.regions(path / "regions.png", predictors, *data.test, data.labels)
        else:
            title = f"{result.name}, test set"
            forecast = _predict(best.model, data.test.inputs)
            file, labels = path / "predictions.png", data.labels
            prediction_plots.predictions(file, title, *data.test, forecast, labels)
            file, predicted = path / "confusion.png", forecast.argmax(axis=1)
            targets = data.test.targets
            prediction_plots.confusion(file, title, targets, predicted, labels)

    layers = [layer for layer in best.model.layers if layer.name.startswith("drop_")]
    return export(
        best.model,
        folder,
        labels=data.labels,
        record={
            "settings": asdict(best.experiment),
            "rates": {x.name: float(x.rate) for x in layers if hasattr(x, "rate")},
            "metrics": best.metrics,
            "seeds": {run.experiment.seed: run.metrics for run in result.runs},
            **record,
        },
        history=best.history,
        draw=draw,
        passes=record["passes"] or PASSES,
    )


def _draw_vote(path: Path, best: Run, results: Sequence[SeedRuns], data: Data) -> None:
    """The pictures of the vote of one run, beside the votes of the others."""
    vote: Any = best.vote
    samples = vote.samples
    part = data.test.first(samples.shape[1])
    title = f"{best.experiment.dropout}, {_test_examples(data, len(part.targets))}"
    votes = {each.name: each.best.vote for each in results}
    prediction_plots.sample_counts(path / "passes.png", votes, part.targets)
    forecasts = dict(zip(PREDICTIONS.values(), vote.predictions(), strict=True))
    file = path / "reliability.png"
    prediction_plots.calibration(file, title, forecasts, part.targets)
    if part.inputs.ndim > 2:
        file = path / "certainty.png"
        prediction_plots.certainty(file, title, *part, samples, data.labels)
        return

    def sample_plane(points):
        # One subnetwork for the whole plane, so that the map has no grain.
        settings = dict(seed=best.experiment.seed, consistent=True, verbose=0)
        return sample(best.model, points, len(samples), CHUNK, **settings)

    predict = partial(_predict, best.model)
    file = path / "uncertainty.png"
    prediction_plots.uncertainty_maps(file, title, predict, sample_plane, part.inputs)


def _predict(model, inputs) -> np.ndarray:
    """The model's probabilities at inference, without Keras's loop of `predict`."""
    chunks = np.array_split(inputs, max(1, len(inputs) // CHUNK))
    return np.concatenate([model(np.float32(chunk)) for chunk in chunks])
