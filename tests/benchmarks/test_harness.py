"""The arithmetic of the benchmarks, and their command line."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.harness import Comparison


def comparison(variants=dict, **settings):
    return Comparison("work", "slow", variants, **settings)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: its exit code, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        try:
            code = command.main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


def test_variants_alternate_and_warm_up_rounds_do_not_count():
    turns = []

    def variant(name, seconds):
        def measure():
            turns.append(name)
            return seconds[turns.count(name) - 1]

        return measure

    variants = {
        "one": variant("one", [100, 1, 2, 9]),
        "two": variant("two", [100, 4, 5, 6]),
    }
    medians = harness.measure(comparison(lambda: variants, rounds=3))
    assert medians == {"one": 2, "two": 5}
    assert turns == ["two", "one", "one", "two", "two", "one", "one", "two"]


def test_calls_are_waited_for_once():
    waits = []
    harness.timed(lambda: "results", 3, waits.append)()
    assert waits == ["results"]
    assert harness.timed(int, 2, lambda _: time.sleep(0.02))() >= 0.01


def test_ratios_are_of_one_process(monkeypatch, capsys):
    # A machine twice as slow in the second process changes no ratio.
    medians = [(8e-3, 2e-3), (16e-3, 4e-3), (8e-3, 1e-3)]
    outputs = iter("noise\n" + json.dumps({"slow": s, "fast": f}) for s, f in medians)
    monkeypatch.setattr(
        subprocess, "run",
        lambda command, **_: subprocess.CompletedProcess(command, 0, next(outputs)),
    )  # fmt: skip
    slow, fast = harness.compare("name", comparison(limits={"fast": 0.2}), 3)
    assert slow["ratio"] == 1
    assert (fast["ratio_min"], fast["ratio"], fast["ratio_max"]) == (0.125, 0.25, 0.25)
    assert (fast["value"], fast["unit"]) == (2, "ms")
    Console(width=120).print(harness.table([slow, fast]))
    output = capsys.readouterr().out
    assert "0.25 (0.125 to 0.25)" in output and "0.2 exceeded" in output
    Console(width=120).print(harness.table([slow, fast | {"limit": 0.25}]))
    assert "exceeded" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["layer"], "did you mean layers?"),
        (["--processes", "0"], "--processes is 0, but must be in [1, 1000]."),
        (["--processes", "9" * 20], "but must be in [1, 1000]."),
        (["--csv", "nowhere/rows.csv"], "nowhere/rows.csv"),
    ],
)
def test_a_wrong_argument_gives_an_error_message(arguments, sentence, run):
    code, _, message = run(*arguments)
    assert code == 2 and sentence in message


def test_a_failed_comparison_does_not_stop_the_others(monkeypatch, tmp_path, run):
    def process(command, **options):
        failed = command[-1] == "bad"
        return subprocess.CompletedProcess(command, failed, '{"slow": 2.0}')

    monkeypatch.setattr(subprocess, "run", process)
    both = {"bad": comparison(), "good": comparison()}
    monkeypatch.setattr(command, "COMPARISONS", both)
    monkeypatch.setattr(command, "SUBJECTS", {"subject": both})
    path = tmp_path / "rows.csv"
    code, output, message = run("subject", "--csv", str(path))
    assert code == 2 and "work" in output
    assert message == "benchmarks: bad cannot be measured; the reason is above.\n"
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["comparison"], row["value"]) == ("good", "2000.0")


@pytest.mark.slow
def test_a_comparison_is_measured_in_a_real_process(run):
    code, output, _ = run("small-eager", "--processes", "1")
    assert code == 0 and "InvertedDropout" in output


@pytest.mark.slow
def test_layers_on_jax_need_no_other_package():
    pytest.importorskip("jax")
    others = ["tensorflow", "tensorflow_datasets", "matplotlib", "httpx", "filelock"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others}))\n"
        "from benchmarks import __main__, layers\n"
        "subjects = {'layers', 'gpu', 'gpu-training', 'training', 'inference'}\n"
        "assert subjects < set(__main__.SUBJECTS)\n"
        "variants = layers.steps((4, 8), ('copy', *layers.PAIR))\n"
        "assert all(measure() > 0 for measure in variants.values())\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_names_are_unique():
    assert len(command.COMPARISONS) == sum(map(len, command.SUBJECTS.values()))
    assert not {*command.SUBJECTS, "scaling"} & {*command.COMPARISONS}
