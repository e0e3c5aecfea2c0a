"""The benchmark's arithmetic; its figures are for people, not for assertions."""

import csv
import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from benchmarks import CLAIMS, training
from benchmarks import __main__ as benchmark
from benchmarks.__main__ import compare, measure, show
from benchmarks.claim import Claim
from benchmarks.layers import both_ways
from kdrop import InvertedDropout


def test_variants_take_turns_and_the_first_round_is_not_counted():
    turns = []

    def variant(name, seconds):
        def timed():
            turns.append(name)
            return seconds[turns.count(name) - 1]

        return timed

    variants = {
        "one": variant("one", [100, 1, 2, 9]),
        "two": variant("two", [100, 4, 5, 6]),
    }
    found = measure(Claim("work", "one", lambda: variants, rounds=3))
    assert found == {"one": 2, "two": 5}
    assert turns == ["two", "one", "one", "two", "two", "one", "one", "two"]


def test_work_from_scratch_has_no_round_to_warm_up():
    variants = {"one": iter([3]).__next__}
    claim = Claim("work", "one", lambda: variants, rounds=1, warm_up=0)
    assert measure(claim) == {"one": 3}


def test_ratios_are_taken_within_a_process(monkeypatch, capsys):
    # A machine twice as slow in the second process changes no ratio.
    values = [{"slow": 8e-3, "fast": 2e-3}, {"slow": 16e-3, "fast": 4e-3}]
    values += [{"slow": 8e-3, "fast": 1e-3}]
    processes = iter(values)

    class Told:
        returncode = 0

        def __init__(self):
            self.stdout = "noise\n" + json.dumps(next(processes)) + "\n"

    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: Told())
    monkeypatch.setitem(CLAIMS, "fake", Claim("work", "slow", dict, {"fast": 0.2}))
    slow, fast = compare("fake", processes=3)
    assert slow["ratio"] == 1
    assert (fast["ratio_min"], fast["ratio"], fast["ratio_max"]) == (0.125, 0.25, 0.25)
    assert (fast["value"], fast["unit"]) == (2, "ms")
    show([slow, fast], Console(width=120))
    told = capsys.readouterr().out
    assert "0.25 (0.125 to 0.25)" in told
    assert "0.2 exceeded" in told
    show([slow, fast | {"accepted": 0.25}], Console(width=120))
    assert "exceeded" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["speed"], "no claim speed; there are"),
        (["--processes", "0"], "--processes is 0, but must be at least 1"),
        (["--csv", "nowhere/rows.csv"], "nowhere is not a folder"),
    ],
)
def test_bad_input_is_told(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_what_cannot_be_measured_costs_no_other_claim(monkeypatch, tmp_path, capfd):
    def run(command, **options):
        if command[-1] == "bad":
            return subprocess.CompletedProcess(command, 1, "")
        return subprocess.CompletedProcess(command, 0, '{"one": 2.0}')

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    claims = {name: Claim("work", "one", dict) for name in ("bad", "good")}
    monkeypatch.setattr(benchmark, "CLAIMS", claims)
    path = tmp_path / "rows.csv"
    monkeypatch.setattr("sys.argv", ["benchmark", "--csv", str(path)])
    assert benchmark.main() == 2
    told = capfd.readouterr()
    assert told.err == (
        "benchmarks: bad cannot be measured; the reason stands above.\n"
    )
    assert "good" in path.read_text() and "work" in told.out


def test_a_claim_is_measured_written_and_drawn(tmp_path, monkeypatch, capsys):
    # In a real process; the other claim of the same first word takes longer.
    monkeypatch.delitem(CLAIMS, "small eager")
    table, picture = tmp_path / "rows.csv", tmp_path / "ratios.png"
    arguments = ["small", "--processes", "1", "--csv", str(table)]
    arguments += ["--picture", str(picture)]
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    assert benchmark.main() == 0
    with table.open(newline="") as file:
        keras, kdrop = csv.DictReader(file)
    assert (keras["variant"], kdrop["variant"]) == ("keras Dropout", "InvertedDropout")
    assert (keras["ratio"], keras["accepted"]) == ("1.0", "")
    assert float(kdrop["value"]) / float(keras["value"]) == pytest.approx(
        float(kdrop["ratio"])
    )
    assert kdrop["accepted"] == "1.1"
    assert "InvertedDropout" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_step_goes_both_ways_through_the_layer():
    inputs, upstream = tf.fill((64, 64), 3.0), tf.fill((64, 64), 5.0)
    step = tf.function(both_ways(InvertedDropout(0.5, seed=1)))
    outputs, gradient = step(inputs, upstream)
    kept = outputs.numpy() != 0
    np.testing.assert_array_equal(outputs, 6.0 * kept)
    np.testing.assert_array_equal(gradient, 10.0 * kept)
    # 4,096 fair coins: 6 standard deviations are 192.
    assert abs(np.sum(kept) - 2048) < 192


def test_each_dropout_of_a_training_step_is_in_the_network(monkeypatch):
    names, layer = [], training.drop_layer

    def noted(name, rate):
        names.append(name)
        return layer(name, rate)

    monkeypatch.setattr(training, "drop_layer", noted)
    shape = 4, 8, 8, 3
    variants = training._steps(training._convolutions, shape, 10, 0.1, steps=1)
    assert names == ["keras Dropout"] * 4 + ["InvertedDropout"] * 4
    assert all(measured() > 0 for measured in variants.values())
