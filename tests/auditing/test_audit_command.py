"""`python -m kdrop.auditing`: its table, and its status for CI."""

import re
import subprocess
import sys

import keras
import pytest
from keras import layers

import kdrop

pytestmark = pytest.mark.slow


def run(*arguments):
    command = [sys.executable, "-m", "kdrop.auditing", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def save(tmp_path):
    def save(*inner):
        path = tmp_path / "model.keras"
        keras.Sequential([keras.Input((8,)), *inner]).save(path)
        return path

    return save


def test_a_right_model_has_status_0(save):
    status, table, _ = run(save(kdrop.InvertedDropout(0.3), layers.Dense(2)))
    assert status == 0
    heading, row = table.splitlines()
    assert heading.split()[:4] == ["layer", "kind", "rate", "dropped"]
    assert row.split()[1:3] == ["InvertedDropout", "0.3"] and row.endswith("yes")


def test_a_copy_in_bfloat16_that_goes_wrong_is_no_part_of_ok(save):
    status, table, _ = run(save(layers.Dropout(0.001)))
    assert status == 0
    _, row, note = table.splitlines()
    assert row.split()[-2:] == ["NO", "yes"] and note.startswith("bfloat16: of a copy")


def test_a_wrong_model_has_status_1_with_its_problems(save):
    model = save(layers.Dropout(0.001, dtype="bfloat16"))
    status, table, _ = run(model)
    assert status == 1
    assert table.splitlines()[1].endswith("NO")
    assert re.search(r"drops 0\.00[78]\d in place of 0\.001", table)


def test_replicas_and_recomputation(save):
    drops = layers.Dropout(0.3), layers.GaussianDropout(0.3), layers.AlphaDropout(0.3)
    ours = kdrop.InvertedDropout(0.3), kdrop.GaussianDropout(0.3)
    alpha, path = kdrop.AlphaDropout(0.3), kdrop.StochasticDepth(0.3)
    model = save(*drops, *ours, alpha, path)
    status, table, _ = run(model, "--replicas", "--recompute")
    lines = table.splitlines()
    names = lines[0].split()
    assert status == 1 and names[-3:] == ["replicas", "recompute", "ok"]
    ends = [line.split()[-3:] for line in lines[1:8]]
    # Replicas share the decision of `StochasticDepth`.
    right = [["yes"] * 3] * 3 + [["-", "yes", "yes"]]
    assert ends == [["NO"] * 3] * 3 + right
    assert table.count("two replicas share their masks") == 3
    assert table.count("recomputed, the backward pass has another mask") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), ("text", "cannot be loaded: ")],
)
def test_wrong_use_has_status_2_and_one_sentence(content, message, tmp_path):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_text(content)
    status, table, error = run(path)
    assert (status, table) == (2, "")
    assert error.splitlines()[-1].startswith("kdrop.auditing: ") and message in error
