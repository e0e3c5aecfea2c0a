"""The example programs: each runs, and prints what its docstring promises."""

import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a program as its command does; its variables and its output."""

    def run(name):
        monkeypatch.setattr("sys.argv", [f"{name}.py", str(tmp_path / "picture.png")])
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        return variables, capsys.readouterr().out

    return run


def test_layers_in_a_model(run):
    variables, output = run("layers_in_a_model")
    assert "rates of all drop layers: [0.3]" in output
    assert variables["accuracy"] > 0.8  # of two equal classes


def test_a_rate_rises_and_falls_as_its_schedule_says(run):
    variables, output = run("rate_schedule")
    rates = variables["history"]["rate"]
    assert rates[:3] == sorted(rates[:3]) and rates[2:] == sorted(rates[2:])[::-1]
    assert max(rates) > 0.45 and rates[-1] < 1e-9
    assert "{'drop_inputs': 0.1, " in output


def test_gradients_of_a_network_that_is_computed_twice(run):
    variables, output = run("custom_training_loop")
    assert "InvertedDropout  relative error of the gradient 0.00" in output
    assert "Dropout          relative error of the gradient 0.00" not in output
    assert np.mean(variables["losses"]) < 0.2  # the targets' variance is 1


@pytest.mark.slow
def test_a_transformer_drops_in_training_alone(run):
    variables, output = run("transformer_block")
    assert "tokens, training=True: 16" in output
    assert "tokens, training=False: 32" in output
    # One of tokens; in each block one of the attention, one of units, two of paths.
    assert output.count(" rate ") == 1 + 2 * 4
    assert variables["accuracy"] > 0.8  # of two classes, the larger of .55


@pytest.mark.slow
def test_monte_carlo_dropout_is_less_certain_away_from_the_data(run, tmp_path):
    variables, output = run("monte_carlo_dropout")
    deviation, x = np.ravel(variables["votes"].std), variables["points"][:, 0]
    assert deviation[abs(x) >= 1.5].min() > deviation[abs(x) <= 0.75].max()
    assert output.count("\n") == 3 + 9
    assert plt.imread(tmp_path / "picture.png").std() > 0.1  # not blank


@pytest.mark.slow
def test_sub_networks_disagree_on_an_unknown_shape(run, tmp_path):
    variables, _ = run("out_of_distribution")
    *known, cross = (each.mean() for each in variables["information"].values())
    assert cross > 4 * max(known)
    assert plt.imread(tmp_path / "picture.png").std() > 0.1  # not blank


@pytest.mark.slow
def test_serving_is_uncertain_on_the_border(run):
    variables, output = run("serving")
    assert "[-1.0, 0.0]: left" in output and "[1.0, 0.0]: right" in output
    left, right, border = variables["vote"]["entropy"].numpy()
    assert max(left, right) < border
    entropy = float(re.search(r"(?m)^entropy: (.*)$", output)[1])
    assert entropy > max(left, right)
    assert "labels: ['left', 'right']" in output


def test_every_program_is_run():
    programs = {path.stem for path in EXAMPLES.glob("[a-z]*.py")}
    tested = set(re.findall(r'run\("(\w+)"\)', Path(__file__).read_text()))
    assert programs == tested | {"dropout_in_numpy"}
