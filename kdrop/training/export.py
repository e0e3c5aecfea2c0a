"""The exported models of a comparison, with their record and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrop.ensemble.calibration import PREDICTIONS
from kdrop.ensemble.sampling import sample
from kdrop.serving.saved_model import export
from kdrop.training import curve_plots, image_plots, region_plots
from kdrop.training.data import Data
from kdrop.training.report import test_examples
from kdrop.training.run import Run, SeedRuns

PASSES = 50  # of the exported signature where none is asked for
CHUNK = 1000  # inputs of one call of the model


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
        curve_plots.curves(path / "curves.png", histories)
        if best.vote is not None:
            _draw_vote(path, best, results, data)
        if data.test.inputs.ndim == 2:
            predictors = {x.name: partial(_predict, x.best.model) for x in results}
            region_plots.regions(
                path / "regions.png", predictors, *data.test, data.labels
            )
        else:
            title = f"{result.name}, test set"
            forecast = _predict(best.model, data.test.inputs)
            file, labels = path / "predictions.png", data.labels
            image_plots.predictions(file, title, *data.test, forecast, labels)
            file, predicted = path / "confusion.png", forecast.argmax(axis=1)
            targets = data.test.targets
            image_plots.confusion(file, title, targets, predicted, labels)

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
    title = f"{best.experiment.dropout}, {test_examples(data, len(part.targets))}"
    votes = {each.name: each.best.vote for each in results}
    curve_plots.sample_counts(path / "passes.png", votes, part.targets)
    forecasts = dict(zip(PREDICTIONS.values(), vote.predictions(), strict=True))
    file = path / "reliability.png"
    curve_plots.calibration(file, title, forecasts, part.targets)
    if part.inputs.ndim > 2:
        file = path / "certainty.png"
        image_plots.certainty(file, title, *part, samples, data.labels)
        return

    def sample_plane(points):
        # One subnetwork for the whole plane, so that the map has no grain.
        settings = dict(seed=best.experiment.seed, consistent=True, verbose=0)
        return sample(best.model, points, len(samples), CHUNK, **settings)

    predict = partial(_predict, best.model)
    file = path / "uncertainty.png"
    region_plots.uncertainty_maps(file, title, predict, sample_plane, part.inputs)


def _predict(model, inputs) -> np.ndarray:
    """The model's probabilities at inference, without Keras's loop of `predict`."""
    chunks = np.array_split(inputs, max(1, len(inputs) // CHUNK))
    return np.concatenate([model(np.float32(chunk)) for chunk in chunks])
