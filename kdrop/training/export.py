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
from kdrop.training import curve_plots, prediction_plots
from kdrop.training.data import Data
from kdrop.training.report import test_examples
from kdrop.training.run import SeedRuns

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
        draw=partial(_draw, best, results, data),
        passes=record["passes"] or PASSES,
    )


def _draw(best: Any, results: Sequence[SeedRuns], data: Data, folder: Path) -> None:
    """The pictures of one run, beside the curves, regions and votes of the others."""
    name, bests = best.experiment.dropout, {each.name: each.best for each in results}
    histories = {each: run.history for each, run in bests.items()}
    curve_plots.curves(folder / "curves.png", histories)
    images, labels = data.test.inputs.ndim > 2, data.labels
    predict = {each: partial(_predict, run.model) for each, run in bests.items()}
    if images:
        title = f"{name}, test set"
        probabilities = _predict(best.model, data.test.inputs)
        file = folder / "predictions.png"
        prediction_plots.predictions(file, title, *data.test, probabilities, labels)
        file, predicted = folder / "confusion.png", probabilities.argmax(axis=1)
        prediction_plots.confusion(file, title, data.test.targets, predicted, labels)
    else:
        prediction_plots.regions(folder / "regions.png", predict, *data.test, labels)
    if best.vote is None:
        return
    samples = best.vote.samples
    part = data.test.first(samples.shape[1])
    title = f"{name}, {test_examples(data, len(part.targets))}"
    votes = {each: run.vote for each, run in bests.items()}
    curve_plots.sample_counts(folder / "passes.png", votes, part.targets)
    forecasts = dict(zip(PREDICTIONS.values(), best.vote.predictions(), strict=True))
    file = folder / "reliability.png"
    curve_plots.calibration(file, title, forecasts, part.targets)
    if images:
        file = folder / "certainty.png"
        prediction_plots.certainty(file, title, *part, samples, labels)
    else:
        # One subnetwork for the whole plane, so that the map has no grain.
        settings = {"seed": best.experiment.seed, "consistent": True, "verbose": 0}
        draw = partial(sample, best.model, passes=len(samples), **settings)
        scaled, file = partial(_predict, best.model), folder / "uncertainty.png"
        prediction_plots.uncertainty_maps(file, title, scaled, draw, part.inputs)


def _predict(model, inputs: np.ndarray) -> np.ndarray:
    return model.predict(np.float32(inputs), CHUNK, verbose=0)
