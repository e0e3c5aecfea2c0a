"""The example programs: each runs, and prints what its docstring promises."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a program with another name than `__main__`; its variables and its output."""

    def run(name):
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        return variables, capsys.readouterr().out

    return run


def test_layers_in_a_model(run):
    variables, output = run("layers_in_a_model")
    assert "rate after the schedule: 0.0, test accuracy" in output
    assert "rates of all drop layers: [0.3]" in output
    assert variables["accuracy"] > 0.8  # of two equal classes


@pytest.mark.slow
def test_monte_carlo_dropout_is_less_certain_away_from_the_data(run):
    variables, output = run("monte_carlo_dropout")
    deviation, x = np.ravel(variables["votes"].std), variables["points"][:, 0]
    assert deviation[abs(x) >= 2].min() > deviation[abs(x) <= 1].max()
    assert output.count("\n") == 2 + len(x)


@pytest.mark.slow
def test_serving_is_uncertain_on_the_border(run):
    variables, output = run("serving")
    assert "[-1.  0.]: left" in output and "[1. 0.]: right" in output
    left, right, border = variables["vote"]["entropy"].numpy()
    assert max(left, right) < border


def test_every_program_is_run():
    programs = {path.stem for path in EXAMPLES.glob("[a-z]*.py")}
    tested = {"layers_in_a_model", "monte_carlo_dropout", "serving"}
    assert programs == tested | {"dropout_in_numpy"}
