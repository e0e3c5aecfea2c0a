"""The vote of a trained network beside weight scaling."""

import io
import json
import re

import keras
import numpy as np
import pytest
from rich.console import Console

import kdrop
from kdrop.ensemble.uncertainty import MEASURES, Vote, vote
from kdrop.training import comparison
from kdrop.training.comparison import compare
from kdrop.training.data import spiral
from kdrop.training.experiment import Experiment

PICTURES = {"passes", "reliability", "uncertainty"}


def test_metrics_by_hand():
    """Two passes vote on two examples of class 0: right on one, wrong on the other."""
    scaled = np.array([[0.9, 0.1], [0.6, 0.4]])
    samples = np.array([[[1.0, 0.0], [0.1, 0.9]], [[0.6, 0.4], [0.5, 0.5]]])
    found = Vote(scaled, samples).metrics(np.array([0, 0]))
    expected = {
        "weight_scaling_accuracy": 1,
        "weight_scaling_negative_log_likelihood": -np.log(0.9 * 0.6) / 2,
        "weight_scaling_expected_calibration_error": (0.1 + 0.4) / 2,
        "weight_scaling_brier_score": (2 * 0.1**2 + 2 * 0.4**2) / 2,
        "vote_accuracy": 0.5,
        "vote_negative_log_likelihood": -np.log(0.8 * 0.3) / 2,
        "vote_expected_calibration_error": (0.2 + 0.7) / 2,
        "vote_brier_score": (2 * 0.2**2 + 2 * 0.7**2) / 2,
    }
    assert found == pytest.approx(expected)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((2,)),
            kdrop.InvertedDropout(0.5, seed=1, name="drop"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


POINTS = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")


def test_the_passes_are_those_of_sample(model):
    found = vote(model, POINTS, passes=7, seed=3)
    samples = kdrop.sample(model, POINTS, 7, seed=3, verbose=0)
    np.testing.assert_array_equal(found.samples, samples)
    kernel, bias = model.layers[-1].get_weights()
    logits = np.exp(POINTS @ kernel + bias)
    scaled = logits / logits.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.weight_scaling, scaled, atol=1e-6)


def test_what_drops_nothing_or_diverged_has_no_vote(model):
    model.layers[0].rate = 0.0
    assert vote(model, POINTS, passes=2, seed=0) is None
    model.layers[0].rate = 0.5
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * np.nan, bias])
    assert vote(model, POINTS, passes=2, seed=0) is None


def compared(folder, *kinds, **options):
    settings = {"train_size": 300, "epochs": 3, "batch_size": 50, "hidden": (16,)}
    experiments = [Experiment(dropout=kind, seed=5, **settings) for kind in kinds]
    console = Console(width=132, record=True, file=io.StringIO())
    paths = compare(experiments, output=folder, console=console, **options)
    return paths, console.export_text()


def test_table_and_record_hold_what_the_samples_say(tmp_path):
    (plain, path), told = compared(
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
    assert "the vote of 12 passes" in told
    for way, found in ways.items():
        numbers = {
            "accuracy": np.mean(found.argmax(axis=1) == targets),
            "negative_log_likelihood": -np.log(found[range(3000), targets]).mean(),
            "brier_score": ((found - np.eye(3)[targets]) ** 2).sum(axis=1).mean(),
        }
        name = way.replace(" ", "_")
        for measure, number in numbers.items():
            written = record["metrics"][f"{name}_{measure}"]
            assert written == pytest.approx(number, rel=1e-5)
        calibration = record["metrics"][f"{name}_expected_calibration_error"]
        (row,) = re.findall(rf"InvertedDropout +{way} +(.*\S)", told)
        accuracy, likelihood, brier = numbers.values()
        assert [float(cell) for cell in row.split()] == pytest.approx(
            [100 * accuracy, likelihood, calibration, brier], abs=0.0051
        )
    assert not re.search("none +(weight scaling|vote)", told)
    assert {p.stem for p in path.glob("*.png")} == PICTURES | {"curves", "regions"}
    assert {p.stem for p in plain.glob("*.png")} == {"curves", "regions"}
    plain = json.loads((plain / "experiment.json").read_text())
    assert not any("vote" in name for name in plain["metrics"])


@pytest.fixture
def exported(monkeypatch):
    """What would be exported, by name; the pictures are drawn."""
    given = {}

    def export(model, folder, draw, **settings):
        given.update(settings)
        folder.mkdir()
        draw(folder)
        return folder

    monkeypatch.setattr(comparison, "export", export)
    return given


@pytest.mark.parametrize("passes, served", [(0, 50), (1, 1)])
def test_the_signature_samples_as_many(tmp_path, exported, passes, served):
    (path,), told = compared(tmp_path, "VanillaDropout", passes=passes)
    assert exported["passes"] == served  # the signature is there without a vote, too
    assert ("weight scaling" in told) == (passes > 0)
    pictures = {path.stem for path in path.glob("*.png")}
    assert (pictures >= PICTURES) == (passes > 0)


def test_every_seed_votes(tmp_path, exported):
    _, told = compared(tmp_path, "InvertedDropout", passes=3, seeds=2)
    for measure in MEASURES:
        runs = exported["record"]["seeds"].values()
        values = [each[f"vote_{measure}"] for each in runs]
        assert len(set(values)) == 2
    mean, spread = np.mean(values), np.std(values, ddof=1)  # the last: Brier score
    assert re.search(rf" vote .* {mean:.4f} ± {spread:.4f}", told)


def test_a_vote_on_the_first_examples_says_so(tmp_path, exported):
    _, told = compared(tmp_path, "InvertedDropout", passes=2, vote_size=4)
    assert exported["record"]["voted_on"] == 4
    accuracy = exported["record"]["metrics"]["vote_accuracy"]
    assert 4 * accuracy == int(4 * accuracy)
    assert "first 4 of 3,000 test examples" in told
