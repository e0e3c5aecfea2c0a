"""Export a trained model with its record and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrop.ensemble.calibration import PREDICTIONS
from kdrop.ensemble.sampling import sample
from kdrop.serving.saved_model import export
from kdrop.training import image_plots, plots, vote_plots
from kdrop.training.data import Data
from kdrop.training.report import part_name
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

    Returns:
        The path of the new version.
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
            return
        title = f"{result.name}, test set"
        probabilities = _predict(best.model, data.test.inputs)
        picture = path / "predictions.png"
        image_plots.predictions(picture, title, *data.test, probabilities, data.labels)
        predicted = probabilities.argmax(axis=1)
        picture = path / "confusion.png"
        image_plots.confusion(picture, title, data.test.targets, predicted, data.labels)

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
    title = f"{best.experiment.dropout}, {part_name(data, len(part.targets))}"
    votes = {each.name: each.best.vote for each in results}
    vote_plots.sample_counts(path / "passes.png", votes, part.targets)
    forecasts = dict(zip(PREDICTIONS.values(), vote.predictions(), strict=True))
    picture = path / "reliability.png"
    vote_plots.calibration(picture, title, forecasts, part.targets)
    if part.inputs.ndim > 2:
        picture = path / "certainty.png"
        image_plots.certainty(picture, title, *part, samples, data.labels)
        return

    def sample_plane(points):
        # One subnetwork for the whole plane, so that the map has no grain.
        return sample(
            best.model,
            points,
            len(samples),
            CHUNK,
            seed=best.experiment.seed,
            consistent=True,
            verbose=0,
        )

    predict = partial(_predict, best.model)
    picture = path / "uncertainty.png"
    vote_plots.uncertainty_maps(picture, title, predict, sample_plane, part.inputs)


def _predict(model, inputs) -> np.ndarray:
    """The model's probabilities at inference, without Keras's loop of `predict`."""
    chunks = np.array_split(inputs, max(1, len(inputs) // CHUNK))
    return np.concatenate([model(np.float32(chunk)) for chunk in chunks])
