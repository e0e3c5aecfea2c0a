"""The vote of Monte Carlo samples in the tables, records and pictures."""

import html
import io
import json
import re

import keras
import numpy as np
import pytest
from rich.console import Console
from runs import small

import kdrop
from kdrop.ensemble.calibration import MEASURES
from kdrop.training import export
from kdrop.training.comparison import compare
from kdrop.training.data import load
from kdrop.training.devices import ALONE
from kdrop.training.settings import Comparison

PICTURES = {"passes", "reliability", "uncertainty"}


def compared(folder, *kinds, **settings):
    """The exported versions of experiments with these layers, and the output."""
    experiments = [small(dropout=kind, seed=5, epochs=3) for kind in kinds]
    comparison = Comparison(experiments=experiments, output=folder, **settings)
    console = Console(width=100, record=True, file=io.StringIO())
    paths = compare(comparison, ALONE, console)
    return paths, console.export_text()


def pictures(folder):
    return {path.stem for path in folder.glob("*.png")}


@pytest.mark.slow
def test_table_and_record_have_the_measures_of_the_samples(tmp_path):
    (plain, path), output = compared(
        tmp_path / "models", "none", "InvertedDropout", passes=12, vote_size=3000
    )
    inputs, targets = load("spiral").test
    model = keras.models.load_model(path / "model.keras")
    samples = kdrop.sample(model, inputs, 12, seed=5, verbose=0).astype(float)
    ways = {
        "weight scaling": model.predict(inputs, verbose=0).astype(float),
        "vote": samples.mean(axis=0),
    }
    record = json.loads((path / "experiment.json").read_text())
    assert record["passes"] == 12
    assert "vote of 12 samples" in output
    for way, probabilities in ways.items():
        likelihood = np.log(probabilities[range(3000), targets])
        numbers = {
            "accuracy": np.mean(probabilities.argmax(axis=1) == targets),
            "negative_log_likelihood": -likelihood.mean(),
            "brier_score": ((probabilities - np.eye(3)[targets]) ** 2).sum(1).mean(),
        }
        name = way.replace(" ", "_")
        for measure, number in numbers.items():
            written = record["metrics"][f"{name}_{measure}"]
            assert written == pytest.approx(number, rel=1e-5)
        calibration = record["metrics"][f"{name}_expected_calibration_error"]
        (row,) = re.findall(rf"InvertedDropout +{way} +(.*\S)", output)
        accuracy, likelihood, brier = numbers.values()
        assert [float(cell) for cell in row.split()] == pytest.approx(
            [100 * accuracy, likelihood, calibration, brier], abs=0.0051
        )
    assert not re.search("none +(weight scaling|vote)", output)
    assert pictures(path) == PICTURES | {"curves", "regions"}
    assert pictures(plain) == {"curves", "regions"}
    for version in path, plain:
        page = html.unescape((version / "report.html").read_text())
        assert page.count("data:image/png;base64,") == len(pictures(version))
        for line in output.splitlines():
            if line.startswith(("With ", "This is one seed")):
                assert line in page
        assert f">{100 * accuracy:.2f}</td>" in page  # of the vote, in its table
        signature = "sample" if version == path else "serve"
        assert f'"signature_name": "{signature}"' in page
    metrics = json.loads((plain / "experiment.json").read_text())["metrics"]
    assert not any("vote" in name for name in metrics)


@pytest.fixture
def exported(monkeypatch):
    """The arguments of the export, which draws pictures alone."""
    arguments = {}

    def draw_only(model, folder, draw, **settings):
        arguments.update(settings)
        folder.mkdir()
        record = json.dumps({**settings["record"], "made_with": {}})
        (folder / "experiment.json").write_text(record)
        draw(folder)
        return folder

    monkeypatch.setattr(export, "export", draw_only)
    return arguments


@pytest.mark.slow
def test_without_a_vote_the_signature_still_samples(tmp_path, exported):
    (path,), output = compared(tmp_path, "VanillaDropout", passes=0)
    assert exported["passes"] == 50
    assert "weight scaling" not in output
    assert not pictures(path) & PICTURES


@pytest.mark.slow
def test_each_seed_votes_on_the_first_examples(tmp_path, exported):
    (path,), output = compared(
        tmp_path, "InvertedDropout", passes=3, seeds=2, vote_size=4
    )
    record = exported["record"]
    assert exported["passes"] == 3 and record["voted_on"] == 4
    assert "first 4 of 3,000 test examples" in output
    accuracy = record["metrics"]["vote_accuracy"]
    assert 4 * accuracy == int(4 * accuracy)
    for measure in MEASURES:
        values = [metrics[f"vote_{measure}"] for metrics in record["seeds"].values()]
        assert len(values) == 2
    mean, spread = np.mean(values), np.std(values, ddof=1)  # the last: Brier score
    assert spread > 0 and re.search(
        rf" vote .* {mean:.4f} *\n.* ± {spread:.4f}", output
    )
    assert pictures(path) >= PICTURES
