"""The exported models of a comparison, with their record, pictures and page."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrop.ensemble.calibration import PREDICTIONS
from kdrop.ensemble.sampling import sample
from kdrop.layers.base import active_drop_layers
from kdrop.serving.saved_model import export
from kdrop.training import curve_plots, prediction_plots
from kdrop.training.data import Data
from kdrop.training.findings import findings
from kdrop.training.report import tables, test_examples
from kdrop.training.report_page import report_page, request_to
from kdrop.training.run import SeedRuns

PASSES = 50  # of the exported signature where none is asked for
CHUNK = 1000  # inputs of one call of the model


def export_best(
    result: SeedRuns,
    results: Sequence[SeedRuns],
    data: Data,
    folder: Path,
    record: Mapping[str, Any],
    pictures: Path,
) -> Path:
    """Export the best seed's model as the next version of `folder`.

    Args:
        result: The experiment to export.
        results: All experiments of the comparison, for the tables of `report.html`.
        pictures: The folder of the comparison's pictures, which are copied.
        record: Entries of `experiment.json` besides settings, rates and metrics;
            `passes` among them is also the number of samples of the signature `sample`,
            `formats` those of `kdrop.serving.export`.
    """
    best: Any = result.best

    def draw(version: Path) -> None:
        _draw(best, data, pictures, version)
        files = sorted(version.glob("*.png"))
        signature = "sample" if active_drop_layers(best.model) else "serve"
        page = report_page(
            folder,
            json.loads((version / "experiment.json").read_text()),
            data.labels,
            tables(results, data),
            findings(results),
            {file.stem: file.read_bytes() for file in files},
            request_to(folder.name, data.test.inputs.shape[1:], signature),
        )
        (version / "report.html").write_text(page, encoding="utf-8")

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
        formats=record["formats"],
    )


def draw_comparison(results: Sequence[SeedRuns], data: Data, folder: Path) -> None:
    """The pictures that show the best runs of all experiments side by side."""
    bests: dict[str, Any] = {result.name: result.best for result in results}
    histories = {name: run.history for name, run in bests.items()}
    curve_plots.curves(folder / "curves.png", histories)
    votes = {name: run.vote for name, run in bests.items()}
    sizes = [len(vote.weight_scaling) for vote in votes.values() if vote is not None]
    if sizes:
        targets = data.test.targets[: sizes[0]]
        curve_plots.sample_counts(folder / "passes.png", votes, targets)
    if data.test.inputs.ndim == 2:
        predict = {name: partial(_predict, run.model) for name, run in bests.items()}
        file = folder / "regions.png"
        prediction_plots.regions(file, predict, *data.test, data.labels)


def _draw(best: Any, data: Data, pictures: Path, folder: Path) -> None:
    """Draw the pictures of one run, and copy those of the comparison beside them."""
    others = shutil.ignore_patterns("passes.png") if best.vote is None else None
    shutil.copytree(pictures, folder, ignore=others, dirs_exist_ok=True)
    name, labels = best.experiment.dropout, data.labels
    images = data.test.inputs.ndim > 2
    if images:
        title, probabilities = f"{name}, test set", best.probabilities
        file = folder / "predictions.png"
        prediction_plots.predictions(file, title, *data.test, probabilities, labels)
        file, predicted = folder / "confusion.png", probabilities.argmax(axis=1)
        prediction_plots.confusion(file, title, data.test.targets, predicted, labels)
    if best.vote is None:
        return
    samples = best.vote.samples
    part = data.test.first(samples.shape[1])
    title = f"{name}, {test_examples(data, len(part.targets))}"
    forecasts = dict(zip(PREDICTIONS.values(), best.vote.predictions(), strict=True))
    file = folder / "reliability.png"
    curve_plots.calibration(file, title, forecasts, part.targets)
    if images:
        file = folder / "certainty.png"
        prediction_plots.certainty(file, title, *part, samples, labels)
    else:
        # One sub-network for the whole plane, so that the map has no grain.
        settings = {"seed": best.experiment.seed, "consistent": True, "verbose": 0}
        draw = partial(sample, best.model, passes=len(samples), **settings)
        scaled, file = partial(_predict, best.model), folder / "uncertainty.png"
        prediction_plots.uncertainty_maps(file, title, scaled, draw, part.inputs)


def _predict(model, inputs: np.ndarray) -> np.ndarray:
    return model.predict(np.float32(inputs), CHUNK, verbose=0)
