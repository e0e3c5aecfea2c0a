"""What a comparison says in sentences, and the width of what it prints."""

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdrop.training.checkpoint import Checkpoint
from kdrop.training.experiment import LAYERS, Experiment
from kdrop.training.findings import findings, next_steps
from kdrop.training.progress import Recorder
from kdrop.training.report import results_table
from kdrop.training.run import Run, SeedRuns

ONE = "This is one seed: --seeds 5 shows how much of it is chance."


def result(name, *seeds, parts=("train", "validation", "test")):
    """The runs of a layer: an accuracy and a calibration error for each seed."""
    runs = []
    for seed, (accuracy, error) in enumerate(seeds):
        metrics = {"seconds": 1234.0}
        for part in parts:
            metrics |= {f"{part}_accuracy": accuracy, f"{part}_loss": 0.25}
        if "test" in parts:
            metrics["test_calibration_error"] = error
        experiment = Experiment.preset("spiral", dropout=name, seed=seed)
        runs.append(Run(experiment, None, {}, metrics))
    return SeedRuns(runs)


def test_a_layer_is_compared_with_none():
    results = [
        result("InvertedDropout", (0.896, 0.0104)),
        result("none", (0.894, 0.0312)),
        result("VanillaDropout", (0.8894, 0.0312)),
    ]
    assert findings(results) == [
        "With InvertedDropout instead of none: test accuracy +0.2 points, calibration "
        "error 0.031 -> 0.010.",
        "With VanillaDropout instead of none: test accuracy -0.5 points, calibration "
        "error 0.031 -> 0.031.",
        ONE,
    ]


def test_the_gain_of_several_seeds_is_that_of_each_seed():
    before, after = ((0.88, 0.03), (0.90, 0.05)), ((0.89, 0.01), (0.93, 0.02))
    results = [result("none", *before), result("DropPath", *after)]
    assert findings(results) == [
        # gains of 1 and 3 points
        "With DropPath instead of none: test accuracy +2.0 ± 1.4 points, calibration "
        "error 0.040 -> 0.015.",
        "These are means of 2 seeds ± the standard deviation of the gain.",
    ]


def test_without_none_the_first_layer_is_the_baseline():
    results = [result(name, (0.5, 0.1)) for name in ("VanillaDropout", "DropPath")]
    assert findings(results) == [
        "With DropPath instead of VanillaDropout: test accuracy +0.0 points, "
        "calibration error 0.100 -> 0.100.",
        ONE,
    ]


def test_one_layer_alone_is_not_compared():
    assert findings([result("none", (0.894, 0.031))]) == [
        "Without dropout: test accuracy 89.4 %, calibration error 0.031."
    ]
    assert findings([result("DropPath", (0.88, 0.03), (0.90, 0.05))]) == [
        "With DropPath: test accuracy 89.0 ± 1.4 %, calibration error 0.040."
    ]


def test_a_diverged_run_is_not_compared():
    bad = "diverged: its loss is not a finite number. Try a lower --learning-rate."
    good, nan = result("DropPath", (0.9, 0.01)), result("none", (0.3, math.nan))
    assert findings([nan, good]) == [
        f"none {bad}",
        "With DropPath: test accuracy 90.0 %, calibration error 0.010.",
    ]
    nan = result("VanillaDropout", (0.3, math.nan))
    assert findings([result("none", (0.5, 0.1)), nan]) == [f"VanillaDropout {bad}"]
    two = [result("VanillaDropout", (0.3, math.nan), (0.8, 0.1))]
    assert findings(two)[0].startswith("VanillaDropout diverged with 1 of 2 seeds: ")
    lost = result("none", (0.3, 0), parts=("train",))
    lost.runs[0].metrics["train_loss"] = math.nan
    assert findings([lost]) == [f"none {bad}"]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_without_a_test_part_another_counts(part):
    parts = ("train", "validation")[: 1 + (part == "validation")]
    kinds = (("none", 0.5), ("DropPath", 0.7))
    results = [result(name, (value, 0), parts=parts) for name, value in kinds]
    sentence = f"With DropPath instead of none: {part} accuracy +20.0 points."
    assert findings(results) == [sentence, ONE]


def test_the_last_lines_say_what_to_open_and_to_type():
    assert next_steps([]) == []
    (saved, opened, serve, _) = next_steps([Path("my models/mnist-none/12")])
    assert saved == "saved  my models/mnist-none/12"
    assert opened == "open   my models/mnist-none/12/report.html"
    assert serve == "serve  python -m kdrop.serving 'my models'"


def printed(text):
    """The lines of what the command writes to a pipe."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(text, highlight=False)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("name", ["none", *LAYERS])
def test_table_and_lines_of_a_layer_fit_100_columns(name):
    table = results_table([result(name, *[(1.0, 0.123)] * 3)]).for_terminal()
    lines = printed(table)
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    row = rf" {name} .* 100.0 .* 0.250 .* 0.123 +1234"
    assert any(re.fullmatch(row, line) for line in lines)
    row = {"epoch": 1, "loss": 1.5, "data_loss": 1.25, "accuracy": 1.0, "seconds": 20.0}
    row["val_accuracy"] = 0.5
    recorder = Recorder(Console(quiet=True), name, 40, {}, Checkpoint(Path("unused")))
    assert printed(recorder._line(row)) == [
        f"{name}  epoch  1/40  loss 1.250 + reg 0.250  accuracy 1.000  val 0.500  "
        "13 min left"
    ]
    recorder.label += " seed 12"
    recorder.scheduled = [SimpleNamespace(rate=rate / 40) for rate in range(5)]
    lines = printed(recorder._line(row | {"loss": 1.25, "epoch": 39}))
    assert max(map(len, lines)) <= 100
    expected = (
        "epoch 39/40  loss 1.250  accuracy 1.000  val 0.500  rate 0/.../0.1  1 s left"
    )
    assert " ".join(" ".join(lines).split()).endswith(" ".join(expected.split()))
