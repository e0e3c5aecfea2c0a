"""The vote of the sub-networks, in the tables and records of a training run."""

import io
import json
import re

import keras
import numpy as np
import pytest
from rich.console import Console

import kdrop
from kdrop.ensemble.calibration import MEASURES
from kdrop.training import comparison
from kdrop.training.comparison import compare
from kdrop.training.data import spiral
from kdrop.training.experiment import Experiment

PICTURES = {"passes", "reliability", "uncertainty"}


def compared(folder, *kinds, **options):
    settings = {"train_size": 300, "epochs": 3, "batch_size": 50, "hidden": (16,)}
    experiments = [Experiment(dropout=kind, seed=5, **settings) for kind in kinds]
    console = Console(width=132, record=True, file=io.StringIO())
    paths = compare(experiments, output=folder, console=console, **options)
    return paths, console.export_text()


def test_table_and_record_hold_what_the_samples_say(tmp_path):
    (plain, path), text = compared(
        tmp_path / "models", "none", "InvertedDropout", passes=12
    )
    inputs, targets = spiral().test
    model = keras.models.load_model(path / "model.keras")
    samples = kdrop.sample(model, inputs, 12, seed=5, verbose=0).astype(float)
    ways = {
        "weight scaling": model.predict(inputs, verbose=0).astype(float),
        "vote": samples.mean(axis=0),
    }
    record = json.loads((path / "experiment.json").read_text())
    assert record["passes"] == 12
    assert "the vote of 12 passes" in text
    for way, predicted in ways.items():
        numbers = {
            "accuracy": np.mean(predicted.argmax(axis=1) == targets),
            "negative_log_likelihood": -np.log(predicted[range(3000), targets]).mean(),
            "brier_score": ((predicted - np.eye(3)[targets]) ** 2).sum(axis=1).mean(),
        }
        name = way.replace(" ", "_")
        for measure, number in numbers.items():
            written = record["metrics"][f"{name}_{measure}"]
            assert written == pytest.approx(number, rel=1e-5)
        calibration = record["metrics"][f"{name}_expected_calibration_error"]
        (row,) = re.findall(rf"InvertedDropout +{way} +(.*\S)", text)
        accuracy, likelihood, brier = numbers.values()
        assert [float(cell) for cell in row.split()] == pytest.approx(
            [100 * accuracy, likelihood, calibration, brier], abs=0.0051
        )
    assert not re.search("none +(weight scaling|vote)", text)
    assert {p.stem for p in path.glob("*.png")} == PICTURES | {"curves", "regions"}
    assert {p.stem for p in plain.glob("*.png")} == {"curves", "regions"}
    plain = json.loads((plain / "experiment.json").read_text())
    assert not any("vote" in name for name in plain["metrics"])


@pytest.fixture
def exported(monkeypatch):
    """What would be exported, by name; the pictures are drawn."""
    exported_settings = {}

    def export(model, folder, draw, **settings):
        exported_settings.update(settings)
        folder.mkdir()
        draw(folder)
        return folder

    monkeypatch.setattr(comparison, "export", export)
    return exported_settings


@pytest.mark.parametrize("passes, served", [(0, 50), (1, 1)])
def test_the_signature_samples_as_many(tmp_path, exported, passes, served):
    (path,), text = compared(tmp_path, "VanillaDropout", passes=passes)
    assert exported["passes"] == served  # the signature is there without a vote, too
    assert ("weight scaling" in text) == (passes > 0)
    pictures = {path.stem for path in path.glob("*.png")}
    assert (pictures >= PICTURES) == (passes > 0)


def test_every_seed_votes(tmp_path, exported):
    _, text = compared(tmp_path, "InvertedDropout", passes=3, seeds=2)
    for measure in MEASURES:
        runs = exported["record"]["seeds"].values()
        values = [each[f"vote_{measure}"] for each in runs]
        assert len(set(values)) == 2
    mean, spread = np.mean(values), np.std(values, ddof=1)  # the last: Brier score
    assert re.search(rf" vote .* {mean:.4f} ± {spread:.4f}", text)


def test_a_vote_on_the_first_examples_says_so(tmp_path, exported):
    _, text = compared(tmp_path, "InvertedDropout", passes=2, vote_size=4)
    assert exported["record"]["voted_on"] == 4
    accuracy = exported["record"]["metrics"]["vote_accuracy"]
    assert 4 * accuracy == int(4 * accuracy)
    assert "first 4 of 3,000 test examples" in text
