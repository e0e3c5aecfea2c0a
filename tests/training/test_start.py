"""The start of train.py: what it refuses before it imports TensorFlow or trains."""

import re
import subprocess
import sys

import pytest
from commands import SCRIPT


@pytest.mark.slow
@pytest.mark.parametrize("module", ["rich", "matplotlib", "keras"])
def test_a_missing_extra_is_one_sentence(tmp_path, module):
    code = (
        f"import runpy, sys; sys.modules[{module!r}] = None;"
        f"sys.argv = ['train.py']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 2, process.stderr
    assert re.fullmatch(
        rf"train.py: .*\b{module}\b.*: pip install '.\[train\]'\n", process.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epocs 3", "did you mean --epochs"),
        ("--epochs 0", "--epochs is 0, but must be in"),
        ("spirl", "did you mean spiral"),
        ("--dropout InvertDropout", "did you mean InvertedDropout"),
        ("--model alexnet_32", "did you mean alexnet32"),
        ("--schedule erly", "did you mean early"),
        ("--dropout StandoutDropout --rate 0.1", "which has no rate to set"),
        ("--width 32", "--width is not for --model spiral_mlp"),
        ("--name ../mine", "--name is wrong"),
        ("--processes 0", "--processes is 0"),
    ],
)
def test_wrong_arguments_are_refused_before_tensorflow(arguments, message, tmp_path):
    traced = [sys.executable, "-X", "importtime", SCRIPT, *arguments.split()]
    process = subprocess.run(traced, cwd=tmp_path, capture_output=True, text=True)
    *imports, sentence = process.stderr.splitlines()
    assert process.returncode == 2 and message in sentence
    modules = {line.rpartition("|")[2].strip() for line in imports}
    assert "kdrop.training.arguments" in modules
    assert not modules & {"tensorflow", "keras", "jax", "numpy"}
